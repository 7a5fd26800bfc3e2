"""Work pools and automations: data files applied to the Prefect server through its REST API.

Plain HTTP, because importing Prefect's client costs seconds and pools are wanted before the workers.
"""

from __future__ import annotations

from typing import Any

import httpx
import yaml

from infra.local.errors import StackError
from infra.local.health import client
from infra.local.layout import PROJECT, Layout
from infra.local.secrets import Secrets
from infra.local.services import pools

AUTOMATIONS_FILE = PROJECT / "deployments" / "automations.yaml"


def apply(layout: Layout, keys: Secrets) -> None:
    """Make the pools and automations of ``deployments/`` so, whatever the server had before.

    Raises:
        StackError: the server refuses one of them.
    """
    with client(f"{layout.prefect_url}/api", keys.prefect_auth_string, patience_s=30) as http:
        data = pools()
        for pool in data["pools"]:
            _apply_pool(http, pool, data["base_job_template"])
        for automation in yaml.safe_load(AUTOMATIONS_FILE.read_text())["automations"]:
            _apply_automation(http, automation)


def _apply_pool(http: httpx.Client, pool: dict[str, Any], template: dict[str, Any]) -> None:
    wanted = {"description": pool["description"], "base_job_template": template}
    if http.get(f"/work_pools/{pool['name']}").status_code == 404:
        wanted |= {"name": pool["name"], "type": "process"}
        answer = http.post("/work_pools/", json=wanted)
    else:
        answer = http.patch(f"/work_pools/{pool['name']}", json=wanted)
    _require(answer, f"the work pool {pool['name']}", "deployments/pools.yaml")


def _apply_automation(http: httpx.Client, automation: dict[str, Any]) -> None:
    name = automation["name"]
    present = http.post("/automations/filter", json={"automations": {"name": {"any_": [name]}}}).json()
    if present and _says_the_same(automation, present[0]):
        # Writing it again would forget which runs are being watched: one that died would stay Running.
        return
    if present:
        answer = http.put(f"/automations/{present[0]['id']}", json=automation)
    else:
        answer = http.post("/automations/", json=automation)
    _require(answer, f"the automation {name}", "deployments/automations.yaml")


def _says_the_same(wanted: Any, present: Any) -> bool:
    """Whether the server's record holds all that the file says; it adds defaults and orders sets anew."""
    if isinstance(wanted, dict):
        return isinstance(present, dict) and all(
            name in present and _says_the_same(value, present[name]) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(present, list) or len(wanted) != len(present):
            return False
        if all(isinstance(item, str) for item in wanted):
            return sorted(wanted) == sorted(present)
        return all(_says_the_same(one, other) for one, other in zip(wanted, present, strict=True))
    return bool(wanted == present)


def _require(answer: httpx.Response, what: str, file: str) -> None:
    if answer.status_code >= 300:
        raise StackError(
            f"Prefect refused {what} with {answer.status_code}: {answer.text[:500]}.", f"Correct {file}."
        )
