"""Mixed precision, gradients that add up, and what is found where it is left empty, as a user meets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tasks.errors import BadInputError, DeviceError
from tasks.settings import settings
from tasks.tracking import Tracker
from tasks.train.hardware import arithmetic, devices_of, precision_of
from tasks.train.models import custom
from tasks.train.result import Trained
from tasks.train.train import fit
from tasks.training_data import TrainingData
from tests.unit.train.test_zoo import parameters

MakeData = Callable[..., TrainingData]


def network(request: custom.ModelRequest) -> nn.Module:
    """No layer of it sees the whole batch."""
    first = nn.Conv2d(len(request.bands), 6, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(6, request.channels, 1))


@pytest.fixture(scope="module")
def data(make_module_data: MakeData) -> TrainingData:
    return make_module_data(metadata_format="Classified_Tiles", size=64, count=12)


@pytest.fixture
def train(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Trained, dict[str, Tensor]]]:
    monkeypatch.setattr(custom, "find_entry", lambda _: SimpleNamespace(load=lambda: network))

    def run(**values: Any) -> tuple[Trained, dict[str, Tensor]]:
        torch.set_num_threads(1)
        own = {"custom_model": "pixels.x", "max_epochs": 2, "learning_rate": 0.01, "pretrained": "False"}
        arguments = {"dice_loss": "False", "pretrained": str(own.pop("pretrained"))}
        given = parameters("CUSTOM", arguments, **{**own, **values})
        result = fit(given, [data], tmp_path, tracker=Tracker.disabled(), progress=lambda *_: None)
        return result, result.module.network.state_dict()

    return run


def test_gradients_of_two_batches_are_those_of_one_with_both(train: Any) -> None:
    together, ours = train(batch_size=2, accumulate_batches=2)
    alone, theirs = train(batch_size=4)
    assert together.metrics["steps"] == alone.metrics["steps"]
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-5)


def test_bfloat16_learns_on_a_cpu_and_says_so(train: Any) -> None:
    mixed, ours = train(precision="BFLOAT16")
    exact, theirs = train(precision="FLOAT32")
    assert (mixed.metrics["arithmetic"], exact.metrics["arithmetic"]) == ("bf16-mixed", "32-true")
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert mixed.metrics["valid_loss"] == pytest.approx(exact.metrics["valid_loss"], rel=0.05)
    with pytest.raises(BadInputError, match="FLOAT16 cannot be trained on a CPU"):
        train(precision="FLOAT16")


def test_what_is_left_empty_is_found(train: Any) -> None:
    found, _ = train(batch_size=None, learning_rate=None, max_epochs=1)
    assert found.metrics["batch_size"] == min(8, found.metrics["chips"]["train"])
    assert 1e-5 <= found.metrics["learning_rate"] <= 1e-2
    assert found.metrics["learning_rate"] != 0.004  # that is of nobody


def test_the_worker_settles_what_the_parameters_leave_open(monkeypatch: pytest.MonkeyPatch) -> None:
    given = parameters("UNET", {})
    assert (precision_of(given, "cpu"), devices_of(given)) == ("32-true", 1)
    monkeypatch.setenv("CHIPLINE_TRAIN_PRECISION", "BFLOAT16")
    monkeypatch.setenv("CHIPLINE_TRAIN_DEVICES", "3")
    settings.cache_clear()
    try:
        assert (precision_of(given, "cpu"), devices_of(given)) == ("bf16-mixed", 3)
        assert precision_of(parameters("UNET", {}, precision="FLOAT32"), "cpu") == "32-true"
        asked = parameters("UNET", {}, devices=2, processor_type="AUTO")
        assert (devices_of(parameters("UNET", {}, devices=2)), asked.on_nodes, given.on_nodes) == (
            2,
            True,
            False,
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(DeviceError, match="sees 1"):
            devices_of(asked)
        assert devices_of(parameters("UNET", {}, devices=0, processor_type="GPU")) == 1
        monkeypatch.setenv("CHIPLINE_TRAIN_STRATEGY", "fsdp")
        settings.cache_clear()
        with pytest.raises(ValueError, match="train_strategy"):
            settings()
    finally:
        settings.cache_clear()


def test_more_devices_than_processes_are_no_silent_choice(train: Any) -> None:
    with pytest.raises(DeviceError, match="asks for 2 processes, but 1 were started"):
        train(devices=2)


def test_searches_compute_as_the_training_does() -> None:
    with arithmetic("bf16-mixed", "cpu")():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with arithmetic("32-true", "cpu")():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
