"""Accuracy on chips: intervals by a bootstrap over blocks of ground, and COCO's mean average precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.assess.bootstrap import Floats, block_bootstrap
from tasks.assess.object_accuracy import Resampled
from tasks.assess.objects import Matches
from tasks.assess.pixel_accuracy import statistics_of

REPLICATES = 500
LEVEL = 0.95
_CHIPS_PER_BLOCK = 2  # edge of a block, in chips
_EDGE_PX = 1.0  # labels round boxes to whole pixels

Footprint = tuple[float, float, float, float]
Intervals = dict[str, dict[str, tuple[float, float]]]
"""Lower and upper end by measure, by class name; ``ALL`` for the means."""

ALL = "all"


def blocks_of(footprints: Sequence[Footprint | None]) -> npt.NDArray[np.int64]:
    """The block of each chip, numbered from 0: squares of two chips; a chip without a place is its own."""
    boxes = np.array([box if box is not None else (np.nan,) * 4 for box in footprints], float).reshape(-1, 4)
    sizes = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    known = np.isfinite(sizes)
    keys: list[tuple[float, ...]] = [(float(index), np.inf) for index in range(len(boxes))]
    if known.any():
        edge = _CHIPS_PER_BLOCK * float(np.median(sizes[known]))
        cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / edge)
        for index in np.flatnonzero(known):
            keys[index] = (float(cells[index, 0]), float(cells[index, 1]))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def cut_off(bounds: Floats, rows: int, cols: int) -> npt.NDArray[np.bool_]:
    """Objects that reach to the edge of a chip: they are cut there, often to a sliver, and are not assessed.

    Args:
        bounds: xmin, ymin, xmax, ymax, pixels  # (n, 4)
        rows, cols: size of the chip, pixels.
    """
    inside = (bounds[:, :2] > _EDGE_PX).all(axis=1)
    inside &= (bounds[:, 2] < cols - _EDGE_PX) & (bounds[:, 3] < rows - _EDGE_PX)
    return np.asarray(~inside)


def resampled_objects(
    chips: Sequence[Matches], blocks: npt.NDArray[np.int64], labels: Sequence[int]
) -> Resampled:
    """The measures of ``labels`` and of all, from how often each block was drawn.

    Args: see :func:`object_intervals`.
    """
    of_truths = np.repeat(blocks, [len(chip.truth_classes) for chip in chips])
    of_found = np.repeat(blocks, [len(chip.classes) for chip in chips])
    return Resampled(Matches.joined(chips), labels, of_truths, of_found, count_of(blocks))


def count_of(blocks: npt.NDArray[np.int64]) -> int:
    """How many blocks there are, by the numbers of chips' blocks."""
    return int(blocks.max(initial=-1)) + 1


def summed(confusions: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64]) -> Floats:
    """Counts of chips, added up by block  # (chips, ...) -> (blocks, ...)"""
    stack = np.zeros((count_of(blocks), *confusions.shape[1:]))
    np.add.at(stack, blocks, confusions)
    return stack


def pixel_intervals(
    confusions: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64], names: Sequence[str]
) -> Intervals:
    """Intervals of IoU, F1, precision and recall of each class, and of their means over the classes.

    Args:
        confusions: per chip; rows truth, columns prediction  # (chips, classes, classes)
        blocks: of each chip  # (chips,)
        names: of the classes, the background first: it is left out of the means.
    """
    stack = summed(confusions, blocks)
    foreground = np.arange(len(names)) > 0

    def statistic(weights: Floats) -> Floats:
        return statistics_of(np.tensordot(weights, stack, axes=1), foreground)[:-1]

    interval = block_bootstrap(len(stack), statistic, replicates=REPLICATES, level=LEVEL)
    return _named(interval.low, interval.high, [*names, ALL], ("iou", "f1", "precision", "recall"))


def object_intervals(
    chips: Sequence[Matches], blocks: npt.NDArray[np.int64], labels: Sequence[int], names: Sequence[str]
) -> Intervals:
    """Intervals of the average precision of each class, and of the mean of them.

    Args:
        chips: the outcome of each chip.
        blocks: of each chip  # (chips,)
        labels, names: of the classes.
    """
    resampled = resampled_objects(chips, blocks, labels)

    def statistic(weights: Floats) -> Floats:
        return resampled(weights).reshape(len(names) + 1, -1)[:, -1]

    interval = block_bootstrap(count_of(blocks), statistic, replicates=REPLICATES, level=LEVEL)
    return _named(interval.low, interval.high, [*names, ALL], ("ap",))


def _named(low: Floats, high: Floats, names: Sequence[str], measures: Sequence[str]) -> Intervals:
    ends = np.stack([low, high], axis=1).reshape(len(names), len(measures), 2)
    return {
        name: {
            measure: (float(pair[0]), float(pair[1])) for measure, pair in zip(measures, rows, strict=True)
        }
        for name, rows in zip(names, ends, strict=True)
    }
