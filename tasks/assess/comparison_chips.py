"""Two versions of a model on the same chips: measures of both, and of their difference, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import shapely

from tasks.assess.bootstrap import Floats
from tasks.assess.chip_results import ChipOutcome, ChipResults
from tasks.assess.chips import blocks_of, count_of, cut_off, resampled_objects, summed
from tasks.assess.comparison import ALL, Compared, PixelStatistics, Statistic, paired
from tasks.assess.object_accuracy import MEASURES as OBJECT_MEASURES
from tasks.assess.objects import Detections, Matches, Truths, match_objects, mean_or_nan, ratio
from tasks.assess.parameters_compare import ComparisonParameters
from tasks.assess.pixel_accuracy import BACKGROUND
from tasks.assess.pixel_accuracy import MEASURES as PIXEL_MEASURES
from tasks.errors import BadInputError

LABEL_MEASURES = ("f1", "precision", "recall")


def compare_chips(results: Mapping[str, ChipResults], parameters: ComparisonParameters) -> Compared:
    """Chips as both versions see them.

    The blocks that are drawn are squares of two chips; a chip without a place is a block of its own.

    Args:
        results: by role, of the same chips.
        parameters: overlap and resampling.

    Raises:
        BadInputError: there is nothing in the chips to find.
    """
    first = next(iter(results.values()))
    blocks = blocks_of([chip.footprint for chip in first.chips])
    if first.kind == "objects":
        return _objects(results, blocks, parameters)
    if first.kind == "pixels":
        return _pixels(results, blocks, parameters)
    return _labels(results, blocks, parameters)


def _objects(
    results: Mapping[str, ChipResults], blocks: npt.NDArray[np.int64], parameters: ComparisonParameters
) -> Compared:
    names = _names(
        results,
        {name for part in results.values() for chip in part.chips for name, *_ in chip.true_objects},
        {name for part in results.values() for chip in part.chips for name, *_ in chip.found_objects},
    )
    statistics: dict[str, Statistic] = {}
    for role, part in results.items():
        matches = [_match(chip, names, parameters.min_iou) for chip in part.chips]
        if not any(item.truth_counted.any() for item in matches):
            raise BadInputError(
                "No chip of the evaluation set holds a whole object.",
                "Export chips with labels, large enough for whole objects.",
            )
        statistics[role] = resampled_objects(matches, blocks, range(len(names)))
    return paired(statistics, [*names, ALL], OBJECT_MEASURES, count_of(blocks), parameters)


def _match(chip: ChipOutcome, names: Sequence[str], min_iou: float) -> Matches:
    truths = shapely.from_wkb([shape for _, shape in chip.true_objects])
    found = shapely.from_wkb([shape for _, _, shape in chip.found_objects])
    return match_objects(
        Detections(
            np.asarray(found, object),
            np.array([names.index(name) for name, *_ in chip.found_objects], np.int64),
            np.array([confidence for _, confidence, _ in chip.found_objects], np.float64),
        ),
        Truths(
            np.asarray(truths, object),
            np.array([names.index(name) for name, _ in chip.true_objects], np.int64),
            cut_off(shapely.bounds(truths).reshape(-1, 4), chip.rows, chip.cols),
        ),
        min_iou,
    )


def _pixels(
    results: Mapping[str, ChipResults], blocks: npt.NDArray[np.int64], parameters: ComparisonParameters
) -> Compared:
    known = next(iter(results.values())).classes
    pairs = {pair for part in results.values() for chip in part.chips for pair in chip.pixels}
    if not pairs:
        raise BadInputError("No chip of the evaluation set holds data.", "Export chips of the imagery.")
    values = sorted({BACKGROUND, *known, *(value for pair in pairs for value in pair[:2])})
    place = {value: number for number, value in enumerate(values)}
    foreground = np.array([value != BACKGROUND for value in values])
    statistics: dict[str, Statistic] = {}
    for role, part in results.items():
        counts = np.zeros((len(part.chips), len(values), len(values)), np.int64)
        for number, chip in enumerate(part.chips):
            for true, found, count in chip.pixels:
                counts[number, place[true], place[found]] = count
        statistics[role] = PixelStatistics(summed(counts, blocks), foreground)
    names = ["background" if value == BACKGROUND else known.get(value, str(value)) for value in values]
    return paired(statistics, [*names, ALL], PIXEL_MEASURES, count_of(blocks), parameters)


def _labels(
    results: Mapping[str, ChipResults], blocks: npt.NDArray[np.int64], parameters: ComparisonParameters
) -> Compared:
    true = {name for part in results.values() for chip in part.chips for name in chip.true_labels}
    found = {name for part in results.values() for chip in part.chips for name in chip.found_labels}
    if not true:
        raise BadInputError("No chip of the evaluation set has a class.", "Export chips with labels.")
    names = _names(results, true, found)
    statistics: dict[str, Statistic] = {}
    for role, part in results.items():
        counts = np.zeros((len(part.chips), len(names), 3), np.int64)
        for number, chip in enumerate(part.chips):
            for index, name in enumerate(names):
                there, given = name in chip.true_labels, name in chip.found_labels
                counts[number, index] = there and given, given, there
        statistics[role] = _LabelStatistics(summed(counts, blocks))
    return paired(statistics, [*names, ALL], LABEL_MEASURES, count_of(blocks), parameters)


class _LabelStatistics:
    """Measures of every class, and their means over the classes that some chip has.

    Args:
        stack: chips that have a class and are given it, are given it, have it  # (blocks, classes, 3)
    """

    def __init__(self, stack: Floats) -> None:
        self._stack = stack
        self._there = stack[:, :, 2].sum(axis=0) > 0

    def __call__(self, weights: Floats) -> Floats:
        rows = []
        for both, given, there in np.tensordot(weights, self._stack, axes=1).tolist():
            rows.append((ratio(2 * both, given + there), ratio(both, given), ratio(both, there)))
        measures = np.array(rows, np.float64)  # (classes, measures)
        means = [mean_or_nan(column) for column in measures[self._there].T.tolist()]
        return np.concatenate([measures.ravel(), means])


def _names(results: Mapping[str, ChipResults], true: set[str], found: set[str]) -> list[str]:
    """The classes that occur: those of the training data in their order, then what else was found."""
    known = list(next(iter(results.values())).classes.values())
    return [name for name in known if name in true | found] + sorted((true | found) - set(known))
