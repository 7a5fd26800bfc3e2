"""Spatial splits: validation chips lie together, and between them and the training chips lies a chip's width.

Neighbouring chips usually overlap (the stride is smaller than the tile), and even those that only touch
share trees and light. A random split would let the model see its validation data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
# A buffer that costs more than this share of the other chips is not kept: too little would be learnt from.
_BUFFER_COSTS_AT_MOST = 0.5


@dataclass(frozen=True)
class Split:
    """Indices of chips, each list ascending.

    Attributes:
        train: chips to learn from.
        validation: chips kept aside.
        dropped: chips that lie within the buffer around a validation chip and belong to neither.
        buffer: between training and validation chips, in edges of a chip; 0: they may touch, not overlap.
        by: "areas", "lot" (by chance, where no chip has a place) or "folder" (given).
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    dropped: tuple[int, ...]
    buffer: float = 0.0
    by: Literal["areas", "lot", "folder"] = "areas"


def split_spatially(
    footprints: Sequence[Footprint],
    validation_percent: float,
    *,
    seed: int,
    amounts: Sequence[float] | None = None,
    buffer: float = 1.0,
) -> Split:
    """A split whose validation chips form compact clusters with a buffer around them.

    Each cluster is grown around a chip; of several such chips, the one is taken whose cluster makes few
    training chips drop out and holds its share of the labels. The result depends on the arguments only.

    Args:
        footprints: (xmin, ymin, xmax, ymax) per chip, in one coordinate system.
        validation_percent: share of all chips that validates, in percent; at least one chip.
        seed: of the chips that clusters are tried around.
        amounts: how much label each chip holds, in any unit; None where that is not known.
        buffer: least distance between training and validation chips, in edges of a validation chip. Where it
            would cost more than half of the chips that do not validate, there is none (see ``Split.buffer``).

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
    for reach in (buffer, 0.0) if buffer else (0.0,):
        train, validation, lost = _grown(boxes, wanted, reach, seed, amounts)
        if not reach or train.sum() >= (1.0 - _BUFFER_COSTS_AT_MOST) * (count - wanted):
            break
    if not train.any():
        raise TrainingDataError(
            f"Each of the {count} chips overlaps the {int(validation.sum())} that would be kept for "
            "validation.",
            "Export more chips, with a stride_size nearer to the tile_size, or lower validation_percent.",
        )
    learnt, kept, dropped = (
        tuple(int(index) for index in np.flatnonzero(mask)) for mask in (train, validation, lost)
    )
    return Split(learnt, kept, dropped, buffer=reach)


def split_by_lot(groups: Sequence[object], validation_percent: float, *, seed: int) -> Split:
    """A split by chance, of chips of which nobody knows where they lie.

    Args:
        groups: what each chip shows; every kind gives its share, and one chip of each stays to learn from.
        validation_percent: share of all chips that validates, in percent; at least one chip.
        seed: of the lot.

    Raises:
        TrainingDataError: too few chips.
    """
    members: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    rng = np.random.default_rng(seed)
    validation: list[int] = []
    carried = 0.0  # shares of a chip that small kinds still owe
    for indices in members.values():
        carried += len(indices) * validation_percent / 100.0
        taken = min(int(carried + 0.5), len(indices) - 1)
        carried -= taken
        validation += [int(i) for i in rng.permutation(indices)[:taken]]
    if not validation:
        largest = max(members.values(), key=len, default=[])
        if len(largest) < 2:
            raise TrainingDataError(
                f"{len(groups)} chips of {len(members)} kinds cannot be split into training and validation "
                "chips.",
                "Give more chips, or name chips to validate on as validation_folder.",
            )
        validation = [int(rng.choice(largest))]
    kept = set(validation)
    train = tuple(index for index in range(len(groups)) if index not in kept)
    return Split(train, tuple(sorted(kept)), (), by="lot")


def _grown(
    boxes: npt.NDArray[np.float64],
    wanted: int,
    buffer: float,
    seed: int,
    amounts: Sequence[float] | None,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which chips train, which validate, and which lie in the buffer between them."""
    count = len(boxes)
    clusters = min(max(1, wanted // _CHIPS_PER_CLUSTER), _CLUSTERS_AT_MOST)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    rng = np.random.default_rng(seed)
    neighbours = _Neighbours(boxes)
    labels = np.zeros(count) if amounts is None else np.asarray(amounts, dtype=np.float64)
    total = float(labels.sum())
    validation = np.zeros(count, dtype=bool)
    for cluster in range(clusters):
        size = wanted // clusters + (1 if cluster < wanted % clusters else 0)
        best: tuple[float, npt.NDArray[np.bool_]] | None = None
        free = np.flatnonzero(~validation)
        for start in _starts(centres, free, rng):
            # Chebyshev distance grows squares, which have short borders on a grid of square chips.
            distance = np.abs(centres[free] - centres[start]).max(axis=1)
            grown = np.zeros(count, dtype=bool)
            grown[free[np.argsort(distance, kind="stable")[:size]]] = True
            # What it costs alone: clusters that shared their buffers would end as one.
            cost = float((neighbours.overlapping(grown, buffer) & ~grown).mean())
            if total > 0:
                chosen = validation | grown
                cost += _LABEL_WEIGHT * abs(float(labels[chosen].sum()) / total - float(chosen.mean()))
            if best is None or cost < best[0]:
                best = (cost, grown)
        assert best is not None
        validation |= best[1]
    lost = neighbours.overlapping(validation, buffer) & ~validation
    return ~validation & ~lost, validation, lost


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
        self.edges = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        # World files carry ten decimals: edges of touching chips may differ by rounding.
        margin = np.minimum(1e-6 * np.maximum(sizes, 0), sizes / 4)[:, None]
        inner = np.hstack([boxes[:, :2] + margin, boxes[:, 2:] - margin])
        self.shapes = shapely.box(inner[:, 0], inner[:, 1], inner[:, 2], inner[:, 3])
        self.tree = shapely.STRtree(self.shapes)

    def overlapping(self, chosen: npt.NDArray[np.bool_], buffer: float = 0.0) -> npt.NDArray[np.bool_]:
        """True for each chip that overlaps one of the chosen chips (the chosen ones overlap themselves).

        Args:
            buffer: by which the chosen chips reach further on every side, in their own edges.
        """
        import shapely

        shapes = self.shapes[chosen]
        if buffer:
            reach = (buffer * self.edges[chosen])[:, None]
            bounds = shapely.bounds(shapes)
            low, high = bounds[:, :2] - reach, bounds[:, 2:] + reach
            shapes = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
        _, hit = self.tree.query(shapes, predicate="intersects")
        result = np.zeros(len(self.shapes), dtype=bool)
        result[hit] = True
        return result
