"""Spatial splits: validation chips lie together, and no training chip overlaps one of them.

Neighbouring chips usually overlap (the stride is smaller than the tile), and even those that only touch
share trees and light. A random split would let the model see its validation data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.errors import TrainingDataError

Footprint = tuple[float, float, float, float]
_CHIPS_PER_CLUSTER = 64
_CLUSTERS_AT_MOST = 16
_CANDIDATES = 24
# Large sets are tried around fewer chips: their clusters lose little at the borders anyway.
_CHIPS_OF_ALL_CANDIDATES = 50_000
# Cost of validation labels that lack or exceed their share, against the share of chips that drop out.
_LABEL_WEIGHT = 2.0


@dataclass(frozen=True)
class Split:
    """Indices of chips, each list ascending.

    Attributes:
        train: chips to learn from.
        validation: chips kept aside.
        dropped: chips that overlap a validation chip and belong to neither.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    dropped: tuple[int, ...]


def split_spatially(
    footprints: Sequence[Footprint],
    validation_percent: float,
    *,
    seed: int,
    amounts: Sequence[float] | None = None,
) -> Split:
    """A split whose validation chips form compact clusters.

    Each cluster is grown around a chip; of several such chips, the one is taken whose cluster makes few
    training chips drop out and holds its share of the labels. The result depends on the arguments only.

    Args:
        footprints: (xmin, ymin, xmax, ymax) per chip, in one coordinate system.
        validation_percent: share of all chips that validates, in percent; at least one chip.
        seed: of the chips that clusters are tried around.
        amounts: how much label each chip holds, in any unit; None where that is not known.

    Raises:
        TrainingDataError: too few chips, or all others overlap the validation chips.
    """
    boxes = np.asarray(footprints, dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    if count < 2:
        raise TrainingDataError(
            f"{count} chips cannot be split into training and validation chips.",
            "Export more chips: a smaller tile_size or stride_size, or more labelled area.",
        )
    wanted = min(max(1, round(count * validation_percent / 100.0)), count - 1)
    clusters = min(max(1, wanted // _CHIPS_PER_CLUSTER), _CLUSTERS_AT_MOST)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    rng = np.random.default_rng(seed)
    neighbours = _Neighbours(boxes)
    labels = np.zeros(count) if amounts is None else np.asarray(amounts, dtype=np.float64)
    total = float(labels.sum())
    validation = np.zeros(count, dtype=bool)
    lost = np.zeros(count, dtype=bool)
    for cluster in range(clusters):
        size = wanted // clusters + (1 if cluster < wanted % clusters else 0)
        best: tuple[float, npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None = None
        free = np.flatnonzero(~validation)
        for start in _starts(centres, free, rng):
            # Chebyshev distance grows squares, which have short borders on a grid of square chips.
            distance = np.abs(centres[free] - centres[start]).max(axis=1)
            chosen = validation.copy()
            chosen[free[np.argsort(distance, kind="stable")[:size]]] = True
            overlapping = neighbours.overlapping(chosen) & ~chosen
            cost = float(overlapping.mean())
            if total > 0:
                cost += _LABEL_WEIGHT * abs(float(labels[chosen].sum()) / total - float(chosen.mean()))
            if best is None or cost < best[0]:
                best = (cost, chosen, overlapping)
        assert best is not None
        _, validation, lost = best
    train = ~validation & ~lost
    if not train.any():
        raise TrainingDataError(
            f"Each of the {count} chips overlaps the {int(validation.sum())} that would be kept for "
            "validation.",
            "Export more chips, with a stride_size nearer to the tile_size, or lower validation_percent.",
        )
    return Split(*(tuple(int(i) for i in np.flatnonzero(mask)) for mask in (train, validation, lost)))


def check_no_leak(footprints: Sequence[Footprint], split: Split) -> None:
    """Check that no training chip overlaps a validation chip and that every chip is placed once.

    Raises:
        TrainingDataError: two chips overlap, or a chip is in two lists or none.
    """
    placed = sorted((*split.train, *split.validation, *split.dropped))
    if placed != list(range(len(footprints))):
        raise TrainingDataError(
            "The split does not place every chip once.", "Report this: the split is not sound."
        )
    leaking = overlapping(footprints, split.validation)
    leaks = [index for index in split.train if leaking[index]]
    if leaks:
        raise TrainingDataError(
            f"{len(leaks)} training chips overlap validation chips.", "Report this: the split is not sound."
        )


def overlapping(footprints: Sequence[Footprint], chosen: Sequence[int]) -> npt.NDArray[np.bool_]:
    """True for each chip that overlaps one of the chosen chips by area (these overlap themselves)."""
    boxes = np.asarray(footprints, dtype=np.float64).reshape(-1, 4)
    mask = np.zeros(len(boxes), dtype=bool)
    mask[list(chosen)] = True
    return _Neighbours(boxes).overlapping(mask)


def _starts(
    centres: npt.NDArray[np.float64], free: npt.NDArray[np.intp], rng: np.random.Generator
) -> list[int]:
    """Chips to try a cluster around: the corners of the area, and some drawn by lot."""
    points = centres[free]
    corners = [
        int(free[np.argmin(sx * points[:, 0] + sy * points[:, 1])]) for sx in (-1, 1) for sy in (-1, 1)
    ]
    wanted = min(_CANDIDATES, max(1, _CHIPS_OF_ALL_CANDIDATES // len(centres)), len(free))
    drawn = rng.choice(free, size=wanted, replace=False)
    order = rng.permutation(len(corners))
    return list(dict.fromkeys([corners[i] for i in order] + [int(i) for i in drawn]))


class _Neighbours:
    """Which chips overlap which, by area; touching is not overlapping."""

    def __init__(self, boxes: npt.NDArray[np.float64]) -> None:
        import shapely

        sizes = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
        # World files carry ten decimals: edges of touching chips may differ by rounding.
        margin = np.minimum(1e-6 * np.maximum(sizes, 0), sizes / 4)[:, None]
        inner = np.hstack([boxes[:, :2] + margin, boxes[:, 2:] - margin])
        self.shapes = shapely.box(inner[:, 0], inner[:, 1], inner[:, 2], inner[:, 3])
        self.tree = shapely.STRtree(self.shapes)

    def overlapping(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """True for each chip that overlaps one of the chosen chips (the chosen ones overlap themselves)."""
        _, hit = self.tree.query(self.shapes[chosen], predicate="intersects")
        result = np.zeros(len(self.shapes), dtype=bool)
        result[hit] = True
        return result
