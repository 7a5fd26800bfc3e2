"""Shared by all tests: the real stack, booted once per session by the first test that asks for it.

``CHIPLINE_TEST_HOME=<folder>`` keeps a stack between sessions: it is booted there, or taken as it runs,
and left running. ``CHIPLINE_HOME=<folder> python -m infra.local down`` stops it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local import LocalStack, free_port_base
from infra.local.health import client

# Servers of the machine's own: nothing that a test asks for may take a detour.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
# Tests compute small things, several at once: more threads than cores would wait for each other, and spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
STACK_TIMEOUT_S = 600  # beside all other tests


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share the stack: they run one after the other, beside all others."""
    for item in items:
        if isinstance(item, pytest.Function) and "stack" in item.fixturenames:
            item.add_marker(pytest.mark.stack)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(STACK_TIMEOUT_S))


def fast_folder() -> str | None:
    """Memory, where there is plenty: a test's databases need no disk, and a slow one makes them lock."""
    memory = Path("/dev/shm")
    plenty = memory.is_dir() and shutil.disk_usage(memory).free > 4 * 2**30
    return str(memory) if plenty and os.access(memory, os.W_OK) else None


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    """The real stack with all deployments registered."""
    kept = os.environ.get("CHIPLINE_TEST_HOME")
    if kept:
        home = Path(kept)
        state = home / "state.json"
        entries = json.loads(state.read_text()).values() if state.exists() else []
        base = next((entry["port_base"] for entry in entries), None) or free_port_base()
        running = LocalStack(home, base)
        running.up()
        yield running
        return
    home = Path(tempfile.mkdtemp(prefix="chipline-test-", dir=fast_folder()))
    running = LocalStack(home, free_port_base())
    try:
        running.up()
        yield running
    finally:
        running.down()
        shutil.rmtree(home, ignore_errors=True)


class Runs:
    """Deployment runs through Prefect's REST API, as any program would start them."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def deployment(self, name: str) -> dict[str, Any]:
        """The deployment ``flow/deployment``."""
        answer = self.http.get(f"/deployments/name/{name}")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def start(self, name: str, parameters: dict[str, Any]) -> str:
        """Create a run; returns its identifier."""
        answer = self.create(name, parameters)
        answer.raise_for_status()
        return str(answer.json()["id"])

    def create(self, name: str, parameters: dict[str, Any]) -> httpx.Response:
        """What the API answers when a run is asked for."""
        identifier = self.deployment(name)["id"]
        return self.http.post(
            f"/deployments/{identifier}/create_flow_run",
            json={"parameters": parameters, "state": {"type": "SCHEDULED"}},
        )

    def wait(self, run: str, *, timeout_s: float = 180) -> dict[str, Any]:
        """The run in its final state.

        Raises:
            TimeoutError: with the run's log.
        """
        end = time.monotonic() + timeout_s
        found: dict[str, Any] = {"state_type": "not known"}
        while time.monotonic() < end:
            try:
                found = self.http.get(f"/flow_runs/{run}").json()
            except httpx.TransportError:  # a busy server closes connections that it kept
                time.sleep(0.5)
                continue
            if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return found
            time.sleep(0.5)
        raise TimeoutError(f"run {run} is {found['state_type']} after {timeout_s} s:\n{self.log(run)}")

    def message(self, run: dict[str, Any]) -> str:
        """What a run's state says."""
        return str(run["state"].get("message") or "")

    def log(self, run: str) -> str:
        """The log of a run."""
        answer = self.http.post(
            "/logs/filter", json={"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        )
        return "\n".join(line["message"] for line in answer.json())

    def says(self, run: str, text: str, *, patience_s: float = 60) -> bool:
        """Whether a run's log holds a text; logs travel in batches and may come after the run's end."""
        end = time.monotonic() + patience_s
        while text not in self.log(run):
            if time.monotonic() > end:
                return False
            time.sleep(0.5)
        return True

    def artifacts(self, run: str) -> list[dict[str, Any]]:
        """The artifacts that a run left."""
        answer = self.http.post("/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [run]}}})
        found: list[dict[str, Any]] = answer.json()
        return found

    def children(self, run: str) -> list[dict[str, Any]]:
        """The runs that a run started: subflows and parts."""
        answer = self.http.post(
            "/flow_runs/filter", json={"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}
        )
        found: list[dict[str, Any]] = answer.json()
        return found

    def latest_of(self, name: str) -> list[dict[str, Any]]:
        """The runs of a deployment, newest first."""
        identifier = self.deployment(name)["id"]
        answer = self.http.post(
            "/flow_runs/filter",
            json={"deployments": {"id": {"any_": [identifier]}}, "sort": "EXPECTED_START_TIME_DESC"},
        )
        found: list[dict[str, Any]] = answer.json()
        return found


@pytest.fixture(scope="session")
def prefect_api(stack: LocalStack) -> Iterator[httpx.Client]:
    """An authenticated client of Prefect's REST API."""
    url = f"{stack.layout.prefect_url}/api"
    with client(url, stack.secrets.prefect_auth_string, patience_s=90) as http:
        yield http


@pytest.fixture(scope="session")
def runs(prefect_api: httpx.Client) -> Runs:
    """Starts and follows deployment runs."""
    return Runs(prefect_api)


@pytest.fixture
def as_role(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``as_role("gpu")`` gives this process the settings of a role for the rest of the test."""
    from tasks.settings import settings

    def become(role: Any) -> None:
        for name, value in stack.environment(role).items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()

    yield become
    settings.cache_clear()
