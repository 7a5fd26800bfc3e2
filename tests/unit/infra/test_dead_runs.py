"""A run is ended when it is gone, and only then: against a server that answers what the test wants."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.local import dead_runs
from infra.local.dead_runs import DeadRuns

SILENT, PENDING = 4, 8  # looks


class Server:
    """What of Prefect's API is asked; ``late`` keeps events in the queue, where nobody finds them."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.beats: dict[str, str] = {}
        self.lines: dict[str, str] = {}
        self.events: set[str] = set()
        self.late = False
        self.meanwhile: dict[str, str] = {}
        self.down = False

    def run(
        self, kind: str, *, number: str | None = None, parent: str | None = None, call: bool = False
    ) -> str:
        name = str(uuid4())
        self.runs[name] = {
            "id": name,
            "name": f"a {kind}",
            "infrastructure_pid": number,
            "parent_task_run_id": parent,
            "deployment_id": None if call else "a deployment",
        }
        self.set(name, kind)
        return name

    def set(self, run: str, kind: str, message: str = "") -> None:
        self.runs[run]["state"] = {"id": str(uuid4()), "type": kind, "message": message}

    def state(self, run: str) -> str:
        return str(self.runs[run]["state"]["type"])

    def beat(self, run: str) -> None:
        self.beats[run] = str(uuid4())

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("away")
        path = request.url.path
        body = json.loads(request.content) if request.content else {}
        if path == "/flow_runs/filter":
            kinds = body["flow_runs"]["state"]["type"]["any_"]
            found = [run for run in self.runs.values() if run["state"]["type"] in kinds]
            if "parent_flow_run_id" in body["flow_runs"]:
                parents = body["flow_runs"]["parent_flow_run_id"]["any_"]
                found = [run for run in found if run["parent_task_run_id"] in parents]
            found = json.loads(json.dumps(found[body["offset"] : body["offset"] + body["limit"]]))
            # What happens after the list was made, and before anything is done.
            for run, kind in self.meanwhile.items():
                self.set(run, kind)
            return httpx.Response(200, json=found)
        if path == "/events":
            if not self.late:
                self.events |= {event["id"] for event in body}
            return httpx.Response(204)
        if path == "/events/filter":
            wanted = body["filter"]
            if "id" in wanted:
                ids = [one for one in wanted["id"]["id"] if one in self.events]
            else:
                run = wanted["resource"]["id"][0].removeprefix("prefect.flow-run.")
                ids = [self.beats[run]] if run in self.beats else []
            return httpx.Response(200, json={"events": [{"id": one} for one in ids]})
        if path == "/logs/filter":
            run = body["logs"]["flow_run_id"]["any_"][0]
            return httpx.Response(200, json=[{"id": self.lines[run]}] if run in self.lines else [])
        run, what = path.removeprefix("/flow_runs/").partition("/")[::2]
        if run not in self.runs:
            return httpx.Response(404)
        if what == "set_state":
            self.set(run, body["state"]["type"], body["state"]["message"])
            return httpx.Response(200, json={"status": "ACCEPT"})
        return httpx.Response(200, json=self.runs[run])


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def here() -> dict[int, str]:
    return {}


@pytest.fixture
def dead(server: Server, here: dict[int, str]) -> DeadRuns:
    http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(server.answer))
    return DeadRuns(
        http, silent_s=SILENT, pending_s=PENDING, look_s=1, here=lambda: here, say=lambda _line: None
    )


def look(dead: DeadRuns, times: int) -> list[str]:
    return [run for _ in range(times) for run in dead.look()]


@pytest.mark.parametrize(
    ("kind", "looks", "end"),
    [("RUNNING", SILENT, "CRASHED"), ("PENDING", PENDING, "CRASHED"), ("CANCELLING", SILENT, "CANCELLED")],
)
def test_a_run_that_gives_no_sign_is_ended_after_its_time(
    dead: DeadRuns, server: Server, kind: str, looks: int, end: str
) -> None:
    run = server.run(kind)
    assert look(dead, looks) == []
    assert look(dead, 1) == [run]
    assert server.state(run) == end
    assert look(dead, 3) == []


@pytest.mark.parametrize("sign", ["heartbeat", "line", "state"])
def test_every_sign_of_life_begins_the_time_anew(dead: DeadRuns, server: Server, sign: str) -> None:
    run = server.run("RUNNING")
    for _ in range(4):
        assert look(dead, SILENT) == []
        if sign == "heartbeat":
            server.beat(run)
        elif sign == "line":
            server.lines[run] = str(uuid4())
        else:
            server.set(run, "RUNNING")
    assert look(dead, SILENT + 1) == [run]


@pytest.mark.parametrize("kind", ["PENDING", "RUNNING", "CANCELLING"])
@pytest.mark.parametrize("number", ["77", None])
def test_a_run_whose_process_is_here_lives(
    dead: DeadRuns, server: Server, here: dict[int, str], kind: str, number: str | None
) -> None:
    run = server.run(kind, number=number)
    here[77] = run
    assert look(dead, 3 * PENDING) == []
    del here[77]  # only now its time begins
    assert look(dead, SILENT) == []
    assert look(dead, PENDING) == [run]


def test_a_process_that_a_dead_run_left_behind_or_a_number_used_again_is_not_the_run(
    dead: DeadRuns, server: Server, here: dict[int, str]
) -> None:
    orphaned, stranger = server.run("RUNNING", number="77"), server.run("RUNNING", number="79")
    here |= {78: orphaned, 79: "another run"}
    assert set(look(dead, SILENT + 1)) == {orphaned, stranger}


def test_a_run_that_a_living_run_called_lives_and_its_parts_speak_for_themselves(
    dead: DeadRuns, server: Server, here: dict[int, str]
) -> None:
    chain = server.run("RUNNING", number="77")
    called, part = server.run("RUNNING", parent=chain, call=True), server.run("PENDING", parent=chain)
    here[77] = chain
    assert look(dead, 3 * PENDING) == [part]
    here.clear()
    assert set(look(dead, SILENT + 1)) == {chain, called}


@pytest.mark.parametrize("now", ["RUNNING", "COMPLETED"])
def test_a_run_that_began_or_ended_just_now_is_let_alone(dead: DeadRuns, server: Server, now: str) -> None:
    run = server.run("PENDING")
    look(dead, PENDING)
    # The list of this look still says Pending, as a late event would.
    server.meanwhile = {run: now}
    assert look(dead, 1) == []
    assert server.state(run) == now
    server.meanwhile.clear()
    assert look(dead, SILENT) == []


def test_a_run_that_was_deleted_just_now_is_none(dead: DeadRuns, server: Server) -> None:
    run = server.run("RUNNING")
    look(dead, SILENT)
    answer = server.answer

    def deleted(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404) if request.url.path == f"/flow_runs/{run}" else answer(request)

    dead.http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(deleted))
    assert look(dead, 1) == []


def test_where_events_do_not_arrive_no_heartbeat_is_missed(dead: DeadRuns, server: Server) -> None:
    run = server.run("RUNNING")
    server.late = True
    assert look(dead, 10 * SILENT) == []
    server.late = False  # what was lost stays lost; another is sent
    assert look(dead, 2 * SILENT + 1) == [run]


def test_a_server_that_was_away_heard_nobody(dead: DeadRuns, server: Server) -> None:
    run = server.run("RUNNING")
    look(dead, SILENT)
    server.down = True
    with pytest.raises(httpx.HTTPError):
        dead.look()
    dead.forget()
    server.down = False
    assert look(dead, SILENT) == []
    assert look(dead, 1) == [run]


def test_more_runs_than_a_page(dead: DeadRuns, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_runs, "_PAGE", 10)
    runs = {server.run("RUNNING") for _ in range(25)}
    assert set(look(dead, SILENT + 1)) == runs
    assert {server.state(run) for run in runs} == {"CRASHED"}


def test_runs_that_wait_pause_or_have_ended_are_not_looked_at(dead: DeadRuns, server: Server) -> None:
    for kind in ("SCHEDULED", "PAUSED", "COMPLETED", "FAILED", "CANCELLED"):
        server.run(kind)
    assert look(dead, 3 * PENDING) == []
