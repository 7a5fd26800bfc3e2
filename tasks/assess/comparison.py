"""Two versions of a model on the same ground: measures of both, and of their difference, block by block.

Every draw of the bootstrap takes the same blocks for both versions, so that what makes the ground hard for
both cancels out of the difference (paired block bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.assess.areas import area_of
from tasks.assess.bootstrap import Floats, block_bootstrap
from tasks.assess.inputs import Classes, read_detections
from tasks.assess.object_accuracy import MEASURES as OBJECT_MEASURES
from tasks.assess.object_accuracy import ObjectAccuracy, assess_objects
from tasks.assess.parameters_compare import ComparisonParameters
from tasks.assess.pixel_accuracy import BACKGROUND, block_matrices, statistics_of
from tasks.assess.pixel_accuracy import MEASURES as PIXEL_MEASURES
from tasks.errors import BadInputError
from tasks.imagery import RasterInfo
from tasks.labels.vector import VectorLabels, read_vector_labels

CHAMPION, CHALLENGER = "champion", "challenger"
ALL = "All"
DIFFERENCE = "difference"

Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Compared:
    """Measures of one or two versions.

    Attributes:
        names: of the classes, in order, then ``All``.
        measures: in order.
        values: by role, (names, measures); the difference (challenger minus champion) as "difference".
        low, high: ends of the intervals, likewise.
        blocks: number of blocks that were drawn.
    """

    names: list[str]
    measures: tuple[str, ...]
    values: dict[str, Floats]
    low: dict[str, Floats]
    high: dict[str, Floats]
    blocks: int

    def of(self, role: str, measure: str) -> tuple[float, float, float]:
        """A measure over all classes, and the ends of its interval."""
        place = self.measures.index(measure)
        ends = (part[role][-1, place] for part in (self.values, self.low, self.high))
        value, low, high = (float(number) for number in ends)
        return value, low, high


def compare_objects(
    layers: Mapping[str, str], rasters: Sequence[RasterInfo], parameters: ComparisonParameters
) -> Compared:
    """Detected objects of both versions.

    Args:
        layers: URI of a vector file by role.
        rasters: that both were applied to; they bound what is assessed.
        parameters: truth, mask, overlap and resampling.
    """
    truth = read_vector_labels(parameters.truth, parameters.ground_truth_class_value_field)
    mask = read_vector_labels(parameters.mask_features) if parameters.mask_features else None
    classes = Classes(truth.schema)
    found: dict[str, ObjectAccuracy] = {}
    for role, uri in layers.items():
        found[role] = assess_objects(
            read_detections([uri], None, classes),
            truth,
            [area_of(info) for info in rasters],
            min_iou=parameters.min_iou,
            block_size=parameters.block_size,
            replicates=0,
            level=parameters.confidence_level,
            seed=parameters.seed,
            mask=mask,
            mask_rule=parameters.mask_rule,
        )
    values = sorted({value for accuracy in found.values() for value in accuracy.scores.by_class})
    if not any(accuracy.matches.truth_counted.any() for accuracy in found.values()):
        raise BadInputError(
            "No true object lies in the rasters that both versions were applied to.",
            "Check input_raster and mask_features against the truth's place and coordinate system.",
        )
    statistics: dict[str, Statistic] = {role: accuracy.resampled(values) for role, accuracy in found.items()}
    names = [classes.names.get(value, str(value)) for value in values]
    count = next(iter(found.values())).blocks
    return paired(statistics, [*names, ALL], OBJECT_MEASURES, count, parameters)


def compare_pixels(
    results: Mapping[str, Sequence[RasterInfo]],
    extents: Sequence[RasterInfo],
    parameters: ComparisonParameters,
) -> Compared:
    """Classified rasters of both versions.

    Args:
        results: rasters by role, in the same order.
        extents: the imagery; pixels count where it holds data.
        parameters: truth and resampling.

    Raises:
        BadInputError: the versions were computed on different grids.
    """
    truth = read_vector_labels(parameters.truth, parameters.ground_truth_class_value_field)
    mask = read_vector_labels(parameters.mask_features) if parameters.mask_features else None
    _refuse_other_grids(list(results.values()))
    blocks = {
        role: block_matrices(rasters, truth, extents, parameters.block_size, mask)
        for role, rasters in results.items()
    }
    places = sorted({place for found in blocks.values() for place in found})
    values = sorted({value for found in blocks.values() for part in found.values() for value in part.values})
    values = sorted({BACKGROUND, *truth.schema.values, *values})
    foreground = np.array([value != BACKGROUND for value in values])
    statistics: dict[str, Statistic] = {}
    for role, found in blocks.items():
        stack = np.zeros((len(places), len(values), len(values)))
        for number, place in enumerate(places):
            if place in found:
                stack[number] = found[place].matrix(values)
        statistics[role] = PixelStatistics(stack, foreground)
    names = _class_names(values, truth)
    return paired(statistics, [*names, ALL], PIXEL_MEASURES, len(places), parameters)


class PixelStatistics:
    """Measures of every class and their means, from how often each block was drawn.

    Args:
        stack: counts of each block, rows truth, columns prediction  # (blocks, classes, classes)
        foreground: the classes that the means are over  # (classes,)
    """

    def __init__(self, stack: Floats, foreground: npt.NDArray[np.bool_]) -> None:
        self._stack, self._foreground = stack, foreground

    def __call__(self, weights: Floats) -> Floats:
        return statistics_of(np.tensordot(weights, self._stack, axes=1), self._foreground)[:-1]


def paired(
    statistics: Mapping[str, Statistic],
    names: list[str],
    measures: tuple[str, ...],
    blocks: int,
    parameters: ComparisonParameters,
) -> Compared:
    """All versions, and their difference, from the same draws.

    Args:
        statistics: by role; measures of every class, then of all, one after the other.
        names: of the classes, then of all.
        measures: in order.
        blocks: number of blocks.
        parameters: of the resampling.
    """
    roles = list(statistics)
    several = len(roles) == 2

    def statistic(weights: Floats) -> Floats:
        parts = [part(weights) for part in statistics.values()]
        if several:
            parts.append(parts[roles.index(CHALLENGER)] - parts[roles.index(CHAMPION)])
        return np.concatenate(parts)

    interval = block_bootstrap(
        blocks,
        statistic,
        replicates=parameters.bootstrap_replicates,
        level=parameters.confidence_level,
        seed=parameters.seed,
    )
    parts = [*roles, DIFFERENCE] if several else roles
    shape = (len(parts), len(names), len(measures))

    def by_part(numbers: Floats) -> dict[str, Floats]:
        return dict(zip(parts, numbers.reshape(shape), strict=True))

    return Compared(
        names=names,
        measures=measures,
        values=by_part(statistic(np.ones(max(blocks, 1)))),
        low=by_part(interval.low),
        high=by_part(interval.high),
        blocks=blocks,
    )


def _refuse_other_grids(results: Sequence[Sequence[RasterInfo]]) -> None:
    grids = [[(info.crs_wkt, info.transform, info.width, info.height) for info in part] for part in results]
    if any(grid != grids[0] for grid in grids):
        raise BadInputError(
            "The two versions were computed on different grids, so their pixels cannot be paired.",
            "Give a cell_size that both are computed with.",
        )


def _class_names(values: Sequence[int], truth: VectorLabels) -> list[str]:
    known = {item.value: item.name for item in truth.schema}
    return ["background" if value == BACKGROUND else known.get(value, str(value)) for value in values]
