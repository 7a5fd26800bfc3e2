"""Batch size and learning rate that a training finds for itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tasks.errors import DeviceError
from tasks.labels import ClassSchema
from tasks.train.models.options import ClassifierOptions
from tasks.train.modules import LabelModule
from tasks.train.schedule import Budget
from tasks.train.search import find_batch_size, find_learning_rate, steepest


def module(fits: int = 10_000) -> LabelModule:
    class Narrow(LabelModule):
        def loss_of(self, batch: Any) -> tuple[torch.Tensor, int]:
            if len(batch[0]) > fits:
                raise torch.OutOfMemoryError("too much")
            return super().loss_of(batch)

    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    network = nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return Narrow(
        network,
        encoder=encoder,
        options=ClassifierOptions(),
        schema=ClassSchema.from_values({1: "a", 2: "b"}),
        several=False,
        learning_rate=0.01,
        budget=Budget(steps=10, seconds=None),
        freeze=False,
    )


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    truth = nn.functional.one_hot(torch.arange(size) % 2, 2).float()
    return torch.randn(size, 3, 8, 8) + truth[:, :1, None, None], truth


@pytest.mark.parametrize(
    ("fits", "chips", "expected"), [(20, 500, 16), (1, 9, 1), (500, 500, 64), (500, 21, 16)]
)
def test_the_batch_is_the_largest_that_fits(
    fits: int, chips: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelModule, "to", lambda self, _device: self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)
    learner = module(fits)
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    assert find_batch_size(learner, batch, chips, "cuda") == expected
    assert all(torch.equal(before[name], after) for name, after in learner.network.state_dict().items())
    assert find_batch_size(learner, batch, chips, "cpu") == min(8, chips)


def test_a_gpu_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LabelModule, "to", lambda self, _device: self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)
    with pytest.raises(DeviceError, match="smaller chip_size"):
        find_batch_size(module(0), batch, 4, "cuda")


def test_the_rate_is_where_the_loss_falls_fastest() -> None:
    rates = [10.0**exponent for exponent in range(-7, 0)]
    assert steepest(rates, [5.0, 5.0, 4.9, 3.0, 1.0, 0.9, 9.0]) == pytest.approx(1e-4)
    assert steepest(rates, [1.0]) == 1e-5


def test_the_search_leaves_the_network_as_it_was() -> None:
    learner = module()
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    rate = find_learning_rate(learner, [batch(8), batch(8)], "cpu")
    assert 1e-5 <= rate <= 1e-2
    assert all(torch.equal(before[name], after) for name, after in learner.network.state_dict().items())
