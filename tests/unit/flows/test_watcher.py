"""The watcher against a server that says what the test wants; the real server is in the integration tests."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Running

from flows import _watcher
from flows._watcher import LOST_AT_MOST, Watcher
from tasks.errors import RunError, StoreError


class Server:
    """Gives every run of a part the next of its states; ``None`` in between is a server that is silent."""

    leaf = "leaf"

    def __init__(self, states: dict[int, list[State[Any]]], *, silent: int = 0) -> None:
        self.states = states
        self.silent = silent
        self.keys: dict[str, FlowRun] = {}
        self.ends: dict[UUID, State[Any]] = {}
        self.started: list[int] = []
        self.cancelled: list[UUID] = []

    def start(self, parameters: Mapping[str, Any], *, name: str, key: str) -> FlowRun:
        if key in self.keys:
            run = self.keys[key]
            run.state = self.ends[run.id]
            return run
        part = parameters["part"]
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=name, state=Running())
        self.keys[key], self.ends[run.id] = run, self.states[part].pop(0)
        self.started.append(part)
        return run

    def runs(self, identifiers: Sequence[UUID], *, ended: bool = False) -> list[FlowRun] | None:
        if self.silent:
            self.silent -= 1
            return None
        return [
            FlowRun(id=identifier, flow_id=uuid4(), name="n", state=self.ends[identifier])
            for identifier in identifiers
            if identifier in self.ends and not (ended and not self.ends[identifier].is_final())
        ]

    def cancel(self, identifier: UUID, why: str) -> None:  # noqa: ARG002
        self.cancelled.append(identifier)


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watcher, "create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr(_watcher, "update_progress_artifact", lambda *_, **__: None)
    monkeypatch.setattr(_watcher, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(_watcher, "POLL_SECONDS", 0.0)


def _watch(server: Server, parts: int, is_done: Any = None) -> None:
    Watcher(server, "key", [{"part": part} for part in range(parts)], "Work", is_done).watch()  # type: ignore[arg-type]


def test_every_part_runs_once_while_the_server_is_silent_now_and_then() -> None:
    server = Server({0: [Completed()], 1: [Completed()]}, silent=3)
    _watch(server, 2)
    assert server.started == [0, 1]


def test_what_is_in_the_store_is_not_submitted() -> None:
    server = Server({0: [], 1: [Completed()]})
    _watch(server, 2, is_done=lambda part: part == 0)
    assert server.started == [1]


def test_a_lost_part_is_submitted_again() -> None:
    server = Server({0: [Crashed(), Cancelled(), Completed()]})
    _watch(server, 1)
    assert server.started == [0, 0, 0]


def test_a_part_that_is_lost_too_often_ends_the_run() -> None:
    server = Server({0: [Crashed() for _ in range(9)]})
    with pytest.raises(RunError, match="was lost 4 times; the last time its run ended as Crashed"):
        _watch(server, 1)
    assert len(server.started) == LOST_AT_MOST + 1


def test_a_part_that_fails_ends_the_run_with_its_own_error_and_stops_the_others() -> None:
    told = "Flow run encountered an exception: RasterError: a.tif is cut off. Copy it again."
    server = Server({0: [Failed(message=told)], 1: [Running()]})
    with pytest.raises(
        RunError, match=r"part 1 of 2 failed: RasterError: a\.tif is cut off\. Copy it again\."
    ):
        _watch(server, 2)
    assert server.started == [0, 1]
    assert len(server.cancelled) == 1


def test_a_deleted_run_is_submitted_again() -> None:
    server = Server({0: [Running(), Completed()]})
    watcher = Watcher(server, "key", [{"part": 0}], "Work", None)  # type: ignore[arg-type]
    run = server.start({"part": 0}, name="n", key="key-0-0")
    del server.ends[run.id]
    server.keys.clear()
    watcher.running[run.id] = 0
    assert watcher._read_runs(everything=False) == []
    assert server.started == [0]
    watcher._read_runs(everything=True)
    assert server.started == [0, 0]


def test_an_earlier_run_without_results_is_done_anew() -> None:
    server = Server({0: [Completed(), Completed()]})
    done: set[int] = set()
    _watch(server, 1, is_done=lambda part: part in done)
    # The results are gone, but the server still knows the run and its key.
    _watch(server, 1, is_done=lambda part: part in done)
    assert server.started == [0, 0]


def test_no_more_parts_than_wanted_run_at_the_same_time() -> None:
    server = Server({part: [Crashed(), Completed()] if part == 1 else [Completed()] for part in range(5)})
    most = 0
    start = server.start

    watcher = Watcher(
        server,  # type: ignore[arg-type]
        "key",
        [{"part": part} for part in range(5)],
        "Work",
        lambda part: part == 3,
        at_once=2,
    )

    def counted(*given: Any, **more: Any) -> FlowRun:
        nonlocal most
        run = start(*given, **more)
        most = max(most, len(watcher.running) + 1)
        return run

    server.start = counted  # type: ignore[method-assign]
    watcher.watch()
    assert sorted(server.started) == [0, 1, 1, 2, 4]
    assert most == 2


def test_the_lease_is_kept_while_parts_run_and_a_store_that_is_away_ends_no_watch() -> None:
    server = Server({0: [Completed()]}, silent=3)
    kept = 0

    def keep() -> None:
        nonlocal kept
        kept += 1
        if kept == 2:
            raise StoreError("The store is away.", "Wait.")

    Watcher(server, "key", [{"part": 0}], "Work", None, keep=keep).watch()  # type: ignore[arg-type]
    assert kept == 4
