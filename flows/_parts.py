"""Parts run as leaf deployments in their own pools; the flow that needs them submits and watches.

The watcher holds no slot that a part needs (user-facing flows run in pool ``control``), and a leaf never
waits for another run, so that nothing deadlocks with one run per worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelling

from tasks.errors import RunError

POLL_SECONDS = 1.0
LOST_AT_MOST = 3
IDLE_NOTE_SECONDS = 60.0


def run_parts(
    leaf: str,
    *,
    run_key: str,
    parts: Sequence[Mapping[str, Any]],
    title: str,
    is_done: Callable[[int], bool] | None = None,
) -> None:
    """Run every part as a deployment run of ``leaf`` and return when all are done.

    A part whose run was lost (crashed, cancelled by a dying worker) is submitted again, at most
    ``LOST_AT_MOST`` times; a part that failed on its own account fails the run with its own error.
    Results live in the store, so that submitting a part twice costs time but changes nothing.

    Args:
        leaf: name of the leaf flow and of its deployment.
        run_key: makes the idempotency keys: two watchers of one run key share the runs of its parts.
        parts: JSON parameters of each part.
        title: what is being done, for the log and the progress artifact.
        is_done: whether a part's results are in the store; parts that are done are not submitted.

    Raises:
        RunError: a part failed, or was lost too often.
    """
    if not parts:
        return
    with get_client(sync_client=True) as client:
        _Watcher(client, leaf, run_key, parts, title, is_done).watch()


class _Watcher:
    def __init__(
        self,
        client: SyncPrefectClient,
        leaf: str,
        run_key: str,
        parts: Sequence[Mapping[str, Any]],
        title: str,
        is_done: Callable[[int], bool] | None,
    ) -> None:
        self.client = client
        self.leaf = leaf
        self.run_key = run_key
        self.parts = parts
        self.title = title
        self.is_done = is_done or (lambda _part: False)
        self.log = get_run_logger()
        self.running: dict[UUID, int] = {}
        self.lost = [0] * len(parts)
        self.generation = [0] * len(parts)
        self.done = 0

    def watch(self) -> None:
        progress = create_progress_artifact(progress=0.0, description=self.title)
        assert isinstance(progress, UUID)
        started, noted = time.monotonic(), False
        for part in range(len(self.parts)):
            if self.is_done(part):
                self.done += 1
            else:
                self._submit(part)
        self.log.info("%s: %d parts, %d done already", self.title, len(self.parts), self.done)
        reported = -1
        while self.running:
            if self.done != reported:
                reported = self.done
                update_progress_artifact(progress, progress=100.0 * self.done / len(self.parts))
            time.sleep(POLL_SECONDS)
            runs = self._read_runs()
            for run in runs:
                self._judge(run)
            idle = all(run.state is not None and run.state.is_scheduled() for run in runs)
            if idle and not noted and time.monotonic() - started > IDLE_NOTE_SECONDS:
                noted = True
                self.log.info(
                    "%s: waiting for a free worker for %s (busy with other runs, or none is online: "
                    "see Work Pools)",
                    self.title,
                    self.leaf,
                )
        update_progress_artifact(progress, progress=100.0)
        self.log.info("%s: all %d parts done", self.title, len(self.parts))

    def _submit(self, part: int) -> None:
        while True:
            run = self._create(part)
            state = run.state
            if state is None or not state.is_final():
                self.running[run.id] = part
                return
            # The key belongs to a run of an earlier watcher: done counts, anything else is done anew.
            if state.is_completed() and self.is_done(part):
                self.done += 1
                return
            self.generation[part] += 1

    def _create(self, part: int) -> FlowRun:
        try:
            run = run_deployment(
                f"{self.leaf}/{self.leaf}",
                parameters=dict(self.parts[part]),
                flow_run_name=f"{self.leaf} {part + 1}/{len(self.parts)} {self.run_key[:8]}",
                idempotency_key=f"{self.leaf}-{self.run_key}-{part}-{self.generation[part]}",
                timeout=0,
                as_subflow=True,
            )
        except ObjectNotFound as error:
            raise RunError(
                f"The deployment {self.leaf}/{self.leaf} does not exist on this Prefect server.",
                "Register the deployments with `make up`.",
            ) from error
        assert isinstance(run, FlowRun)
        return run

    def _read_runs(self) -> list[FlowRun]:
        wanted = list(self.running)
        found: list[FlowRun] = []
        for start in range(0, len(wanted), 100):
            identifiers = FlowRunFilterId(any_=wanted[start : start + 100])
            found += self.client.read_flow_runs(flow_run_filter=FlowRunFilter(id=identifiers))
        missing = set(wanted) - {run.id for run in found}
        for identifier in missing:  # deleted by a person or by the server's clean-up
            self._resubmit(self.running.pop(identifier), "its run was deleted")
        return found

    def _judge(self, run: FlowRun) -> None:
        state = run.state
        if state is None or not state.is_final():
            return
        part = self.running.pop(run.id)
        if state.is_completed():
            self.done += 1
            self.log.info("%s: part %d done, %d of %d", self.title, part + 1, self.done, len(self.parts))
        elif state.is_failed():
            self._stop_others()
            raise RunError(
                f"{self.title}: part {part + 1} of {len(self.parts)} failed: {_reason(state)}",
                "Mend the cause and start the run again: what is finished is kept.",
            )
        else:
            self._resubmit(part, f"its run ended as {state.name}")

    def _resubmit(self, part: int, why: str) -> None:
        self.lost[part] += 1
        if self.lost[part] > LOST_AT_MOST:
            self._stop_others()
            raise RunError(
                f"{self.title}: part {part + 1} was lost {self.lost[part]} times; the last time {why}.",
                "Look at the worker's log (memory, disk), then start again: what is finished is kept.",
            )
        self.log.warning("%s: part %d is submitted again, %s", self.title, part + 1, why)
        self.generation[part] += 1
        self._submit(part)

    def _stop_others(self) -> None:
        for identifier in self.running:
            self.client.set_flow_run_state(identifier, Cancelling(message="another part failed"))


def _reason(state: State[Any]) -> str:
    text = state.message or state.name or "no reason given"
    return text.removeprefix("Flow run encountered an exception: ")
