"""Pool gpu-node on the real stack: the leaf train_model_on_node, with processes of a CPU for GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from infra.local import LocalStack
from tests.unit.train.conftest import make_training_data

if TYPE_CHECKING:
    from tests.conftest import Runs

LEAF = "train_model_on_node/train_model_on_node"
TOOL = "train_deep_learning_model/train_deep_learning_model"
PROJECT = Path(__file__).parents[3]
NODES, DEVICES = 2, 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def workers(stack: LocalStack, tmp_path: Path) -> Iterator[list[str]]:
    """Two workers of the pool, as docs/training.md says to start them; their names."""
    started, names = [], []
    for number in range(NODES):
        name = f"node-{uuid4().hex[:8]}"
        (tmp_path / name).mkdir()
        own = {
            "CHIPLINE_PROJECT": str(PROJECT),
            "CHIPLINE_PYTHON": sys.executable,
            "CHIPLINE_NODE_ADDRESS": "127.0.0.1",
            "CHIPLINE_CACHE": str(tmp_path / name / "cache"),
            "PREFECT_HOME": str(tmp_path / name / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [
            sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", "gpu-node",
            "--name", name, "--limit", "1", "--install-policy", "never",
        ]  # fmt: skip
        with (tmp_path / f"{number}.log").open("w") as log:
            environment = {**os.environ, **stack.environment("gpu"), **own}
            process = subprocess.Popen(
                command, env=environment, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT
            )
        started.append(process)
        names.append(name)
    yield names
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def two_processes_a_node(runs: Runs) -> Iterator[None]:
    """The deployment's job variables, as an operator sets them."""
    deployment = runs.deployment(LEAF)
    before = deployment["job_variables"]
    variables = {**before, "env": {"CHIPLINE_TRAIN_DEVICES": str(DEVICES), "CHIPLINE_TRAIN_STRATEGY": "ddp"}}
    change = f"/deployments/{deployment['id']}"
    runs.http.patch(change, json={"job_variables": variables}).raise_for_status()
    yield
    runs.http.patch(change, json={"job_variables": before}).raise_for_status()


@pytest.mark.usefixtures("two_processes_a_node")
def test_nodes_train_together(runs: Runs, as_role: Any, tmp_path: Path, workers: list[str]) -> None:
    name = f"nodes_{uuid4().hex[:8]}"
    data = make_training_data(tmp_path)(name, metadata_format="Classified_Tiles", size=64, count=40)
    as_role("admin")
    from tasks.store import ObjectStore, read_manifest

    store = ObjectStore()
    for path in sorted(data.folder.rglob("*")):
        if path.is_file():
            store.upload(path, f"s3://chipline/incoming/{name}/{path.relative_to(data.folder)}")
    run = runs.start(
        TOOL,
        {
            "in_folder": [f"s3://chipline/incoming/{name}"],
            "output_name": name,
            "model_type": "UNET",
            "backbone_model": "timm:lcnet_035",
            "num_nodes": NODES,  # devices is left to the job variables
            "max_epochs": 2,
            "batch_size": 2,
            "learning_rate": 0.004,
            "validation_percent": 20,
            "processor_type": "CPU",
            "model_arguments": [{"name": "pretrained", "value": "False"}],
        },
    )
    ended = runs.wait(run, timeout_s=800)
    logs = "\n".join(path.read_text()[-3000:] for path in tmp_path.glob("*.log"))
    assert ended["state_type"] == "COMPLETED", f"{runs.message(ended)}\n{runs.log(run)}\n{logs}"
    leaves = [child for child in runs.children(run) if child["work_pool_name"] == "gpu-node"]
    assert [child["state_type"] for child in leaves] == ["COMPLETED"] * NODES
    assert sorted(child["parameters"]["node"] for child in leaves) == list(range(NODES))
    assert all(runs.says(child["id"], f"Trained with {NODES * DEVICES} processes on cpu") for child in leaves)

    from tasks.store import current
    from tasks.tracking import find_version

    folder = current(store, "outputs/train_deep_learning_model", name)
    assert folder is not None
    manifest = read_manifest(store, folder)
    assert manifest is not None
    metrics = manifest.details["metrics"]
    assert (metrics["processes"], metrics["epochs"], metrics["device"]) == (NODES * DEVICES, 2, "cpu")
    as_role("gpu")
    registered = find_version(name, "current")
    assert registered is not None
    assert registered.package == manifest.details["package"]
    assert len(workers) == NODES
