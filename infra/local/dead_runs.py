"""Ends runs whose process is gone, so that nobody waits for them for ever.

    python -m infra.local.dead_runs

A run that dies together with its worker stays Running on the server: nobody is left to say that it ended.
Prefect's own remedy is an automation that acts when heartbeats fail to come. Its events pass through a queue,
where they come late, out of order or, when the database was busy, not at all; and a machine may have slept.
Then it ends runs that are well. Here the server is asked what is so now, every quarter of a minute:

- A run of which a process lives on this machine is alive, whatever else is heard of it; so is one that such
  a run called.
- Any other is alive when its state, its newest heartbeat or the newest line of its log is another one than at
  the last look. No clock is read: the clocks of machines differ, and a machine that sleeps hears nothing.
- Looks count only while the server answers, and in the end only while an event that was sent at one look has
  arrived at the next: where heartbeats cannot arrive, none is missed.
- Before a run is ended its state is read once more.

It asks through ``PREFECT_API_URL`` with ``PREFECT_API_AUTH_STRING``, and so can serve any Prefect server.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from infra.local.errors import StackError
from infra.local.health import client
from infra.local.processes import flow_run_processes
from tasks.settings import settings

LOOK_S = 15.0
_log = logging.getLogger("dead-runs")
_LOST_AFTER_LOOKS = 4  # an event of ours that has not arrived by then never will
_PAGE = 200
_UNDER_WAY = ("PENDING", "RUNNING", "CANCELLING")
_HEARTBEAT = "prefect.flow-run.heartbeat"
_SENT = "chipline.dead-runs.look"


@dataclass(frozen=True)
class _Quiet:
    """What was last seen of a run, and at how many looks since nothing else was."""

    signs: tuple[str, ...]
    looks: int


class DeadRuns:
    """Looks again and again at the runs under way and ends those that are gone.

    Args:
        http: a client of the Prefect server's API.
        silent_s: how long a run that began may give no sign of life.
        pending_s: how long a run that a worker took may take to begin.
        look_s: seconds between two looks.
        here: the processes of flow runs on this machine: run by process number.
        say: where it is told what was done, one line at a time.
    """

    def __init__(
        self,
        http: httpx.Client,
        *,
        silent_s: float,
        pending_s: float,
        look_s: float = LOOK_S,
        here: Callable[[], Mapping[int, str]] = flow_run_processes,
        say: Callable[[str], None] = _log.info,
    ) -> None:
        self.http = http
        self.here = here
        self.say = say
        self._silent_looks = math.ceil(silent_s / look_s)
        self._pending_looks = math.ceil(pending_s / look_s)
        self._quiet: dict[str, _Quiet] = {}
        self._sent: str | None = None
        self._waited = 0

    def forget(self) -> None:
        """Begin anew: the server did not answer, and so could not hear the runs either."""
        self._quiet.clear()

    def look(self) -> list[str]:
        """Look once; the runs that were ended.

        Raises:
            httpx.HTTPError: the server did not answer, or refused.
        """
        here = self.here()
        arrived = self._sent is None or bool(self._events({"id": {"id": [self._sent]}}))
        quiet: dict[str, _Quiet] = {}
        ended = []
        runs = self._under_way({})
        inside = self._inside(runs, here)
        for run in runs:
            if _lives(run, here) or run["id"] in inside:
                continue
            signs, before = self._signs(run), self._quiet.get(run["id"])
            same = before is not None and before.signs == signs
            now = _Quiet(signs, before.looks + arrived if before is not None and same else 0)
            if now.looks < self._looks(run):
                quiet[run["id"]] = now
            elif self._end(run):
                ended.append(run["id"])
        self._quiet = quiet
        self._waited = 0 if arrived else self._waited + 1
        if not self._doubts(quiet):
            self._sent = None
        elif arrived or self._waited >= _LOST_AFTER_LOOKS:
            self._sent, self._waited = self._send(), 0
        return ended

    def _looks(self, run: Mapping[str, Any]) -> int:
        return self._pending_looks if run["state"]["type"] == "PENDING" else self._silent_looks

    def _doubts(self, quiet: Mapping[str, _Quiet]) -> bool:
        """Whether a run is silent for longer than it takes a heartbeat to come."""
        return any(2 * one.looks >= min(self._silent_looks, self._pending_looks) for one in quiet.values())

    def _inside(self, runs: Iterable[Mapping[str, Any]], here: Mapping[int, str]) -> set[str]:
        """The runs that are called inside a run of which a process is here: the process is theirs, too."""
        if not any(_is_call(run) for run in runs):
            return set()
        called = self._under_way({"parent_flow_run_id": {"any_": sorted(set(here.values()))}})
        return {run["id"] for run in called if _is_call(run)}

    def _under_way(self, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        states = {"state": {"type": {"any_": list(_UNDER_WAY)}}}
        while True:
            page = self._ask(
                "/flow_runs/filter",
                {"flow_runs": {**states, **wanted}, "sort": "ID_DESC", "limit": _PAGE, "offset": len(found)},
            )
            found += page
            if len(page) < _PAGE:
                return found

    def _signs(self, run: Mapping[str, Any]) -> tuple[str, ...]:
        """What changes as long as a run lives: its state, its newest heartbeat, its newest line of log."""
        state = str(run["state"]["id"])
        if run["state"]["type"] == "PENDING":
            return (state,)
        beats = self._events(
            {"event": {"name": [_HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run['id']}"]}}
        )
        lines = self._ask(
            "/logs/filter",
            {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_DESC", "limit": 1},
        )
        return (state, *(str(one["id"]) for one in (*beats, *lines)))

    def _events(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """The newest event that is wanted, if the server has any."""
        # Left to itself, the server leaves out what a machine whose clock is ahead has sent just now.
        days = timedelta(days=2)
        now = datetime.now(UTC)
        wanted["occurred"] = {"since": (now - days).isoformat(), "until": (now + days).isoformat()}
        found = self._ask("/events/filter", {"filter": wanted | {"order": "DESC"}, "limit": 1})
        events: list[dict[str, Any]] = found["events"]
        return events

    def _send(self) -> str:
        """Send an event that takes the way of the heartbeats; its identifier."""
        event = {
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": _SENT,
            "resource": {"prefect.resource.id": "chipline.dead-runs"},
        }
        self.http.post("/events", json=[event]).raise_for_status()
        return str(event["id"])

    def _end(self, run: Mapping[str, Any]) -> bool:
        """End a run that is gone; False where it is another state's turn by now."""
        state = run["state"]
        answer = self.http.get(f"/flow_runs/{run['id']}")
        if answer.status_code == 404:
            return False
        answer.raise_for_status()
        if answer.json()["state"]["id"] != state["id"]:
            return False
        wanted = {
            "type": "CANCELLED" if state["type"] == "CANCELLING" else "CRASHED",
            "message": self._why(run),
        }
        done = self._ask(f"/flow_runs/{run['id']}/set_state", {"state": wanted})
        self.say(f"{run['name']} ({run['id']}) {wanted['type']}, {done['status']}: {wanted['message']}")
        return bool(done["status"] == "ACCEPT")

    def _why(self, run: Mapping[str, Any]) -> str:
        here = f"no process on {platform.node()}"
        if run["state"]["type"] == "PENDING":
            return f"A worker took the run, but it has not begun and has {here}. The worker is gone."
        return (
            f"No sign of life: no heartbeat, no line in its log, {here}. "
            "The run's process and its worker are gone."
        )

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.http.post(path, json=body)
        answer.raise_for_status()
        return answer.json()


def _is_call(run: Mapping[str, Any]) -> bool:
    """Whether a run was called by another as a function, and not given to a worker."""
    return run["parent_task_run_id"] is not None and run["deployment_id"] is None


def _lives(run: Mapping[str, Any], here: Mapping[int, str]) -> bool:
    """Whether a process of the run is on this machine; where its number is known, that very process."""
    number = str(run.get("infrastructure_pid") or "")
    if number.isdigit():
        return here.get(int(number)) == str(run["id"])
    return run["id"] in here.values()


def main() -> None:
    """Look until stopped; after each look that the server answered, the file ``looked`` is new."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    _log.setLevel(logging.INFO)
    looked = Path("looked")
    wanted = settings()
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise StackError("There is no PREFECT_API_URL here.", "Set it to the address of the server's API.")
    with client(url, os.environ.get("PREFECT_API_AUTH_STRING"), patience_s=30) as http:
        runs = DeadRuns(http, silent_s=wanted.run_silent_s, pending_s=wanted.run_pending_s)
        while True:
            try:
                runs.look()
                looked.touch()
            except httpx.HTTPError as error:
                runs.forget()
                runs.say(f"The Prefect server does not answer, asking again: {error!r}")
            time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
