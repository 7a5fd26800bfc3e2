"""Input normalisation: ImageNet's for 8-bit RGB, the data's own for the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import TrainingDataError
from tasks.labels import ClassSchema
from tasks.train.normalisation import normalisation_of
from tasks.training_data import BandStats, Chip, TrainingData

SCHEMA = ClassSchema.from_values({1: "Tree"})


def training_data(count: int, *stats: BandStats) -> TrainingData:
    chips = [Chip(str(i), Path("a"), None, None, SCHEMA) for i in range(count)]
    names = tuple(item.name for item in stats)
    return TrainingData(
        Path("x"), "Classified_Tiles", SCHEMA, (64, 64), names, None, None, chips, 0, tuple(stats)
    )


def test_eight_bit_rgb_takes_imagenets() -> None:
    data = training_data(1, *(BandStats(name, 0, 255, 100, 10) for name in "rgb"))
    normalisation = normalisation_of([data], np.dtype(np.uint8))
    assert normalisation.imagenet
    pixels = np.full((3, 1, 1), 255, np.uint8)
    expected = [
        (1 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    np.testing.assert_allclose(normalisation.apply(pixels).ravel(), expected, rtol=1e-5)
    np.testing.assert_allclose(normalisation.undo(normalisation.apply(pixels)), 255, rtol=1e-5)


def test_several_folders_join_as_one_set_of_pixels() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(1000, 50, size=3000), rng.normal(1500, 200, size=9000)]
    folders = [
        training_data(count, BandStats("nir", p.min(), p.max(), p.mean(), p.std()))
        for count, p in zip((1, 3), parts, strict=True)
    ]
    every = np.concatenate(parts)
    normalisation = normalisation_of(folders, np.dtype(np.uint16))
    assert not normalisation.imagenet
    scaled = normalisation.apply(every[None, None])
    assert abs(float(scaled.mean())) < 1e-3
    assert float(scaled.std()) == pytest.approx(1.0, abs=1e-3)


def test_a_constant_band_is_refused() -> None:
    data = replace(training_data(2, BandStats("nir", 5, 5, 5, 0)))
    with pytest.raises(TrainingDataError, match="nir"):
        normalisation_of([data], np.dtype(np.uint16))
