"""Parts run as leaf deployments in their own pools; the flow that needs them submits and watches.

The watcher holds no slot that a part needs (user-facing flows run in pool ``control``), and a leaf never
waits for another run, so that nothing deadlocks with one run per worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefect.client.orchestration import get_client

from flows._leaf_server import LeafServer, reason_of
from flows._watcher import POLL_SECONDS, Watcher
from tasks.errors import RunError


def run_parts(
    leaf: str,
    *,
    run_key: str,
    parts: Sequence[Mapping[str, Any]],
    title: str,
    is_done: Callable[[int], bool] | None = None,
    at_once: int | None = None,
    keep: Callable[[], None] | None = None,
) -> None:
    """Run every part as a deployment run of ``leaf`` and return when all are done.

    A part whose run was lost (crashed, cancelled by a dying worker) is submitted again, at most
    three times; a part that failed on its own account fails the run with its own error.
    Results live in the store, so that submitting a part twice costs time but changes nothing.

    Args:
        leaf: name of the leaf flow and of its deployment.
        run_key: makes the idempotency keys: two watchers of one run key share the runs of its parts.
        parts: JSON parameters of each part.
        title: what is being done, for the log and the progress artifact.
        is_done: whether a part's results are in the store; parts that are done are not submitted.
        at_once: parts that are submitted and not finished at any time; None: all.
        keep: called every second while parts run; keeps what they need in the store.

    Raises:
        RunError: a part failed, or was lost too often.
    """
    if not parts:
        return
    with get_client(sync_client=True) as client:
        Watcher(LeafServer(client, leaf), run_key, parts, title, is_done, at_once, keep).watch()


def workers_of(leaf: str) -> int:
    """Workers that are there for the runs of a leaf; 0 where nobody knows."""
    with get_client(sync_client=True) as client:
        return LeafServer(client, leaf).workers()


def run_leaf(leaf: str, parameters: Mapping[str, Any], *, key: str, begin_within_s: float) -> bool:
    """Run one leaf and wait for its end; False where no worker took it in time, and it was taken back.

    Args:
        leaf: name of the leaf flow and of its deployment.
        parameters: JSON parameters of the run.
        key: the run's own; makes its idempotency key and its name.
        begin_within_s: how long a worker may be busy with other runs.

    Raises:
        RunError: the run failed or was lost.
    """
    with get_client(sync_client=True) as client:
        server = LeafServer(client, leaf)
        identifier = server.start(parameters, name=f"{leaf} {key[:8]}", key=key).id
        end = time.monotonic() + begin_within_s
        while True:
            time.sleep(POLL_SECONDS)
            runs = server.runs([identifier])
            if runs is None:
                continue
            state = runs[0].state if runs else None
            if state is not None and state.is_completed():
                return True
            if not runs or (state is not None and state.is_final()):
                why = "it was deleted" if state is None else reason_of(state)
                raise RunError(f"The run of {leaf} did not succeed: {why}", "Mend the cause and start again.")
            if (state is None or state.is_scheduled()) and time.monotonic() > end:
                server.cancel(identifier, "no worker was free in time")
                return False
