"""One leaf, run and waited for; against a server that says what the test wants."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Crashed, Failed, Running, Scheduled

from flows import _parts
from tasks.errors import RunError


class Server:
    """Gives a run its states one after the other, the last one again and again; None is silence."""

    def __init__(self, *states: State[Any] | None) -> None:
        self.states = list(states)
        self.cancelled: list[UUID] = []
        self.run = FlowRun(id=uuid4(), flow_id=uuid4(), name="n")

    def start(self, _parameters: Any, *, name: str, key: str) -> FlowRun:
        assert name
        assert key
        return self.run

    def runs(self, _identifiers: Any) -> list[FlowRun] | None:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return None if state is None else [self.run.model_copy(update={"state": state})]

    def cancel(self, identifier: UUID, _why: str) -> None:
        self.cancelled.append(identifier)


def run(monkeypatch: pytest.MonkeyPatch, server: Server, within_s: float = 0.0) -> bool:
    monkeypatch.setattr(_parts, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(_parts, "get_client", lambda **_: nullcontext())
    monkeypatch.setattr(_parts, "LeafServer", lambda _client, _leaf: server)
    return _parts.run_leaf("leaf", {}, key="k", begin_within_s=within_s)


def test_a_leaf_that_began_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, Server(Running(), None, Running(), Completed()))
    assert run(monkeypatch, Server(Scheduled(), Running(), Completed()), within_s=60)


def test_a_leaf_that_no_worker_takes_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Scheduled())
    assert not run(monkeypatch, server)
    assert server.cancelled == [server.run.id]


@pytest.mark.parametrize("state", [Failed(message="HostError: it broke. Mend it."), Crashed(message="gone")])
def test_a_leaf_that_fails_fails_its_run(monkeypatch: pytest.MonkeyPatch, state: State[Any]) -> None:
    with pytest.raises(RunError, match=state.message):
        run(monkeypatch, Server(Running(), state))
