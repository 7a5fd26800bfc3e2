"""Chips of two pictures of one place: two dates, or a picture and what it is to become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tasks.errors import TrainingDataError
from tasks.train.datasets import Known, PixelChips, Pixels
from tasks.train.normalisation import Normalisation, check_scale, normalisation_of
from tasks.train.parameters import TrainParameters
from tasks.training_data import Chip, TrainingData, read_chip, read_chip2, read_chip_image
from tasks.training_data.images import picture_shape


def second_pictures(item: TrainingData) -> TrainingData:
    """The second pictures of a folder as training data of their own."""
    bands = picture_shape(_second(item.chips[0]))[0]
    return replace(
        item,
        band_names=item.band_names if bands == item.bands else tuple(f"Band {i + 1}" for i in range(bands)),
        chips=[replace(chip, image=_second(chip), image2=None) for chip in item.chips],
        declared_stats=item.declared_stats2,
        declared_stats2=(),
    )


def _second(chip: Chip) -> Any:
    assert chip.image2 is not None  # check_pairs has seen it
    return chip.image2


def check_pairs(model_type: str, item: TrainingData, *, same_bands: bool = True) -> None:
    """Refuse folders in which a chip has no second picture, or one with another number of bands.

    Raises:
        TrainingDataError: with the first such chip.
    """
    alone = [chip for chip in item.chips if chip.image2 is None]
    if alone:
        raise TrainingDataError(
            f"{model_type} learns from pairs of pictures, and {len(alone)} of the {len(item.chips)} chips of "
            f"{item.folder} have no second one ({alone[0].image.name}, for example).",
            "Export the training data with additional_input_raster.",
        )
    bands = picture_shape(_second(item.chips[0]))[0]
    if same_bands and bands != item.bands:
        raise TrainingDataError(
            f"The first pictures of {item.folder} have {item.bands} bands, the second ones {bands}.",
            "Export both rasters with the same bands.",
        )


def settle_normalisation(
    parameters: TrainParameters, data: Sequence[TrainingData], apart: Sequence[TrainingData] = ()
) -> Normalisation:
    """How pixel values become the network's input; of two dates the first one's bands before the second's.

    Each date has its own normalisation, so that another light or sensor is not taken for a change.

    Args:
        apart: validation data, whose scale must be that of ``data``, too.

    Raises:
        TrainingDataError: a band that is constant over all chips, or statistics of another scale.
    """
    second = (_seconds(data), _seconds(apart)) if data[0].chips[0].image2 is not None else ([], [])
    if parameters.kind == "resolution" and second[0]:
        return normalisation_for(*second)  # the coarse pictures
    if parameters.kind != "change":
        return normalisation_for(data, apart)
    return normalisation_for(data, apart).joined(normalisation_for(*second))


def normalisation_for(data: Sequence[TrainingData], apart: Sequence[TrainingData]) -> Normalisation:
    """The normalisation of ``data``, once the statistics of both have been compared with their chips.

    Raises:
        TrainingDataError: a band that is constant over all chips, or statistics of another scale.
    """
    found = normalisation_of(data, read_chip_image(data[0].chips[0]).dtype)
    if not found.imagenet:
        check_scale([*data, *apart])
    return found


def _seconds(data: Sequence[TrainingData]) -> list[TrainingData]:
    return [second_pictures(item) for item in data]


def input_bands(parameters: TrainParameters, data: TrainingData) -> tuple[str, ...]:
    """Names of the network's input bands: of two dates the first one's, then the second one's."""
    return data.band_names * (2 if parameters.kind == "change" else 1)


class PairChips(PixelChips):
    """Gives (both dates' bands in one image, labels); see :class:`PixelChips`.

    The dates are turned and cut alike; their colours vary apart.
    """

    pictures = 2

    def read_image(self, chip: Chip) -> tuple[Pixels, Known]:
        (before, seen), (after, seen_after) = read_chip(chip), read_chip2(chip)
        if seen is None and seen_after is None:
            return np.concatenate([before, after]), None
        parts = [
            np.ones(pixels.shape, np.bool_) if known is None else known
            for pixels, known in ((before, seen), (after, seen_after))
        ]
        return np.concatenate([before, after]), np.concatenate(parts)
