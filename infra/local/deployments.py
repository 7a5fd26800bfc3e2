"""Registers every deployment of ``deployments/prefect.yaml``.

Prefect's own command does the work, so that the file stays one that it understands; then the server is
asked for each of them, so that none is left out silently.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from infra.local.errors import StackError
from infra.local.health import client
from infra.local.layout import PROJECT

DEPLOYMENTS_FILE = PROJECT / "deployments" / "prefect.yaml"


def declared() -> list[dict[str, Any]]:
    """The deployments of the file."""
    found: list[dict[str, Any]] = yaml.safe_load(DEPLOYMENTS_FILE.read_text())["deployments"]
    return found


def register(environment: Mapping[str, str]) -> int:
    """Register all deployments with the server that ``environment`` names; returns how many.

    Raises:
        StackError: the command failed, or the server lacks a deployment afterwards.
    """
    command = [
        sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all",
        "--prefect-file", str(DEPLOYMENTS_FILE.relative_to(PROJECT)),
    ]  # fmt: skip
    result = subprocess.run(
        command,
        env={"CHIPLINE_PROJECT": str(PROJECT), **environment},
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = {_full_name(item) for item in declared()}
    missing = sorted(wanted - _registered(environment))
    if result.returncode != 0 or missing:
        told = "\n".join(f"    {line}" for line in (result.stdout + result.stderr).splitlines()[-30:])
        raise StackError(
            f"Not every deployment could be registered (missing: {', '.join(missing) or 'none'}).\n{told}",
            "Mend what Prefect names above, then run `make up` again.",
        )
    return len(wanted)


def _full_name(deployment: dict[str, Any]) -> str:
    """``flow/deployment``; our flows are named after their functions."""
    return f"{deployment['entrypoint'].partition(':')[2]}/{deployment['name']}"


def _registered(environment: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    url, auth = environment["PREFECT_API_URL"], environment.get("PREFECT_API_AUTH_STRING")
    with client(url, auth, patience_s=30) as http:
        flows = {flow["id"]: flow["name"] for flow in _all(http, "/flows/filter")}
        for deployment in _all(http, "/deployments/filter"):
            found.add(f"{flows.get(deployment['flow_id'])}/{deployment['name']}")
    return found


def _all(http: Any, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = http.post(path, json={"limit": 200, "offset": len(found)})
        answer.raise_for_status()
        page = answer.json()
        found += page
        if len(page) < 200:
            return found
