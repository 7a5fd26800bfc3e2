"""Losses, frozen encoders, and the choice of the best weights."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional

from tasks.labels import ClassSchema
from tasks.train.callbacks import BestWeights
from tasks.train.datasets import IGNORED
from tasks.train.models.options import PixelOptions
from tasks.train.modules import PixelModule
from tasks.train.schedule import Budget

SCHEMA = ClassSchema.from_values({1: "Tree"})


def module(*, freeze: bool = False, weights: list[float] | None = None, **options: Any) -> PixelModule:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    network = nn.Sequential(encoder, nn.Conv2d(4, 2, 1))
    return PixelModule(
        network,
        options=PixelOptions(**options),
        schema=SCHEMA,
        class_weights=weights,
        encoder=encoder,
        learning_rate=0.01,
        budget=Budget(steps=10, seconds=None),
        freeze=freeze,
    )


def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 8, 8, generator=generator)
    labels = torch.randint(0, 2, (2, 8, 8), generator=generator)
    labels[:, :2] = IGNORED
    return logits, labels


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_cross_entropy_is_torchs(weights: list[float] | None) -> None:
    logits, labels = case()
    loss = module(weights=weights, dice_loss=False).loss(logits, labels)
    given = None if weights is None else torch.tensor(weights)
    expected = functional.cross_entropy(logits, labels, weight=given, ignore_index=IGNORED)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"focal_loss": True}, {"dice_loss": False}])
def test_unknown_pixels_count_nowhere(options: dict[str, Any]) -> None:
    logits, labels = case()
    other = logits.clone()
    other[:, :, :2] = 50 * torch.randn(2, 2, 2, 8)
    learner = module(**options)
    assert float(learner.loss(logits, labels)) == pytest.approx(float(learner.loss(other, labels)), rel=1e-5)
    assert float(learner.loss(logits, torch.full_like(labels, IGNORED))) == 0.0


def test_a_perfect_prediction_costs_almost_nothing() -> None:
    _, labels = case()
    known = labels.where(labels != IGNORED, torch.zeros_like(labels))
    logits = 40.0 * functional.one_hot(known, 2).movedim(-1, 1).float()
    assert float(module().loss(logits, labels)) < 0.02
    assert float(module().loss(-logits, labels)) > 5


def test_a_frozen_encoder_keeps_weights_and_statistics() -> None:
    learner = module(freeze=True)
    learner.train()
    before = {name: tensor.clone() for name, tensor in learner.network[0].state_dict().items()}  # type: ignore[index]
    optimizer = learner.configure_optimizers()["optimizer"]
    for _ in range(3):
        loss = learner.loss(learner.network(torch.randn(2, 3, 8, 8)), case()[1])
        torch.autograd.backward(loss)
        optimizer.step()
    after = learner.network[0].state_dict()  # type: ignore[index]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(optimizer.param_groups) == 1


def test_the_encoder_learns_more_slowly() -> None:
    groups = module().configure_optimizers()["optimizer"].param_groups
    assert groups[0]["initial_lr"] == pytest.approx(groups[1]["initial_lr"] / 2)


def trainer(step: int = 9) -> Any:
    state = SimpleNamespace(fn="fit")
    return SimpleNamespace(sanity_checking=False, should_stop=False, state=state, global_step=step)


@pytest.mark.parametrize(
    ("monitor", "values", "best"), [("VALID_LOSS", [3, 1, 2], 1), ("MIOU", [0.1, math.nan, 0.5, 0.4], 2)]
)
def test_the_best_weights_come_back(monitor: str, values: list[float], best: int) -> None:
    learner, callback = module(), BestWeights(monitor, patience=None)
    bias = cast(nn.Conv2d, learner.network[1]).bias  # type: ignore[index]
    for index, value in enumerate(values):
        nn.init.constant_(cast(torch.Tensor, bias), float(index))
        learner.measured = {monitor: float(value)}
        callback.on_validation_end(trainer(), learner)
    callback.restore(learner)
    assert float(cast(torch.Tensor, bias)[0].detach()) == best


def test_patience_stops_a_training_that_no_longer_improves() -> None:
    learner, callback, runner = module(), BestWeights("VALID_LOSS", patience=2), trainer()
    stops = []
    for value in (2.0, 1.0, 1.5, 1.2):
        learner.measured = {"VALID_LOSS": value}
        callback.on_validation_end(runner, learner)
        stops.append(runner.should_stop)
    assert stops == [False, False, False, True]
    assert callback.stopped_early


def test_patience_waits_for_the_last_part_of_the_schedule() -> None:
    learner, callback = module(), BestWeights("VALID_LOSS", patience=2)
    for step, value in enumerate((1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)):
        learner.measured = {"VALID_LOSS": value}
        callback.on_validation_end(trainer(step), learner)
    assert not callback.stopped_early
    callback.on_validation_end(trainer(7), learner)
    callback.on_validation_end(trainer(8), learner)
    assert callback.stopped_early
