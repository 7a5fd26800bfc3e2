"""The watcher of a search against a server and a search that do what the test wants."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Crashed, Failed, Running

from flows import _trials
from flows._trials import Trials
from tasks.errors import TrackingError
from tasks.train.study import Training


class Server:
    """Gives every run of a trial the next of its states."""

    leaf = "train_model"

    def __init__(self, states: dict[int, list[State[Any]]]) -> None:
        self.states = states
        self.keys: dict[str, FlowRun] = {}
        self.ends: dict[UUID, State[Any]] = {}
        self.started: list[int] = []
        self.cancelled: list[UUID] = []
        self.most = 0

    def start(self, parameters: Mapping[str, Any], *, name: str, key: str) -> FlowRun:
        if key in self.keys:
            run = self.keys[key]
            run.state = self.ends[run.id]
            return run
        number = int(parameters["plan_uri"])
        assert ("node" in parameters) == (self.leaf == "train_model_on_node")
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=name, state=Running())
        self.keys[key], self.ends[run.id] = run, self.states[number].pop(0)
        self.started.append(number)
        return run

    def runs(self, identifiers: Sequence[UUID]) -> list[FlowRun]:
        self.most = max(self.most, len(identifiers))
        return [
            FlowRun(id=identifier, flow_id=uuid4(), name="n", state=self.ends[identifier])
            for identifier in identifiers
            if identifier in self.ends
        ]

    def cancel(self, identifier: UUID, why: str) -> None:  # noqa: ARG002
        self.cancelled.append(identifier)


class Search:
    """Trials in order; those of ``poor`` are given up when they are observed."""

    key = "k" * 64

    def __init__(self, trials: int, *, begun: int = 0, poor: Sequence[int] = (), **values: Any) -> None:
        given: dict[str, Any] = {"trials": trials, "trials_at_once": 2, "search_minutes": None}
        given |= {"output_name": "n", "monitor": "MIOU", "on_nodes": False}
        self.parameters = SimpleNamespace(**{**given, **values})
        self.begun = begun
        self.number = begun
        self.poor = poor
        self.states: dict[int, str] = dict.fromkeys(range(begun), "running")

    def running(self) -> list[Training]:
        return [Training(number, str(number), "r") for number in range(self.begun)]

    def next(self) -> Training | None:
        if self.number >= self.parameters.trials:
            return None
        self.number += 1
        self.states[self.number - 1] = "running"
        return Training(self.number - 1, str(self.number - 1), "r")

    def observe(self, training: Training, curve: Any) -> bool:
        assert curve == [(1.0, 1, 0.5)]
        return training.number in self.poor

    def complete(self, training: Training) -> bool:
        self.states[training.number] = "complete"
        return True

    def prune(self, training: Training, why: str) -> None:
        self.states[training.number] = f"pruned: {why}"

    def fail(self, training: Training, why: str) -> None:
        self.states[training.number] = f"failed: {why}"

    def rows(self) -> list[dict[str, Any]]:
        return [{"state": state} for state in self.states.values()]


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(_trials, "create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr(_trials, "update_progress_artifact", lambda *_, **__: None)
    monkeypatch.setattr(_trials, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(_trials, "trial_curve", lambda *_: [(1.0, 1, 0.5)])
    monkeypatch.setattr(_trials, "note_trial", lambda _name, _key, why: told.append(why))
    monkeypatch.setattr(_trials, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(_trials, "OBSERVE_SECONDS", 0.0)
    return told


def watch(server: Server, search: Search) -> dict[int, str]:
    Trials(server, search, "parent").watch()  # type: ignore[arg-type]
    return search.states


def test_every_trial_ends_and_few_run_at_once() -> None:
    server = Server({number: [Completed()] for number in range(5)})
    assert set(watch(server, Search(5)).values()) == {"complete"}
    assert server.started == [0, 1, 2, 3, 4]
    assert server.most == 2


def test_trials_on_several_gpus_of_a_node() -> None:
    server = Server({0: [Completed()]})
    server.leaf = "train_model_on_node"
    assert watch(server, Search(1, on_nodes=True)) == {0: "complete"}


def test_a_failed_trial_is_noted_and_a_lost_one_is_submitted_again() -> None:
    failed: State[Any] = Failed(message="Flow run encountered an exception: DeviceError: no memory.")
    server = Server({0: [failed], 1: [Crashed(), Crashed(), Completed()], 2: [Crashed() for _ in range(9)]})
    states = watch(server, Search(3))
    assert states == {
        0: "failed: DeviceError: no memory.",
        1: "complete",
        2: "failed: lost 4 times; the last time its run ended as Crashed",
    }


def test_a_trial_that_falls_behind_is_cancelled_and_makes_room(noted: list[str]) -> None:
    server = Server({0: [Running()], 1: [Completed()], 2: [Completed()]})
    states = watch(server, Search(3, poor=[0]))
    assert states[0].startswith("pruned: worse")
    assert (states[1], states[2]) == ("complete", "complete")
    assert len(server.cancelled) == len(noted) == 1


def test_the_end_of_the_time_gives_up_what_runs(noted: list[str]) -> None:
    server = Server({number: [Running()] for number in range(3)})
    states = watch(server, Search(3, search_minutes=0.001))
    assert states == dict.fromkeys(range(2), "pruned: the time for the search was over")
    assert len(server.cancelled) == len(noted) == 2


def test_a_search_that_was_killed_takes_up_its_runs() -> None:
    server = Server({0: [Completed()], 1: [Completed()], 2: [Completed()]})
    first = server.start({"plan_uri": "0"}, name="n", key=f"{Search.key}-0-0")
    states = watch(server, Search(3, begun=1))
    assert set(states.values()) == {"complete"}
    assert server.started == [0, 1, 2]
    assert first.id in server.ends


def test_a_deleted_run_is_submitted_again_and_a_silent_server_ends_nothing() -> None:
    server = Server({0: [Running(), Completed()]})
    asked = 0
    answer = server.runs

    def runs(identifiers: Sequence[UUID]) -> list[FlowRun] | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            return None
        if asked == 2:
            server.ends.pop(identifiers[0])
        return answer(identifiers)

    server.runs = runs  # type: ignore[assignment, method-assign]
    assert watch(server, Search(1)) == {0: "complete"}
    assert server.started == [0, 0]


def test_mlflow_away_gives_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: str) -> Any:
        raise TrackingError("MLflow failed.", "Wait.")

    monkeypatch.setattr(_trials, "trial_curve", away)
    server = Server({0: [Completed()], 1: [Completed()]})
    assert set(watch(server, Search(2, poor=[0, 1])).values()) == {"complete"}
