"""Prefect's process worker, which asks for runs when it can take one.

    python -m infra.local.prefect_worker worker start --type process --pool gpu --name gpu-1 --limit 1

The arguments are those of ``prefect``. Prefect's own worker asks every few seconds whether it is busy or not,
and each question costs the server about 50 ms of a processor (the runs that wait, and marks on their queues
and deployments); a run that ends, however, is followed by the next one only after the pause. This one asks
while it is busy only so often that its queues count as served, and at once when a run has ended.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from prefect.types._datetime import now
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

# The server calls a queue that nobody has asked about for a minute not ready.
BUSY_PAUSE_S = 25.0

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Prefect warns of a second worker of the type, which is the purpose

    class PatientWorker(ProcessWorker):
        """A process worker that asks for runs when it can take one."""

        _asked = 0.0

        async def get_and_submit_flow_runs(self) -> list[FlowRun]:
            """Ask for runs and start them; nothing while busy, but for a sign of life now and then."""
            full = self._limiter is not None and self._limiter.available_tokens < 1
            if full and time.monotonic() - self._asked < BUSY_PAUSE_S:
                self._last_polled_time = now("UTC")
                return []
            self._asked = time.monotonic()
            return await super().get_and_submit_flow_runs()

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
