"""Work pools: a data file applied to the Prefect server through its REST API.

Plain HTTP, because importing Prefect's client costs seconds and pools are wanted before the workers.
"""

from __future__ import annotations

from typing import Any

import httpx

from infra.local.errors import StackError
from infra.local.health import client
from infra.local.layout import Layout
from infra.local.secrets import Secrets
from infra.local.services import pools

# Automations that stacks had before ``dead_runs``: they took runs for dead when events came late.
_RETIRED = ("chipline-dead-runs", "chipline-runs-that-never-began")


def apply(layout: Layout, keys: Secrets) -> None:
    """Make the pools of ``deployments/`` so, whatever the server had before.

    Raises:
        StackError: the server refuses one of them.
    """
    with client(f"{layout.prefect_url}/api", keys.prefect_auth_string, patience_s=30) as http:
        data = pools()
        for pool in data["pools"]:
            _apply_pool(http, pool, data["base_job_template"])
        retire(http)


def _apply_pool(http: httpx.Client, pool: dict[str, Any], template: dict[str, Any]) -> None:
    wanted = {"description": pool["description"], "base_job_template": template}
    if http.get(f"/work_pools/{pool['name']}").status_code == 404:
        wanted |= {"name": pool["name"], "type": "process"}
        answer = http.post("/work_pools/", json=wanted)
    else:
        answer = http.patch(f"/work_pools/{pool['name']}", json=wanted)
    _require(answer, f"the work pool {pool['name']}", "Correct deployments/pools.yaml.")


def retire(http: httpx.Client) -> None:
    """Delete the automations that earlier versions made here; a person's own stay.

    Raises:
        StackError: the server refuses.
    """
    wanted = {"automations": {"name": {"any_": list(_RETIRED)}}}
    found = http.post("/automations/filter", json=wanted)
    _require(found, "to list its automations", "Look at the server's log.")
    for automation in found.json():
        name = automation["name"]
        answer = http.delete(f"/automations/{automation['id']}")
        _require(answer, f"to delete the automation {name}", f"Delete {name} in Prefect's UI.")


def _require(answer: httpx.Response, what: str, remedy: str) -> None:
    if answer.status_code >= 300:
        raise StackError(f"Prefect refused {what} with {answer.status_code}: {answer.text[:500]}.", remedy)
