"""Runs that a program starts: through the REST API, and by a schedule."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest

if TYPE_CHECKING:
    from tests.conftest import Runs

EXPORT = "export_training_data/export_training_data"
# Four chips of the smallest scene.
SMALL = {
    "input_raster": ["s3://chipline/imagery/florida_trees/osbs_029.tif"],
    "input_class_data": "s3://chipline/imagery/florida_trees/trees.gpkg",
    "tile_size": 200,
    "stride_size": 200,
}


def _require_completed(runs: Runs, run: dict[str, Any]) -> None:
    assert run["state_type"] == "COMPLETED", f"{runs.message(run)}\n{runs.log(run['id'])}"


def test_a_run_that_the_rest_api_creates_completes_and_leaves_artifacts(runs: Runs) -> None:
    started = runs.start(EXPORT, SMALL | {"output_location": f"rest-{uuid4().hex[:8]}"})
    _require_completed(runs, runs.wait(started))
    kinds = {artifact["type"] for artifact in runs.artifacts(started)}
    assert {"table", "progress"} <= kinds
    assert kinds & {"image", "markdown"}


def test_a_schedule_fires(runs: Runs, prefect_api: httpx.Client) -> None:
    deployment = runs.deployment(EXPORT)["id"]
    schedule = {
        # Every half minute, as the scheduler may be busy; one planned run at a time.
        "schedule": {"interval": 30, "anchor_date": datetime.datetime.now(datetime.UTC).isoformat()},
        "active": True,
        "max_scheduled_runs": 1,
        "parameters": SMALL | {"output_location": "scheduled"},
    }
    made = prefect_api.post(f"/deployments/{deployment}/schedules", json=[schedule])
    made.raise_for_status()
    try:
        finished = runs.wait(_scheduled_run(runs)["id"])
    finally:  # runs that are still planned go with it
        prefect_api.delete(f"/deployments/{deployment}/schedules/{made.json()[0]['id']}")
    assert finished["auto_scheduled"]
    assert finished["parameters"]["output_location"] == "scheduled"
    _require_completed(runs, finished)


def _scheduled_run(runs: Runs) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        due = [run for run in runs.latest_of(EXPORT) if run["auto_scheduled"]]
        if due:
            return min(due, key=lambda run: str(run["expected_start_time"]))
        time.sleep(0.5)
    raise TimeoutError("the scheduler made no run in 60 s")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        pytest.param({"tile_size": 3}, "tile_size", id="out of bounds"),
        pytest.param({"metadata_format": "Unknown"}, "metadata_format", id="no such choice"),
    ],
)
def test_a_wrong_value_is_refused_when_the_run_is_created(
    runs: Runs, wrong: dict[str, Any], named: str
) -> None:
    answer = runs.create(EXPORT, SMALL | {"output_location": "wrong"} | wrong)
    assert answer.status_code == 409
    assert next(iter(wrong)) == named
    assert str(next(iter(wrong.values()))) in answer.text


def test_an_unknown_parameter_ends_the_run_with_the_names_that_exist(runs: Runs) -> None:
    started = runs.start(EXPORT, SMALL | {"output_location": "unknown", "tile_sise": 256})
    run = runs.wait(started)
    end = time.monotonic() + 60
    while run["state_type"] == "CRASHED" and time.monotonic() < end:  # a hook then says why
        time.sleep(0.5)
        run = runs.wait(started)
    assert run["state_type"] == "FAILED"
    assert "tile_sise" in runs.message(run)
    assert "tile_size" in runs.message(run)
