"""Edges and roads: what a validation measures is what the training lessens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.labels import ClassSchema
from tasks.train.datasets import IGNORED
from tasks.train.line_modules import LINE_MODULES
from tasks.train.models.lines import build_line_network
from tasks.train.models.options import options_of
from tasks.train.modules import PixelModule
from tasks.train.schedule import Budget
from tests.unit.train.test_zoo import TINY, parameters


def module(model_type: str, arguments: dict[str, str]) -> PixelModule:
    torch.manual_seed(0)
    given = parameters(model_type, {"width": "32", **arguments} if model_type[0] != "H" else arguments)
    options: Any = options_of(given)
    network = build_line_network(model_type, TINY, options, bands=["Red", "Green"], pretrained=False)
    return LINE_MODULES[given.kind](
        network,
        encoder=network.get_submodule("encoder"),
        options=options,
        schema=ClassSchema.from_values({1: "Line"}),
        class_weights=None,
        learning_rate=0.01,
        budget=Budget(steps=10, seconds=None),
        freeze=False,
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros((2, 64, 64), dtype=torch.int64)
    labels[:, 28:36] = 1
    labels[0, :8] = IGNORED
    return torch.randn((2, 2, 64, 64), generator=generator), labels


@pytest.mark.parametrize(
    ("model_type", "arguments"),
    [
        ("HED_EDGEDETECTOR", {}),
        ("BDCN_EDGEDETECTOR", {}),
        ("MULTITASK_ROADEXTRACTOR", {}),
        ("CONNECTNET", {"connectivity_weight": "3"}),
    ],
)
def test_the_loss_of_a_validation_is_that_of_the_training(model_type: str, arguments: dict[str, str]) -> None:
    learner = module(model_type, arguments).eval()
    images, labels = batch()
    with torch.inference_mode():
        learner.on_validation_epoch_start()
        learner.validation_step((images, labels), 0)
        trained, chips = learner.loss_of((images, labels))
        found = learner.network(images).argmax(dim=1)
    assert chips == 2
    assert learner._validation_losses == [pytest.approx(float(trained), rel=1e-6)]
    # What is measured is what the package will say.
    right = (found == labels)[labels != IGNORED].sum()
    assert int(learner.confusion.trace()) == int(right)
    assert int(learner.confusion.sum()) == int((labels != IGNORED).sum())
