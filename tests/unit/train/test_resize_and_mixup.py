"""resize_to goes into the package; mixtures are learnt from as mixtures; who cannot do either says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from tasks.errors import BadInputError
from tasks.package.dlpk import open_package
from tasks.train.datasets import IGNORED
from tasks.train.mixup import mix
from tasks.train.models.options import ClassifierOptions, check_sizes, input_size, options_of
from tasks.train.modules import LabelModule
from tasks.train.schedule import Budget
from tasks.training_data import TrainingData, read_chip_image
from tests.unit.train.test_modules import SCHEMA, module
from tests.unit.train.test_zoo import parameters, trained, vectorized

MakeData = Callable[..., TrainingData]


def test_the_package_scales_its_tiles_as_the_chips_were_scaled(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(size=80, count=12)
    arguments = {"width": "32", "levels": "2", "head_convolutions": "1"}
    given = parameters("FCOS", arguments, resize_to=160, chip_size=64)
    result, function = trained(given, data, tmp_path)
    assert result.chip_size == 64
    assert result.validation[(0, 0)][0].shape == (3, 160, 160)
    definition = open_package(tmp_path / "m.dlpk", tmp_path / "again").definition
    assert (definition.image_height, definition.extras["resize_to"]) == (80, 160)
    assert (
        function.getConfiguration(padding="0", batch_size="1", threshold="0.0", nms_overlap="1.0")["tx"] == 80
    )
    with pytest.raises(ValueError, match="multiple of 16"):
        function.getConfiguration(padding="0", tile_size="72")
    detector: Any = result.module.network
    detector.score_thresh, detector.nms_thresh = 0.0, 1.0
    pixels = read_chip_image(data.chips[0])
    found = vectorized(function, pixels)
    image = torch.from_numpy(result.normalisation.apply(pixels))[None]
    with torch.inference_mode():
        large = functional.interpolate(image, size=(160, 160), mode="bilinear", align_corners=False)
        expected = detector([large[0]])[0]["boxes"] / 2
    corners = np.array(
        [[*item["geometry"]["rings"][0][0], *item["geometry"]["rings"][0][2]] for item in found]
    )
    assert len(corners) > 10
    apart = np.abs(corners[:, None] - expected.numpy()[None]).max(axis=2).min(axis=1)
    assert apart.max() < 1e-3


def test_sizes_are_told_from_the_resized_chip() -> None:
    given = parameters("FCOS", {}, resize_to=320)
    assert input_size(given, options_of(given), 100) == 320
    for values, message in (
        ({"resize_to": 100}, "Choose resize_to 96"),
        ({"resize_to": 96, "chip_size": 128}, "chip_size 128 is larger"),
    ):
        other = parameters("FCOS", {}, **values)
        with pytest.raises(BadInputError, match=message):
            check_sizes(other, options_of(other), 256, 10)
    for model_type in ("UNET", "MASKRCNN"):
        with pytest.raises(ValidationError, match="resize_to does not exist"):
            parameters(model_type, {}, resize_to=128)


def test_a_mixture_is_of_two_chips_of_the_batch() -> None:
    images = torch.randn(6, 2, 4, 4)
    mixed, partner, share = drawn(3, images)
    assert 0.5 <= share <= 1
    assert sorted(partner.tolist()) == list(range(6))
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[partner])
    assert torch.equal(drawn(3, images)[0], mixed)


def drawn(seed: int, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    torch.manual_seed(seed)
    return mix(images)


def test_pixels_learn_from_both_labels_where_both_are_known() -> None:
    learner = module(mixup=True)
    learner.eval()
    images = torch.randn(3, 3, 8, 8)
    labels = torch.randint(0, 2, (3, 8, 8))
    labels[0, :4] = IGNORED
    mixed, partner, share = drawn(5, images)
    torch.manual_seed(5)
    loss, chips = learner.loss_of((images, labels))
    scores = learner.network(mixed)
    either = (labels == IGNORED) | (labels[partner] == IGNORED)
    known = [part.masked_fill(either, IGNORED) for part in (labels, labels[partner])]
    expected = share * learner.loss(scores, known[0]) + (1 - share) * learner.loss(scores, known[1])
    assert chips == 3
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    plain = module()
    plain.load_state_dict(learner.state_dict())
    plain.eval()
    assert float(plain.loss_of((images, labels))[0].detach()) != pytest.approx(float(loss.detach()), rel=1e-3)


@pytest.mark.parametrize("several", [False, True])
def test_classes_are_mixed_as_pictures_are(several: bool) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 1))
    learner = LabelModule(
        network,
        encoder=network[1],
        options=ClassifierOptions(mixup=True, label_smoothing=0.0),
        schema=SCHEMA,
        several=several,
        learning_rate=0.01,
        budget=Budget(steps=10, seconds=None),
        freeze=False,
    )
    images, truth = torch.randn(4, 3, 4, 4), torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    mixed, partner, share = drawn(2, images)
    torch.manual_seed(2)
    loss, _ = learner.loss_of((images, truth))
    expected = learner.loss(network(mixed), share * truth + (1 - share) * truth[partner])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_detectors_refuse_mixup_with_the_reason() -> None:
    with pytest.raises(BadInputError, match="an object is there or not"):
        options_of(parameters("FCOS", {"mixup": "True"}))
