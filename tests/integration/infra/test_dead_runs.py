"""Whose process is gone is ended on the real server; late news of a run does nothing to it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx

from infra.local import LocalStack
from infra.local.dead_runs import DeadRuns


class Looker(DeadRuns):
    """Looks at the test's own runs only, and far more often than the stack's."""

    mine: frozenset[str] = frozenset()

    def _under_way(self, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [run for run in super()._under_way(wanted) if run["id"] in self.mine]


def _tell(http: httpx.Client, event: str, run: str, *, ago_s: float = 0.0) -> None:
    """Send an event about a run, and so many others that the server writes them down at once."""
    occurred = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat()
    told = {
        "occurred": occurred,
        "event": event,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
    }
    other = {"occurred": occurred, "event": "test.other", "resource": {"prefect.resource.id": "test.other"}}
    events = [told, *[other] * 20]
    http.post("/events", json=[one | {"id": str(uuid4())} for one in events]).raise_for_status()


def test_the_silent_one_is_ended_and_no_other(stack: LocalStack, prefect_api: httpx.Client) -> None:
    http = prefect_api
    flow = http.post("/flows/", json={"name": "dead-runs-test"}).json()["id"]

    def start(state: str) -> str:
        made = http.post("/flow_runs/", json={"flow_id": flow, "state": {"type": state}})
        made.raise_for_status()
        return str(made.json()["id"])

    def become(run: str, state: str) -> None:
        answer = http.post(f"/flow_runs/{run}/set_state", json={"state": {"type": state}, "force": True})
        answer.raise_for_status()

    silent, beating, began = start("RUNNING"), start("RUNNING"), start("PENDING")
    looker = Looker(http, silent_s=2, pending_s=2, look_s=1, here=dict, say=lambda _line: None)
    looker.mine = frozenset((silent, beating, began))
    ended: list[str] = []
    try:
        end = time.monotonic() + 60
        ended += looker.look()
        become(began, "RUNNING")
        while silent not in ended and time.monotonic() < end:
            _tell(http, "prefect.flow-run.heartbeat", beating)
            # News of ten minutes ago, as it comes out of a queue that was stuck.
            _tell(http, "prefect.flow-run.Pending", began, ago_s=600)
            _tell(http, "prefect.flow-run.heartbeat", began)
            time.sleep(0.1)
            ended += looker.look()
        assert ended == [silent]
        states = {run: http.get(f"/flow_runs/{run}").json()["state"] for run in looker.mine}
        assert {run: state["type"] for run, state in states.items()} == {
            silent: "CRASHED",
            beating: "RUNNING",
            began: "RUNNING",
        }
        assert "no heartbeat" in states[silent]["message"]
    finally:
        for run in looker.mine - set(ended):
            become(run, "COMPLETED")
    # Nothing else on the server judges runs by what it hears.
    assert http.post("/automations/filter", json={}).json() == []
    assert {one.name: one.problem for one in stack.status()}["dead-runs"] is None
