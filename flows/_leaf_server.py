"""What a watcher asks of the Prefect server about the runs of one leaf deployment."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelling

from tasks.errors import RunError

SILENT_AT_MOST_SECONDS = 600.0
_PAGE = 100
_ENDED = FlowRunFilterState(type=FlowRunFilterStateType(any_=sorted(TERMINAL_STATES)))


class LeafServer:
    """The runs of one leaf deployment, on a server that may be too busy to answer for a while."""

    def __init__(self, client: SyncPrefectClient, leaf: str) -> None:
        self.leaf = leaf
        self._client = client
        self._heard = time.monotonic()

    def start(self, parameters: Mapping[str, Any], *, name: str, key: str) -> FlowRun:
        """A run of the leaf; the one that has this idempotency key already, where there is one.

        Raises:
            RunError: the deployment does not exist.
        """
        try:
            run = run_deployment(
                f"{self.leaf}/{self.leaf}",
                parameters=dict(parameters),
                flow_run_name=name,
                idempotency_key=f"{self.leaf}-{key}",
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

    def workers(self) -> int:
        """Workers of the leaf's pool that are there now; 0 where there are none, or no pool."""
        try:
            deployment = self._client.read_deployment_by_name(f"{self.leaf}/{self.leaf}")
            pool = deployment.work_pool_name
            found = [] if pool is None else self._client.read_workers_for_work_pool(pool)
        except (ObjectNotFound, httpx.TransportError):
            return 0
        return sum(worker.status == WorkerStatus.ONLINE for worker in found)

    def runs(self, identifiers: Sequence[UUID], *, ended: bool = False) -> list[FlowRun] | None:
        """Those of the runs that the server still has; None when it does not answer now.

        Args:
            identifiers: which runs.
            ended: only those that have ended, which costs the server far less where few have.

        Raises:
            RunError: it has not answered for ten minutes.
        """
        found: list[FlowRun] = []
        state = _ENDED if ended else None
        try:
            for start in range(0, len(identifiers), _PAGE):
                wanted = FlowRunFilterId(any_=list(identifiers[start : start + _PAGE]))
                found += self._client.read_flow_runs(flow_run_filter=FlowRunFilter(id=wanted, state=state))
        except httpx.TransportError as error:
            silent = time.monotonic() - self._heard
            if silent > SILENT_AT_MOST_SECONDS:
                raise RunError(
                    f"The Prefect server has not answered for {silent:.0f} s ({error!r}).",
                    "Look at the server, then start the run again: what is finished is kept.",
                ) from error
            get_run_logger().warning("The Prefect server does not answer (%r); asking again", error)
            return None
        self._heard = time.monotonic()
        return found

    def cancel(self, identifier: UUID, why: str) -> None:
        """Ask for the end of a run."""
        self._client.set_flow_run_state(identifier, Cancelling(message=why))


def reason_of(state: State[Any]) -> str:
    """What a failed run says of itself."""
    text = state.message or state.name or "no reason given"
    return text.removeprefix("Flow run encountered an exception: ")
