"""Following runs from outside: their logs as they come, until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterStartTime,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
    LogFilterTimestamp,
)
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import LogSort

_INFO = 20
_POLL_SECONDS = 2.0
_PAGE = 200
# What Prefect says of its own machinery; the story is in what the tools say.
_MACHINERY = (
    "Aborted submission of flow run",
    "Beginning ",
    "Executing deployment step",
    "Deployment step ",
    "All deployment steps",
    "Running 1 deployment pull step",
    "Finished in state Completed()",
    "Flow run ",
    "Worker ",
)


class Follower:
    """Prints what the runs that started after ``begun`` log, until the watched ones have ended."""

    def __init__(self, client: SyncPrefectClient, begun: datetime, say: Callable[[str], None]) -> None:
        self.client = client
        self.begun = begun
        self.say = say
        self._seen: set[UUID] = set()
        self._since = begun
        self._clock = time.monotonic()

    def wait(self, watched: dict[UUID, str], *, timeout_s: float) -> dict[UUID, FlowRun]:
        """The watched runs, by id, when all have ended (or as they are when time has run out)."""
        end = time.monotonic() + timeout_s
        while True:
            runs = {identifier: self.client.read_flow_run(identifier) for identifier in watched}
            over = all(run.state is not None and run.state.is_final() for run in runs.values())
            if over:
                time.sleep(_POLL_SECONDS)  # logs travel in batches
            self._print_new_logs()
            if over or time.monotonic() > end:
                return runs
            time.sleep(_POLL_SECONDS)

    def _print_new_logs(self) -> None:
        names = self._names()
        while True:
            logs = self.client.read_logs(
                log_filter=LogFilter(
                    level=LogFilterLevel(ge_=_INFO),
                    timestamp=LogFilterTimestamp(after_=self._since),
                    flow_run_id=LogFilterFlowRunId(any_=list(names)),
                ),
                sort=LogSort.TIMESTAMP_ASC,
                limit=_PAGE,
            )
            fresh = [log for log in logs if log.id is not None and log.id not in self._seen]
            for log in fresh:
                self._print(log, names)
            if len(logs) < _PAGE or not fresh:
                return
            self._since = logs[-1].timestamp

    def _names(self) -> dict[UUID, str]:
        started = FlowRunFilter(start_time=FlowRunFilterStartTime(after_=self.begun))
        return {run.id: run.name for run in self.client.read_flow_runs(flow_run_filter=started)}

    def _print(self, log: Log, names: dict[UUID, str]) -> None:
        assert log.id is not None
        self._seen.add(log.id)
        if not log.name.startswith("prefect") or log.flow_run_id is None:
            return
        if log.message.startswith(_MACHINERY):
            return
        seconds = int(time.monotonic() - self._clock)
        lines = log.message.strip().splitlines() or [""]
        # Tracebacks stay in the UI; a person at the terminal wants the story.
        self.say(f"{seconds // 60:3d}:{seconds % 60:02d}  {names.get(log.flow_run_id, ''):28.28}  {lines[0]}")
