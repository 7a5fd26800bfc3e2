"""Statistics of chips that merge exactly: of bands and of classes.

They are merged chip by chip in the order of the chips' numbers, so that the result does not depend on
how the work was cut into shards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BandStatistics:
    """Count, mean, sum of squared deviations, minimum and maximum of each band; arrays  # (bands,).

    A band without a valid pixel has count 0, mean and m2 0, and no minimum or maximum (NaN).
    """

    count: npt.NDArray[np.int64]
    mean: Floats
    m2: Floats
    minimum: Floats
    maximum: Floats

    @classmethod
    def empty(cls, bands: int) -> BandStatistics:
        """Of no pixels."""
        nothing = np.full(bands, np.nan)
        return cls(np.zeros(bands, np.int64), np.zeros(bands), np.zeros(bands), nothing, nothing.copy())

    @classmethod
    def of(cls, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None = None) -> BandStatistics:
        """Of the pixels of a chip.

        Args:
            values: # (bands, rows, cols), any numeric dtype; values that are not finite do not count.
            valid: # (rows, cols); None takes all pixels.
        """
        flat = values.reshape(values.shape[0], -1)
        if valid is not None and not everywhere(valid):
            flat = flat[:, valid.ravel()]
        if flat.dtype.kind in "iu" and flat.dtype.itemsize <= 2 and flat.shape[1]:
            return cls.from_rows(_of_small_integers(flat))
        rows = []
        for band in flat:
            if band.dtype.kind == "f":
                band = band[np.isfinite(band)]
            rows.append(_of_band(band))
        return cls.from_rows(rows)

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float | int | None]]) -> BandStatistics:
        """From one row (count, mean, m2, min, max) per band, as :meth:`to_rows` gives."""
        columns = list(zip(*rows, strict=True)) if rows else [()] * 5
        as_floats = [
            np.array([np.nan if item is None else item for item in column], float) for column in columns
        ]
        return cls(np.array(columns[0], np.int64), *as_floats[1:])

    def to_rows(self) -> list[list[float | int | None]]:
        """JSON-able: one row (count, mean, m2, min, max) per band."""
        return [
            [
                int(self.count[i]),
                float(self.mean[i]),
                float(self.m2[i]),
                *(None if math.isnan(item) else float(item) for item in (self.minimum[i], self.maximum[i])),
            ]
            for i in range(len(self.count))
        ]

    def merge(self, other: BandStatistics) -> BandStatistics:
        """Of both sets of pixels together (Chan, Golub and LeVeque 1979, updating formula)."""
        count = self.count + other.count
        share = np.divide(other.count, count, out=np.zeros(len(count)), where=count > 0)
        delta = other.mean - self.mean
        return BandStatistics(
            count=count,
            mean=self.mean + delta * share,
            m2=self.m2 + other.m2 + delta * delta * self.count * share,
            minimum=np.fmin(self.minimum, other.minimum),
            maximum=np.fmax(self.maximum, other.maximum),
        )

    @property
    def std(self) -> Floats:
        """The standard deviation of the population, sqrt(m2 / count)."""
        return np.sqrt(np.divide(self.m2, self.count, out=np.zeros(len(self.m2)), where=self.count > 0))


def everywhere(valid: npt.NDArray[np.bool_]) -> bool:
    """Whether all are true; at once where they are one value without memory of its own."""
    return bool(valid.all() if any(valid.strides) else valid.flat[:1].all())


def _of_band(band: npt.NDArray[Any]) -> list[float | int | None]:
    if band.size == 0:
        return [0, 0.0, 0.0, None, None]
    wide = band.astype(np.float64)
    mean = float(wide.mean())
    wide -= mean
    return [band.size, mean, float(wide @ wide), float(band.min()), float(band.max())]


# Values that are worked on at a time: they stay in the processor's cache, and memory stays flat.
_AT_ONCE = 1 << 20


def _of_small_integers(flat: npt.NDArray[Any]) -> list[list[float | int | None]]:
    """Of integers of up to 16 bits, without rounding; ``flat`` is # (bands, pixels).

    Floats add fastest, and whole numbers that fit into their mantissa add without rounding, in any order:
    256 squares of 8 bits stay below 2^24, 4096 squares of 16 bits below 2^53. Such runs of pixels are added
    as floats, and their sums as integers.
    """
    bands, size = flat.shape
    kind, run = (np.float32, 256) if flat.dtype.itemsize == 1 else (np.float64, 4096)
    step = max(1, _AT_ONCE // (bands * run)) * run
    totals, squares = np.zeros(bands, np.int64), np.zeros(bands, np.int64)
    for start in range(0, size, step):
        part = flat[:, start : start + step]
        runs = -(-part.shape[1] // run)
        wide = np.zeros((bands, runs * run), kind)
        wide[:, : part.shape[1]] = part
        wide = wide.reshape(bands, runs, run)
        # Not `@`: BLAS would start threads of its own beside ours.
        totals += np.einsum("bij->bi", wide).astype(np.int64).sum(axis=1)
        squares += np.einsum("bij,bij->bi", wide, wide).astype(np.int64).sum(axis=1)
    low, high = flat.min(axis=1).tolist(), flat.max(axis=1).tolist()
    return [
        [size, total / size, (square * size - total * total) / size, low[band], high[band]]
        for band, (total, square) in enumerate(zip(totals.tolist(), squares.tolist(), strict=True))
    ]


@dataclass
class Spread:
    """Minimum, maximum, sum and count of a series, with its mean."""

    minimum: float = math.inf
    maximum: float = -math.inf
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Count one value."""
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)
        self.total += value
        self.count += 1

    @property
    def mean(self) -> float:
        """0 for an empty series."""
        return self.total / self.count if self.count else 0.0

    @property
    def low(self) -> float:
        """The minimum; 0 for an empty series."""
        return self.minimum if self.count else 0.0

    @property
    def high(self) -> float:
        """The maximum; 0 for an empty series."""
        return self.maximum if self.count else 0.0


class ClassStatistics:
    """What the chips hold of each class, added chip by chip in the order of their numbers.

    A chip's content is given per class value: a list of sizes, one for each feature (map-unit areas), or
    for classified tiles one number, the class's pixels.
    """

    def __init__(self, values: Sequence[int]) -> None:
        self.values = tuple(values)
        self.images = 0
        self.features = 0
        self.images_per_class = dict.fromkeys(values, 0)
        self.count_per_class = dict.fromkeys(values, 0)
        self.size_per_class = {value: Spread() for value in values}
        self.classes_per_image = Spread()
        self.features_per_image = Spread()

    def add_pixels(self, pixels: Mapping[int, int]) -> None:
        """Count a classified tile; a class that is not in it counts as 0 pixels."""
        self.images += 1
        present = 0
        for value in self.values:
            count = pixels.get(value, 0)
            self.size_per_class[value].add(count)
            self.count_per_class[value] += count
            if count:
                present += 1
                self.images_per_class[value] += 1
        self.classes_per_image.add(present)

    def add_features(self, areas: Mapping[int, Sequence[float]]) -> None:
        """Count a chip with features; ``areas`` are in squared map units."""
        self.images += 1
        total = 0
        for value in self.values:
            sizes = areas.get(value, ())
            for size in sizes:
                self.size_per_class[value].add(size)
            self.count_per_class[value] += len(sizes)
            if sizes:
                self.images_per_class[value] += 1
            total += len(sizes)
        self.features += total
        self.features_per_image.add(total)
