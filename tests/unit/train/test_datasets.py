"""Samples: labels match pixels, a draw decides everything, the cache changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tasks.train.augmentation import DEFAULT, NONE, Recipe
from tasks.train.datasets import IGNORED, DrawSampler, ObjectChips, PixelChips, count_labels
from tasks.train.normalisation import normalisation_of
from tasks.training_data import TrainingData

MakeData = Callable[..., TrainingData]
_TURNS = Recipe(dihedral=True, brightness=0, contrast=0, tint=0, scale=0.2)


def options(data: TrainingData, **changes: Any) -> dict[str, Any]:
    normalisation = normalisation_of([data], np.dtype(np.uint8))
    return {"normalisation": normalisation, "size": 96, "recipe": DEFAULT, "multiple": 64, **changes}


def bright(image: torch.Tensor, data: TrainingData) -> torch.Tensor:
    """Labels read off the picture: 1 where red stands out, 2 where blue does  # (rows, cols)."""
    pixels = torch.from_numpy(normalisation_of([data], np.dtype(np.uint8)).undo(image.numpy()))
    return (pixels[0] > 140).long() + 2 * (pixels[2] > 140).long()


def test_pixel_labels_stay_on_their_pixels(make_data: MakeData) -> None:
    data = make_data(metadata_format="Classified_Tiles")
    dataset = PixelChips(data.chips, **options(data, recipe=_TURNS))
    for draw in range(20):
        image, labels = dataset[(draw % len(data.chips), draw)]
        assert image.shape == (3, 96, 96)
        assert labels.shape == (96, 96)
        seen = bright(image, data)
        single = seen < 3  # where a red and a blue square overlap, the picture is both
        # Only the seams, where scaling mixes pixels, may differ.
        assert (seen[single] == labels[single]).float().mean() > 0.97
        assert (labels > 0).any()


def test_boxes_stay_around_their_objects(make_data: MakeData) -> None:
    data = make_data(count=12)
    dataset = ObjectChips(data.chips, **options(data, recipe=_TURNS))
    boxes = 0
    for draw in range(24):
        image, target = dataset[(draw % len(data.chips), draw)]
        seen = bright(image, data)
        for (left, top, right, bottom), label in zip(
            target["boxes"].round().int().tolist(), target["labels"].tolist(), strict=True
        ):
            inside = seen[top:bottom, left:right]
            assert ((inside & label) > 0).float().mean() > 0.85
            boxes += 1
    assert boxes > 40


def test_the_draw_decides_the_sample(make_data: MakeData) -> None:
    data = make_data(metadata_format="Classified_Tiles")
    one, other = (PixelChips(data.chips, **options(data)) for _ in range(2))
    for index in reversed(range(5)):
        other[(index, 99)]  # another history of reads
    for index in range(5):
        assert all(torch.equal(a, b) for a, b in zip(one[(index, 7)], other[(index, 7)], strict=True))
    assert not torch.equal(one[(0, 7)][0], one[(0, 8)][0])


def test_validation_takes_the_whole_chip_to_a_multiple(make_data: MakeData) -> None:
    data = make_data(size=150)
    image, target = ObjectChips(data.chips, **options(data, size=None, recipe=NONE))[(0, 0)]
    assert image.shape == (3, 128, 128)
    assert target["boxes"].max() <= 128


def test_ignored_values_become_unknown(make_data: MakeData) -> None:
    data = make_data(metadata_format="Classified_Tiles")
    dataset = PixelChips(data.chips, ignored=(0, 7), **options(data, size=None))
    labels = dataset[(0, 0)][1]
    assert set(labels.flatten().tolist()) <= {1, IGNORED}
    counts = count_labels(dataset, 2)
    assert counts[1] > 0
    assert counts[0] == counts[2] == 0


def test_the_sampler_takes_every_chip_once_and_repeats_itself_never() -> None:
    sampler = DrawSampler(10, seed=3)
    first, second = list(sampler), list(sampler)
    assert sorted(index for index, _ in first) == list(range(10))
    assert first != second
    assert first == list(DrawSampler(10, seed=3))
    assert first != list(DrawSampler(10, seed=4))
