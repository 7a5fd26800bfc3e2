"""A worker and its run die together: nobody is left to say so, and the chain goes on all the same."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
import pytest

from infra.local import LocalStack
from infra.local.processes import marked

if TYPE_CHECKING:
    from tests.conftest import Runs

FLORIDA = "s3://chipline/imagery/florida_trees"
LEAF = "train_model/train_model"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_part_whose_worker_was_killed_is_run_again(stack: LocalStack, runs: Runs) -> None:
    name = f"lost-{uuid4().hex[:8]}"
    exported = runs.wait(
        runs.start(
            "export_training_data/export_training_data",
            {
                "input_raster": [f"{FLORIDA}/osbs_029.tif"],
                "input_class_data": f"{FLORIDA}/trees.gpkg",
                "output_location": name,
                "tile_size": 128,
                "stride_size": 64,
            },
        )
    )
    assert exported["state_type"] == "COMPLETED", runs.message(exported)
    before = {run["id"] for run in runs.latest_of(LEAF)}
    training = runs.start(
        "train_deep_learning_model/train_deep_learning_model",
        {
            "in_folder": [name],
            "output_name": name,
            "model_type": "FCOS",
            "max_epochs": 1,
            "validation_percent": 25,
            "model_arguments": [{"name": "preset", "value": "light"}],
        },
    )
    victim = _running_leaf(runs, before)
    for process in marked(stack.secrets.stack_id, "gpu-1"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    killed = time.monotonic()
    stack.up(register=False)  # the worker comes back, but it knows nothing of the run

    # Heartbeats every 30 s, three may be missed; then the automation acts.
    lost = runs.wait(victim, timeout_s=240)
    assert lost["state_type"] == "CRASHED"
    assert "heartbeat" in runs.message(lost)
    assert time.monotonic() - killed < 240
    finished = runs.wait(training, timeout_s=400)
    assert finished["state_type"] == "COMPLETED", runs.log(training)
    assert len({run["id"] for run in runs.latest_of(LEAF)} - before) == 2


def _running_leaf(runs: Runs, before: set[str]) -> str:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        for run in runs.latest_of(LEAF):
            if run["id"] not in before and run["state_type"] == "RUNNING":
                return str(run["id"])
        time.sleep(0.3)
    raise TimeoutError("no training began in 180 s")
