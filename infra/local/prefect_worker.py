"""Prefect's process worker, which asks for runs when it can take one.

    python -m infra.local.prefect_worker worker start --type process --pool gpu --name gpu-1 --limit 1

The arguments are those of ``prefect``. Prefect's own worker asks for runs every few seconds, whether it is
busy or not and whether any wait or not, and each question makes the server write marks on queues and
deployments; a run that ends, however, is followed by the next one only after the pause. This one asks while
nothing waits, or while it is busy, only so often that its queues count as served; how many runs wait, which
costs the server far less, every few seconds; and for the next run at once when one has ended.
"""

from __future__ import annotations

import time
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.types._datetime import now
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

# The server calls a queue that nobody has asked about for a minute not ready.
LONGEST_PAUSE_S = 25.0

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Prefect warns of a second worker of the type, which is the purpose

    class PatientWorker(ProcessWorker):
        """A process worker that asks for runs when it can take one."""

        _asked = 0.0

        async def get_and_submit_flow_runs(self) -> list[FlowRun]:
            """Ask for runs and start them, where there may be one to start; a sign of life now and then."""
            recent = time.monotonic() - self._asked < LONGEST_PAUSE_S
            full = self._limiter is not None and self._limiter.available_tokens < 1
            if recent and (full or not await self._waiting()):
                self._last_polled_time = now("UTC")
                return []
            self._asked = time.monotonic()
            return await super().get_and_submit_flow_runs()

        async def _waiting(self) -> int:
            """How many runs of the pool are due."""
            due = now("UTC") + timedelta(seconds=self._prefetch_seconds)
            return await self.client.count_flow_runs(
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                    next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=due),
                ),
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name])),
            )

        def _release_limit_slot(self, flow_run_id: UUID) -> None:
            super()._release_limit_slot(flow_run_id)
            # None, or no longer active, when the worker ends.
            if self._runs_task_group is not None and not self._runs_task_group.cancel_scope.cancel_called:
                self._runs_task_group.start_soon(self._ask_at_once)

        async def _ask_at_once(self) -> None:
            try:
                await self.get_and_submit_flow_runs()
            except (httpx.TransportError, httpx.HTTPStatusError) as error:  # the loop asks again soon
                self._logger.debug("No answer to the question for the next run: %r", error)


def main() -> None:
    """Run ``prefect`` with this process's arguments."""
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
