"""How pixel values become the network's input; recorded in the package as Esri's NormalizationStats.

``((x - minimum) / (maximum - minimum) - mean) / std`` per band (docs/formats/emd-dlpk.md, "Core keys").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import TrainingDataError
from tasks.training_data import BandStatistics, TrainingData
from tasks.training_data.reader import chip_statistics

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Normalisation:
    """Per band: range of the pixel values, then mean and spread of the values scaled to that range."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    imagenet: bool

    @cached_property
    def factor(self) -> npt.NDArray[np.float32]:
        """Per band, of ``x * factor + nothing``; the package's functions compute the same."""
        spans = np.subtract(self.maximum, self.minimum, dtype=np.float64)
        return np.asarray(1.0 / (spans * np.asarray(self.std)), np.float32)

    @cached_property
    def nothing(self) -> npt.NDArray[np.float32]:
        """Per band, the network's input for pixels without data, which count as 0."""
        low, high, mean, std = (
            np.asarray(values, np.float64) for values in (self.minimum, self.maximum, self.mean, self.std)
        )
        return np.asarray(-(low / (high - low) + mean) / std, np.float32)

    def apply(
        self,
        pixels: npt.NDArray[Any],
        contrast: npt.NDArray[np.float32] | None = None,
        shift: npt.NDArray[np.float32] | None = None,
        known: npt.NDArray[np.bool_] | None = None,
    ) -> npt.NDArray[np.float32]:
        """The network's input for pixels  # (bands, rows, cols) any dtype -> float32, a copy.

        Args:
            contrast: per band, the factor about its mean.
            shift: per band, in standard deviations.
            known: where there is data  # (bands, rows, cols); None: everywhere. What is not known counts as
                0, in whatever colours the rest is.
        """
        factor, summand = self.factor, self.nothing
        if contrast is not None:
            # One pass over the pixels does it all: the mean is told from them as they are.
            mean = _means(pixels, known) * factor + summand
            factor, summand = factor * contrast, (summand - mean) * contrast + mean
        if shift is not None:
            summand = summand + shift
        result = pixels.astype(np.float32, order="C")
        result *= factor[:, None, None]
        result += summand[:, None, None]
        if known is not None:
            np.copyto(result, self.nothing[:, None, None], where=~known)
        return result

    def undo(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Pixel values of a network's input."""
        low, high, mean, std = (
            np.asarray(part, dtype=np.float32)[:, None, None]
            for part in (self.minimum, self.maximum, self.mean, self.std)
        )
        result: npt.NDArray[np.float32] = (values * std + mean) * (high - low) + low
        return result

    def joined(self, other: Normalisation) -> Normalisation:
        """Of these bands and, after them, the other's."""
        return Normalisation(
            self.minimum + other.minimum,
            self.maximum + other.maximum,
            self.mean + other.mean,
            self.std + other.std,
            imagenet=False,
        )


def _means(pixels: npt.NDArray[Any], known: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.float32]:
    if known is None:
        return np.asarray(pixels.mean(axis=(1, 2), dtype=np.float64), np.float32)
    total = pixels.sum(axis=(1, 2), dtype=np.float64, where=known)
    return np.asarray(total / np.maximum(known.sum(axis=(1, 2)), 1), np.float32)


def normalisation_of(data: Sequence[TrainingData], dtype: np.dtype[Any]) -> Normalisation:
    """ImageNet's for three 8-bit bands (the encoders expect it), else from the exported statistics.

    Raises:
        TrainingDataError: a band that is constant over all chips.
    """
    first = data[0]
    if dtype == np.uint8 and first.bands == 3:
        return Normalisation((0.0,) * 3, (255.0,) * 3, _IMAGENET_MEAN, _IMAGENET_STD, imagenet=True)
    counts = np.array([len(item.chips) for item in data], dtype=np.float64)
    weights = counts / counts.sum()
    minimum, maximum, means, stds = [], [], [], []
    for band in range(first.bands):
        stats = [item.band_stats[band] for item in data]
        low, high = min(s.minimum for s in stats), max(s.maximum for s in stats)
        if not high > low:
            raise TrainingDataError(
                f"The band {stats[0].name} holds the value {low} everywhere.",
                "Leave it out of the imagery, or check the raster's values.",
            )
        mean = float(sum(w * s.mean for w, s in zip(weights, stats, strict=True)))
        spread = sum(w * (s.std**2 + (s.mean - mean) ** 2) for w, s in zip(weights, stats, strict=True))
        minimum.append(low)
        maximum.append(high)
        means.append((mean - low) / (high - low))
        stds.append(max(float(spread) ** 0.5 / (high - low), 1e-6))
    return Normalisation(tuple(minimum), tuple(maximum), tuple(means), tuple(stds), imagenet=False)


_SAMPLED_CHIPS = 32
_SPREAD_FACTOR = 20.0


def check_scale(data: Sequence[TrainingData]) -> None:
    """Refuse statistics that are not of these chips: another scale would train a network on nonsense.

    A sample of 32 chips is compared: its values must lie within the declared range, up to its double, and
    its spread within a factor of 20 of the declared one.

    Raises:
        TrainingDataError: with the band, what is declared, and what the chips hold.
    """
    for item in data:
        if not item.declared_stats:
            continue  # then they come from the chips
        places = np.unique(np.linspace(0, len(item.chips) - 1, _SAMPLED_CHIPS).astype(int))
        found = BandStatistics.empty(item.bands)
        for place in places:
            found = found.merge(chip_statistics(item.chips[place]))
        for band, stats in enumerate(item.declared_stats):
            if not found.count[band]:
                continue  # of what holds no data nothing can be said
            low, high, spread = (float(v[band]) for v in (found.minimum, found.maximum, found.std))
            span = stats.maximum - stats.minimum
            outside = low < stats.minimum - span or high > stats.maximum + span
            if outside or (stats.std > 0 and not 1 / _SPREAD_FACTOR < spread / stats.std < _SPREAD_FACTOR):
                raise TrainingDataError(
                    f"The statistics of {item.folder} do not belong to its chips: the band {stats.name} is "
                    f"said to lie from {stats.minimum:g} to {stats.maximum:g} (standard deviation "
                    f"{stats.std:g}); the chips hold {low:g} to {high:g} (standard deviation {spread:g}).",
                    "Export the training data again, or remove esri_accumulated_stats.json and the "
                    "statistics in esri_model_definition.emd: they are then taken from the chips.",
                )
