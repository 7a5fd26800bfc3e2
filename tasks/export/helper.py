"""The helpers' side of :mod:`tasks.export.crew`: ``python -m tasks.export.helper PARENT DESCRIPTOR …``.

Loads what cutting needs once, then divides into one process per descriptor.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import signal
import sys
import traceback
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from tasks.errors import RunError
from tasks.export.crew import READY, usable_cores

_PR_SET_PDEATHSIG = 1
# Optional for pyogrio, which loads them for data frames that cutting does not make: a third of the start.
_SPARED = ("geopandas", "pandas")


def main() -> None:
    """Serve every descriptor in a process of its own, until it is closed."""
    parent, *descriptors = (int(text) for text in sys.argv[1:])
    _die_with(parent)
    # Whoever is asked to stop is the process that cuts the part.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _load()
    gc.freeze()
    children = []
    while len(descriptors) > 1:
        mine = descriptors.pop()
        this, child = os.getpid(), os.fork()
        if not child:
            _die_with(this)
            for other in descriptors:
                os.close(other)
            _end(_serve(mine))
        os.close(mine)
        children.append(child)
    code = _serve(descriptors[0])
    os.close(descriptors[0])
    for child in children:
        os.waitpid(child, 0)
    _end(code)


def _load() -> None:
    """Load what cutting needs, before dividing, so that all share it."""
    for name in _SPARED:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in ("pyogrio.raw", "tasks.labels.prepared", "tasks.export.cutter"):
        importlib.import_module(name)
    for name in _SPARED:
        del sys.modules[name]


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it was quicker
        _end(1)


def _end(code: int) -> None:
    """Without tidying up, which takes a while and changes nothing."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(descriptor: int) -> int:
    connection: Connection[Any, Any] = Connection(os.dup(descriptor))
    try:
        connection.send(READY)
        while True:
            plan, part, processes = connection.recv()
            _help(connection, plan, part, processes)
    except (EOFError, OSError):  # the other side is gone, or has closed
        return 0


def _help(connection: Connection[Any, Any], plan: Any, part: Any, processes: int) -> None:
    """Cut slices of one part until None comes."""
    from tasks.export.cutter import Cutter
    from tasks.store import ObjectStore

    readers = max(1, usable_cores() // processes)
    cutter: Cutter | None = None
    with ExitStack() as stack:
        while (lanes := connection.recv()) is not None:
            answer: Any
            try:
                if cutter is None:
                    made = Cutter(ObjectStore(), plan, part, readers=readers, processes=processes)
                    cutter = stack.enter_context(made)
                answer = cutter.cut(lanes)
            except Exception as error:  # noqa: BLE001 - it is raised where the slice was ordered
                answer = _portable(error)
            connection.send(answer)


def _portable(error: Exception) -> BaseException:
    """The error with where it came from; as a text where it cannot travel."""
    error.add_note("".join(traceback.format_exception(error)).rstrip())
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever keeps it from travelling
        again = None
    if type(again) is type(error) and str(again) == str(error):
        return error
    return RunError(f"A process that cut chips failed: {error!r}", "Look at the log of the run.")


if __name__ == "__main__":
    main()
