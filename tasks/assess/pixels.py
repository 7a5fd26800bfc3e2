"""Accuracy of classified pixels: a confusion matrix that grows block by block, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.assess.objects import ratio

Counts = npt.NDArray[np.int64]

_SMALL = 256


@dataclass(frozen=True)
class PixelScores:
    """The scores of one class; NaN where a number is not defined (a class that occurs nowhere)."""

    iou: float
    f1: float
    precision: float
    recall: float
    truth_pixels: int
    predicted_pixels: int


class ConfusionMatrix:
    """Counts of pixels by true and predicted class, from any number of blocks, in memory of classes squared.

    Args:
        values: class values to start with; others that occur are added.
    """

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._counts: dict[tuple[int, int], int] = {(value, value): 0 for value in values}

    @property
    def values(self) -> tuple[int, ...]:
        """The class values that were given or have occurred, ascending."""
        return tuple(sorted({value for pair in self._counts for value in pair}))

    def accumulate(
        self,
        truth: npt.NDArray[np.integer],
        prediction: npt.NDArray[np.integer],
        valid: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Add the pixels of one block.

        Args:
            truth, prediction: class values, integers of one shape.  # (rows, cols)
            valid: which pixels count; None: all.  # (rows, cols), bool
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth has the shape {truth.shape}, prediction {prediction.shape}")
        if valid is not None:
            truth, prediction = truth[valid], prediction[valid]
        if truth.size == 0:
            return
        low = min(int(truth.min()), int(prediction.min()))
        if low >= 0 and max(int(truth.max()), int(prediction.max())) < _SMALL:
            joint = truth.ravel().astype(np.int64) * _SMALL + prediction.ravel()
            found = np.bincount(joint, minlength=_SMALL * _SMALL)
            pairs = [
                (int(code) // _SMALL, int(code) % _SMALL, int(found[code])) for code in np.flatnonzero(found)
            ]
        else:
            both = np.stack([truth.ravel().astype(np.int64), prediction.ravel().astype(np.int64)])
            unique, numbers = np.unique(both, axis=1, return_counts=True)
            pairs = [(int(t), int(p), int(n)) for (t, p), n in zip(unique.T, numbers, strict=True)]
        for true, predicted, number in pairs:
            self._counts[true, predicted] = self._counts.get((true, predicted), 0) + number

    def add(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix."""
        for pair, number in other._counts.items():
            self._counts[pair] = self._counts.get(pair, 0) + number

    def matrix(self, values: Sequence[int] | None = None) -> Counts:
        """The counts: rows are truth, columns prediction, ordered as ``values``.  # (classes, classes)"""
        values = self.values if values is None else values
        counts = np.zeros((len(values), len(values)), np.int64)
        place = {value: index for index, value in enumerate(values)}
        for (true, predicted), number in self._counts.items():
            if true in place and predicted in place:
                counts[place[true], place[predicted]] += number
        return counts

    def scores(self) -> dict[int, PixelScores]:
        """The scores of every class."""
        values = self.values
        counts = self.matrix(values)
        measures = class_measures(counts)
        return {
            value: PixelScores(
                iou=float(measures[index, 0]),
                f1=float(measures[index, 1]),
                precision=float(measures[index, 2]),
                recall=float(measures[index, 3]),
                truth_pixels=int(counts[index].sum()),
                predicted_pixels=int(counts[:, index].sum()),
            )
            for index, value in enumerate(values)
        }

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return sum(self._counts.values())

    @property
    def overall_accuracy(self) -> float:
        """Share of the pixels whose class is right; NaN without pixels."""
        right = sum(number for (true, predicted), number in self._counts.items() if true == predicted)
        return ratio(right, self.pixels)


def class_measures(counts: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """IoU, F1, precision and recall of every class of a confusion matrix; NaN where not defined.

    Args:
        counts: rows are truth, columns prediction.  # (classes, classes)

    Returns:
        measures  # (classes, 4)
    """
    right = np.diagonal(counts).astype(np.float64)
    true = counts.sum(axis=1).astype(np.float64)
    predicted = counts.sum(axis=0).astype(np.float64)
    wholes = np.stack([true + predicted - right, (true + predicted) / 2, predicted, true], axis=1)
    measures = np.full(wholes.shape, np.nan)
    np.divide(right[:, None], wholes, out=measures, where=wholes > 0)
    return measures
