"""Several processes learn together: as one with their batches in one, and only the first of them writes."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.errors import RunError
from tasks.settings import settings
from tasks.store import ObjectStore
from tasks.tracking import Tracker
from tasks.train import work
from tasks.train.checkpoints import FOLDER
from tasks.train.launch import train_on_node
from tasks.train.parameters import TrainParameters
from tasks.train.plan import TrainRecord, load_record, make_plan, save_plan
from tests.unit.train.conftest import make_training_data
from tests.unit.train.pictures import paired_data, two_sides

# Without layers that see the whole batch: their means over two halves are not those over all.
MODEL = """
from torch import nn


def make(request):
    first = nn.Conv2d(len(request.bands), 6, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(6, request.channels, 1))


def broken(request):
    raise RuntimeError("no such luck")
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A local store, MLflow in a file, and a model that is installed as far as processes can tell."""
    site = tmp_path / "site"
    (site / "own-1.0.dist-info").mkdir(parents=True)
    (site / "own_models.py").write_text(MODEL)
    (site / "own-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    entries = "[chipline.models]\npixels.mean = own_models:make\npixels.broken = own_models:broken\n"
    (site / "own-1.0.dist-info" / "entry_points.txt").write_text(entries)
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{Path(__file__).parents[3]}")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps([str(tmp_path)]))
    monkeypatch.setenv("CHIPLINE_NODE_ADDRESS", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # MLflow puts its artifacts there
    make_training_data(tmp_path)(metadata_format="Classified_Tiles", size=64, count=12)
    settings.cache_clear()
    yield ObjectStore()
    settings.cache_clear()


def parameters(**values: Any) -> TrainParameters:
    given = {
        "in_folder": [str(Path.cwd() / "data")],
        "output_name": "m",
        "model_type": "CUSTOM",
        "custom_model": "pixels.mean",
        "max_epochs": 3,
        "learning_rate": 0.01,
        "batch_size": 2,
        "validation_percent": 30,
        "processor_type": "CPU",
        "model_arguments": [{"name": "dice_loss", "value": "False"}],
        "checkpoint_minutes": 0,
        **values,
    }
    return TrainParameters.model_validate(given)


def train(store: ObjectStore, given: TrainParameters) -> tuple[TrainRecord, dict[str, Tensor]]:
    """The record of a training on all its nodes, which are threads here, and the weights in its package."""
    plan_uri = save_plan(store, make_plan(store, given))
    if given.on_nodes:
        with ThreadPoolExecutor(given.num_nodes) as pool:
            said: list[str] = []
            nodes = [
                pool.submit(
                    train_on_node, store, plan_uri, node, progress=lambda _fraction, what: said.append(what)
                )
                for node in range(given.num_nodes)
            ]
            for node in nodes:
                node.result()
        assert any(what.startswith("starts from") for what in said)
    else:
        torch.set_num_threads(1)
        work.run_training(
            store, plan_uri, start=lambda _plan: Tracker.disabled(), progress=lambda _fraction, _what: None
        )
    folder = plan_uri.rpartition("/")[0]
    record = load_record(store, folder)
    assert record is not None
    left = [item.uri for item in store.list(f"{folder}/{FOLDER}")]
    assert left == []  # no checkpoint, no address of a node
    with zipfile.ZipFile(record.package) as archive:
        return record, torch.load(io.BytesIO(archive.read("m.pth")), weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "nodes"), [(2, 1), (1, 2)])
def test_two_processes_are_one_with_twice_the_batch(store: ObjectStore, devices: int, nodes: int) -> None:
    together, ours = train(store, parameters(devices=devices, num_nodes=nodes))
    alone, theirs = train(store, parameters(batch_size=4))
    assert (together.metrics["processes"], alone.metrics["processes"]) == (2, 1)
    assert together.metrics["steps"] == alone.metrics["steps"]
    assert together.metrics["epochs"] == alone.metrics["epochs"] == 3
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4)
    for name in ("valid_loss", "miou", "accuracy"):
        assert together.metrics[name] == pytest.approx(alone.metrics[name], abs=1e-4)
    # One process tracked: one run, which has every epoch once.
    from mlflow.tracking import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("m")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    losses = client.get_metric_history(runs[0].info.run_id, "train_loss")
    assert [loss.step for loss in losses] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["PIX2PIX", "CYCLEGAN"])
def test_networks_that_take_turns_learn_together(store: ObjectStore, model_type: str) -> None:
    folder = Path.cwd() / "pictures"
    (two_sides if model_type == "CYCLEGAN" else paired_data)(folder, count=12)
    arguments = {"pretrained": "False", "decoder": "16,16,16,16,16", "discriminator": "8"}
    given = {
        "in_folder": [str(folder)],
        "model_type": model_type,
        "custom_model": None,
        "backbone_model": "timm:lcnet_035",
        "max_epochs": 1,
        "batch_size": 1,
        "learning_rate": 1e-4,
        "model_arguments": [{"name": name, "value": value} for name, value in arguments.items()],
    }
    together, ours = train(store, parameters(devices=2, **given))
    # Each process's normalisation sees its own chip, as each of two batches that add up does.
    alone, theirs = train(store, parameters(accumulate_batches=2, **given))
    assert (together.metrics["processes"], alone.metrics["processes"]) == (2, 1)
    assert together.metrics["steps"] == alone.metrics["steps"] > 1
    learnt = [name for name in theirs if not name.endswith(("running_mean", "running_var", "tracked"))]
    for name in learnt:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_time_limit_ends_all_processes_at_once(store: ObjectStore) -> None:
    given = parameters(devices=2, max_epochs=100_000, time_limit_minutes=0.05, stop_training=False)
    record, _ = train(store, given)
    assert 2.5 <= record.effort["train_seconds"] < 60
    assert record.metrics["epochs"] < 100_000


@pytest.mark.slow
def test_a_process_that_fails_says_why(store: ObjectStore) -> None:
    with pytest.raises(RunError, match="no such luck"):
        train(store, parameters(devices=2, custom_model="pixels.broken"))
