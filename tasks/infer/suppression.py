"""Non Maximum Suppression over a complete layer: of objects that overlap too much, the surest one stays.

Source of the procedure: ``docs/formats/tools.md`` §4. What is not documented there is settled here: objects
are taken greedily from the highest confidence to the lowest (an object that was removed removes nothing),
equal confidences in the order of the input, and overlap is measured on the polygons, not on their envelopes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from tasks.errors import BadInputError

_CHUNK = 50_000
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
    order = np.argsort(-scores, kind="stable")
    kinds = np.zeros(len(order), np.intp)
    if classes is not None:
        kinds = np.unique(np.asarray(classes)[order], return_inverse=True)[1]
    surer, weaker = _overlapping(_usable(geometries[order]), max_overlap_ratio)
    stays = np.ones(len(order), dtype=np.bool_)
    same = kinds[surer] == kinds[weaker]
    _remove(stays, surer[same], weaker[same])
    _remove(stays, surer, weaker)
    result = np.empty_like(stays)
    result[order] = stays
    return result


def _remove(stays: NDArray[np.bool_], surer: NDArray[np.intp], weaker: NDArray[np.intp]) -> None:
    """Go through the features from the surest on; each one that stays takes its weaker partners away."""
    by_surer = np.argsort(surer, kind="stable")
    weaker = weaker[by_surer]
    ranks, starts = np.unique(surer[by_surer], return_index=True)
    for rank, partners in zip(ranks.tolist(), np.split(weaker, starts[1:]), strict=False):
        if stays[rank]:
            stays[partners] = False


def _overlapping(
    geometries: NDArray[np.object_], max_overlap_ratio: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All pairs of ranks (surer, weaker) whose intersection over union exceeds the ratio."""
    found = list(_overlapping_chunks(geometries, max_overlap_ratio))
    empty = np.empty(0, dtype=np.intp)
    if not found:
        return empty, empty
    return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


def _overlapping_chunks(
    geometries: NDArray[np.object_], max_overlap_ratio: float
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    tree = shapely.STRtree(geometries)
    areas = shapely.area(geometries)
    bounds = shapely.bounds(geometries)
    # A box is as large as its envelope; among boxes, and that is most detectors, arithmetic will do.
    sides = bounds[:, 2:] - bounds[:, :2]
    is_box = (np.abs(areas - sides[:, 0] * sides[:, 1]) <= 1e-12 * areas) & (areas > 0)
    for start in range(0, len(geometries), _CHUNK):
        one, other = tree.query(geometries[start : start + _CHUNK])  # envelopes that touch
        one = one + start
        later = other > one
        one, other = one[later], other[later]
        smaller = np.minimum(areas[one], areas[other])
        # The envelopes' overlap bounds the polygons' from above: most pairs end here.
        shared = _shared_envelope(bounds[one], bounds[other])
        possible = _exceeds(shared, areas[one], areas[other], smaller, max_overlap_ratio)
        one, other, shared, smaller = one[possible], other[possible], shared[possible], smaller[possible]
        inexact = ~(is_box[one] & is_box[other])
        shared[inexact] = shapely.area(
            shapely.intersection(geometries[one[inexact]], geometries[other[inexact]])
        )
        exceeds = _exceeds(shared, areas[one], areas[other], smaller, max_overlap_ratio)
        yield one[exceeds], other[exceeds]


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
