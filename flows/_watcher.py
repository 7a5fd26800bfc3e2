"""Watching the runs of parts: submits them, sees them end, submits lost ones again."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.logging import get_run_logger

from flows._leaf_server import LeafServer, reason_of
from tasks.errors import RunError, StoreError

POLL_SECONDS = 1.0
SLOW_AFTER_SECONDS = 60.0  # polls are then half as many: parts last for a minute and more
ALL_EACH = 15  # polls: the others ask only for runs that have ended, which costs the server far less
LOST_AT_MOST = 3
IDLE_NOTE_SECONDS = 60.0


class Watcher:
    """One watch over the parts of one run; see ``flows._parts.run_parts``."""

    def __init__(
        self,
        server: LeafServer,
        run_key: str,
        parts: Sequence[Mapping[str, Any]],
        title: str,
        is_done: Callable[[int], bool] | None,
        at_once: int | None = None,
        keep: Callable[[], None] | None = None,
    ) -> None:
        self.server = server
        self.run_key = run_key
        self.parts = parts
        self.title = title
        self.is_done = is_done or (lambda _part: False)
        self.at_once = at_once or len(parts)
        self.keep = keep or (lambda: None)
        self.waiting: deque[int] = deque()
        self.log = get_run_logger()
        self.running: dict[UUID, int] = {}
        self.lost = [0] * len(parts)
        self.generation = [0] * len(parts)
        self.done = 0

    def watch(self) -> None:
        """Submit what is not done and return when all is.

        Raises:
            RunError: a part failed, or was lost too often.
        """
        progress = create_progress_artifact(progress=0.0, description=self.title)
        assert isinstance(progress, UUID)
        started, noted, reported, turns = time.monotonic(), False, -1, itertools.count(1)
        self.waiting.extend(part for part in range(len(self.parts)) if not self.is_done(part))
        self.done = len(self.parts) - len(self.waiting)
        self._submit_waiting()
        self.log.info("%s: %d parts, %d done already", self.title, len(self.parts), self.done)
        while self.running:
            if self.done != reported:
                reported = self.done
                update_progress_artifact(progress, progress=100.0 * self.done / len(self.parts))
            time.sleep(POLL_SECONDS * (1 + (time.monotonic() - started > SLOW_AFTER_SECONDS)))
            self._keep_lease()
            runs = self._read_runs(everything=next(turns) % ALL_EACH == 0)
            for run in runs:
                self._judge(run)
            self._submit_waiting()
            idle = bool(runs) and all(run.state is not None and run.state.is_scheduled() for run in runs)
            if idle and not noted and time.monotonic() - started > IDLE_NOTE_SECONDS:
                noted = True
                self.log.info("%s: no free worker for %s yet (see Work Pools)", self.title, self.server.leaf)
        update_progress_artifact(progress, progress=100.0)
        self.log.info("%s: all %d parts done", self.title, len(self.parts))

    def _keep_lease(self) -> None:
        try:
            self.keep()
        except StoreError as error:  # it counts for days; the store need not answer just now
            self.log.warning("The run's lease could not be renewed; trying again: %s", error)

    def _submit_waiting(self) -> None:
        while self.waiting and len(self.running) < self.at_once:
            self._submit(self.waiting.popleft())

    def _submit(self, part: int) -> None:
        while True:
            run = self.server.start(
                self.parts[part],
                name=f"{self.server.leaf} {part + 1}/{len(self.parts)} {self.run_key[:8]}",
                key=f"{self.run_key}-{part}-{self.generation[part]}",
            )
            state = run.state
            if state is None or not state.is_final():
                self.running[run.id] = part
                return
            # The key belongs to a run of an earlier watcher: done counts, anything else is done anew.
            if state.is_completed() and self.is_done(part):
                self.done += 1
                return
            self.generation[part] += 1

    def _read_runs(self, *, everything: bool) -> list[FlowRun]:
        runs = self.server.runs(list(self.running), ended=not everything)
        if runs is None or not everything:  # the server may be too busy; a long watch must outlast that
            return runs or []
        for identifier in set(self.running) - {run.id for run in runs}:  # deleted by a person
            self._resubmit(self.running.pop(identifier), "its run was deleted")
        return runs

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
                f"{self.title}: part {part + 1} of {len(self.parts)} failed: {reason_of(state)}",
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
            self.server.cancel(identifier, "another part failed")
