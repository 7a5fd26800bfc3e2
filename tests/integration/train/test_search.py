"""The search for hyper-parameters on the real stack: trials in the pool, a killed flow, the best package."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FLORIDA = "s3://chipline/imagery/florida_trees"
SEARCH = "search_hyperparameters/search_hyperparameters"


@pytest.fixture(scope="module")
def name(runs: Runs) -> str:
    """Of training data of a few chips."""
    name = f"search_{uuid4().hex[:8]}"
    export = runs.start(
        "export_training_data/export_training_data",
        {
            "input_raster": [f"{FLORIDA}/osbs_029.tif"],
            "input_class_data": f"{FLORIDA}/trees.gpkg",
            "output_location": name,
            "tile_size": 128,
            "stride_size": 128,
            "metadata_format": "Classified_Tiles",
        },
    )
    finished = runs.wait(export)
    assert finished["state_type"] == "COMPLETED", runs.message(finished)
    return name


def parameters(name: str, **values: Any) -> dict[str, Any]:
    return {
        "in_folder": [name],
        "output_name": name,
        "model_type": "UNET",
        "monitor": "MIOU",
        "max_epochs": 1,
        "time_limit_minutes": None,
        "batch_size": 4,
        "validation_percent": 30,
        "model_arguments": [{"name": "preset", "value": "light"}],
        "search_space": [
            {"name": "learning_rate", "low": 1e-3, "high": 1e-2, "log": True},
            {"name": "class_balancing", "choices": ["True", "False"]},
        ],
        "trials": 3,
        "search_minutes": None,
        **values,
    }


def trials_begun(runs: Runs, run: str) -> list[dict[str, Any]]:
    return [child for child in runs.children(run) if child["name"].startswith("trial ")]


def test_a_killed_search_goes_on_and_ends_with_the_best_package(runs: Runs, as_role: Any, name: str) -> None:
    first = runs.start(SEARCH, parameters(name))
    end = time.monotonic() + 400
    while not any(child["state_type"] == "COMPLETED" for child in trials_begun(runs, first)):
        assert time.monotonic() < end, runs.log(first)
        time.sleep(0.5)
    runs.http.post(f"/flow_runs/{first}/set_state", json={"state": {"type": "CANCELLING"}, "force": True})
    assert runs.wait(first)["state_type"] == "CANCELLED"

    second = runs.wait(runs.start(SEARCH, parameters(name)), timeout_s=600)
    assert second["state_type"] == "COMPLETED", f"{runs.message(second)}\n{runs.log(second['id'])}"

    as_role("control")
    from mlflow.tracking import MlflowClient

    from tasks.store import ObjectStore, current, join
    from tasks.tracking import find_run, find_version

    store = ObjectStore()
    folder = current(store, "outputs/search_hyperparameters", name)
    assert folder is not None
    content = json.loads(store.get(join(folder, "search.json")))
    assert [row["state"] for row in content["trials"]] == ["complete"] * 3
    best = max(content["trials"], key=lambda row: float(row["value"]))
    assert content["best_value"] == best["value"]
    # The package of the best trial is the registered one, and no other is.
    version = find_version(name, "current")
    assert version is not None
    assert version.tags["chipline.run_key"] == best["run_key"]
    assert find_version(name, "2") is None
    # Every trial trained to its end once: the second flow took over what the first had begun.
    begun = [child for run in (first, second["id"]) for child in trials_begun(runs, run)]
    done = sorted(child["name"].split()[1] for child in begun if child["state_type"] == "COMPLETED")
    assert done == ["0", "1", "2"]
    runs_of_trials = [find_run(name, "chipline.run_key", row["run_key"]) for row in content["trials"]]
    assert all(runs_of_trials)
    tables = {item["key"]: item for item in runs.artifacts(second["id"])}
    assert len(json.loads(tables["search-trials"]["data"])) == 3
    client = MlflowClient()
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    tracked = {str(run.info.run_name): run for run in client.search_runs([experiment.experiment_id])}
    (parent,) = (run for title, run in tracked.items() if title.startswith("search "))
    assert parent.data.metrics["best_miou"] == pytest.approx(best["value"])
    assert parent.info.status == "FINISHED"
