"""Prefect's server, with transactions that wait, and cyclic garbage collected in a thread of its own.

    python -m infra.local.prefect_server server start --host 127.0.0.1 --port 4200

The arguments are those of ``prefect``. On SQLite the server stood still for whole minutes ("database is
locked", with idle processors): its event loop's thread slept in the middle of Python code, while another
connection waited its 60 s for the write lock, which only the loop could have released. That fits a garbage
collection that frees a statement of the waiting connection, for SQLite then makes the freeing thread wait,
too. Garbage is therefore collected in a thread that nobody waits for; since then no such minute was seen. How
transactions begin is told in ``prefect_database``.
"""

from __future__ import annotations

import gc
import threading
import time

_PAUSE_S = 0.5
# A full collection looks at every object of the server, about 0.2 s of a core.
_FULL_EACH = 60


def _collect() -> None:
    for turn in range(1, 2**62):
        time.sleep(_PAUSE_S)
        gc.collect(2 if turn % _FULL_EACH == 0 else 1)
        if turn == _FULL_EACH:
            gc.freeze()  # what the start has made stays for ever and need not be looked at again


def main() -> None:
    """Run ``prefect`` with this process's arguments."""
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()
    from prefect.cli import app

    from infra.local.prefect_database import use_waiting_sqlite

    use_waiting_sqlite()
    app()


if __name__ == "__main__":
    main()
