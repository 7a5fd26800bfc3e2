"""Non Maximum Suppression over a complete layer: of objects that overlap too much, the surest one stays.

Source of the procedure: ``docs/formats/tools.md`` §4. What is not documented there is settled here: objects
are taken greedily from the highest confidence to the lowest (an object that was removed removes nothing),
equal confidences in the order of the input, and overlap is measured on the polygons, not on their envelopes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from tasks.errors import BadInputError

_FIRST_RUN = 4096
_PAIRS_PER_RUN = 2_000_000
_NOISE = 1e-7
"""An overlap below this share of the smaller area is rounding: two objects that only touch."""


def suppress(
    geometries: NDArray[np.object_],
    confidences: NDArray[np.float64],
    classes: Sequence[str] | NDArray[np.generic] | None = None,
    *,
    max_overlap_ratio: float = 0.0,
) -> NDArray[np.bool_]:
    """Which features stay.

    First each class by itself, then what is left across all classes: a feature is removed when a surer one
    that stays overlaps it by more than the ratio. With the ratio 0 any overlap with an area removes it.

    Args:
        geometries: polygons and multipolygons.  # (features,)
        confidences: any scale.  # (features,)
        classes: class of each feature; None takes all as one class.
        max_overlap_ratio: largest intersection over union that is left, from 0 to below 1.

    Returns:
        True for what stays.  # (features,), bool

    Raises:
        BadInputError: a ratio outside its range, or a confidence that is not a number.
    """
    if not 0 <= max_overlap_ratio < 1:
        raise BadInputError(f"max_overlap_ratio is {max_overlap_ratio}.", "Give a number from 0 to below 1.")
    scores = np.asarray(confidences, dtype=np.float64)
    if np.isnan(scores).any():
        raise BadInputError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} features have no confidence.",
            "Name a field that holds a number for every feature in confidence_score_field.",
        )
    if not len(scores):
        return np.empty(0, np.bool_)
    order = np.argsort(-scores, kind="stable")
    usable = _usable(geometries[order])
    kinds = None
    if classes is not None:
        kinds = np.unique(np.asarray(classes)[order], return_inverse=True)[1]
    stays = _surest(usable, kinds, max_overlap_ratio)
    if kinds is not None and kinds.max() > 0:
        left = np.flatnonzero(stays)
        stays[left] = _surest(usable[left], None, max_overlap_ratio)
    result = np.empty_like(stays)
    result[order] = stays
    return result


def _surest(
    geometries: NDArray[np.object_], kinds: NDArray[np.intp] | None, max_overlap_ratio: float
) -> NDArray[np.bool_]:
    """What stays of features in order of falling confidence, each class by itself where there are classes.

    The features go through in runs, and those that an earlier run removed look for no partners: memory holds
    the pairs of one run, however crowded the layer is.
    """
    layer = _Measured.of(geometries)
    stays = np.ones(len(geometries), dtype=np.bool_)
    start, length = 0, _FIRST_RUN
    while start < len(geometries):
        ranks = start + np.flatnonzero(stays[start : start + length])
        surer, weaker = layer.partners(ranks)
        # Most partners of a crowded layer are gone already.
        open_pairs = stays[weaker]
        if kinds is not None:
            open_pairs &= kinds[surer] == kinds[weaker]
        _remove(stays, *layer.overlapping(surer[open_pairs], weaker[open_pairs], max_overlap_ratio))
        start += length
        # As many pairs per run as memory may hold: the first, surest ones meet the most.
        length = _next_length(length, len(surer))
    return stays


def _next_length(length: int, pairs: int) -> int:
    fitting = length * _PAIRS_PER_RUN // max(pairs, 1)
    return int(np.clip(fitting, _FIRST_RUN // 8, 4 * length))


def _remove(stays: NDArray[np.bool_], surer: NDArray[np.intp], weaker: NDArray[np.intp]) -> None:
    """Go through the features from the surest on; each one that stays takes its weaker partners away."""
    by_surer = np.argsort(surer, kind="stable")
    weaker = weaker[by_surer]
    ranks, starts = np.unique(surer[by_surer], return_index=True)
    for rank, partners in zip(ranks.tolist(), np.split(weaker, starts[1:]), strict=False):
        if stays[rank]:
            stays[partners] = False


@dataclass(frozen=True)
class _Measured:
    """Features with what is asked of them again and again; ``is_box`` where the envelope is the feature."""

    geometries: NDArray[np.object_]
    areas: NDArray[np.float64]
    bounds: NDArray[np.float64]  # (features, 4)
    is_box: NDArray[np.bool_]
    tree: shapely.STRtree

    @staticmethod
    def of(geometries: NDArray[np.object_]) -> _Measured:
        """The features, measured and indexed."""
        areas, bounds = shapely.area(geometries), shapely.bounds(geometries).reshape(-1, 4)
        # A box is as large as its envelope; among boxes, and that is most detectors, arithmetic will do.
        sides = bounds[:, 2:] - bounds[:, :2]
        is_box = (np.abs(areas - sides[:, 0] * sides[:, 1]) <= 1e-12 * areas) & (areas > 0)
        return _Measured(geometries, areas, bounds, is_box, shapely.STRtree(geometries))

    def partners(self, ranks: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Pairs (surer, weaker) of these features and less sure ones whose envelopes touch."""
        one, other = self.tree.query(self.geometries[ranks])
        one = ranks[one]
        later = other > one
        return one[later], other[later]

    def overlapping(
        self, one: NDArray[np.intp], other: NDArray[np.intp], ratio: float
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Of these pairs those whose intersection over union exceeds the ratio."""
        areas, bounds = self.areas, self.bounds
        smaller = np.minimum(areas[one], areas[other])
        # The envelopes' overlap bounds the polygons' from above: most pairs end here.
        shared = _shared_envelope(bounds[one], bounds[other])
        possible = _exceeds(shared, areas[one], areas[other], smaller, ratio)
        one, other, shared, smaller = one[possible], other[possible], shared[possible], smaller[possible]
        inexact = ~(self.is_box[one] & self.is_box[other])
        shared[inexact] = shapely.area(
            shapely.intersection(self.geometries[one[inexact]], self.geometries[other[inexact]])
        )
        exceeds = _exceeds(shared, areas[one], areas[other], smaller, ratio)
        return one[exceeds], other[exceeds]


def _shared_envelope(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    low = np.maximum(one[:, :2], other[:, :2])
    high = np.minimum(one[:, 2:], other[:, 2:])
    sides = np.clip(high - low, 0, None)
    result: NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return result


def _exceeds(
    shared: NDArray[np.float64],
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    smaller: NDArray[np.float64],
    ratio: float,
) -> NDArray[np.bool_]:
    # shared / (one + other - shared) > ratio, without dividing; envelopes only make it larger.
    shared = np.minimum(shared, smaller)
    over: NDArray[np.bool_] = (shared > ratio * (one + other - shared)) & (shared > _NOISE * smaller)
    return over


def _usable(geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    """The geometries with invalid ones mended: a self-crossing ring cannot be intersected."""
    wrong = ~shapely.is_valid(geometries)
    if not wrong.any():
        return geometries
    result = geometries.copy()
    result[wrong] = shapely.make_valid(geometries[wrong])
    return result
