"""Detected objects against true ones, area by area, with intervals from blocks of ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import shapely

from tasks.assess.areas import Area, Blocks, project, union_of
from tasks.assess.bootstrap import Floats, Interval, block_bootstrap
from tasks.assess.calibration import Calibration
from tasks.assess.confusion import object_confusion
from tasks.assess.inputs import DetectedLayer
from tasks.assess.objects import (
    Detections,
    Matches,
    ObjectScores,
    Truths,
    average_precision,
    best_f1,
    coco_precision,
    find_overlaps,
    match_objects,
    mean_or_nan,
    precision_recall_curve,
    ratio,
    score_matches,
)
from tasks.labels.vector import VectorLabels

MEASURES = ("precision", "recall", "f1", "ap")
MaskRule = Literal["INTERSECTS", "WITHIN"]
Mask = shapely.Geometry | None


@dataclass(frozen=True)
class AreaResult:
    """One area's objects and what became of them, for pictures; geometries in the area's CRS."""

    area: Area
    detections: Detections
    truths: Truths
    matches: Matches


@dataclass(frozen=True)
class ObjectAccuracy:
    """The accuracy of detected objects.

    Attributes:
        scores: by class and for all.
        interval: ends of the measures of every class, then of all: ``MEASURES`` each.
        blocks: number of blocks that were resampled.
        coco: average precision over IoU 0.50 to 0.95 by class that has truths, as COCO computes it but of all
            detections (scenes hold more than the 100 that it takes of a picture).
        further: scores and intervals at further IoUs.
        calibration: of the confidences.
        confusion: objects by true and detected class, in the order of ``scores.by_class``, then background.
        best_f1, best_confidence: highest F1 at any least confidence, and that confidence; by class.
        curves: by class, (precision, recall).
        areas: for pictures.
        matches: the outcome of all areas.
        truth_blocks, detection_blocks: block of every truth and detection of ``matches``.
    """

    scores: ObjectScores
    interval: Interval
    blocks: int
    coco: dict[int, float]
    further: dict[float, tuple[ObjectScores, Interval]]
    calibration: Calibration
    confusion: npt.NDArray[np.int64]
    best: dict[int, tuple[float, float]]
    curves: dict[int, tuple[Floats, Floats]]
    areas: list[AreaResult]
    matches: Matches
    truth_blocks: npt.NDArray[np.int64]
    detection_blocks: npt.NDArray[np.int64]

    def resampled(self, classes: Sequence[int]) -> Resampled:
        """The measures of ``classes`` and of all, from how often each block was drawn."""
        return Resampled(self.matches, classes, self.truth_blocks, self.detection_blocks, self.blocks)


def assess_objects(
    layers: Sequence[DetectedLayer],
    truth: VectorLabels,
    areas: Sequence[Area],
    *,
    min_iou: float,
    block_size: float,
    replicates: int,
    level: float,
    seed: int,
    mask: VectorLabels | None = None,
    mask_rule: MaskRule = "INTERSECTS",
    further_iou: Sequence[float] = (),
) -> ObjectAccuracy:
    """Match and score.

    A truth is assessed in the first area that holds its centre; a truth of which an area holds another part
    is neither missed nor found there. Everything is clipped to the area, for nothing can be seen beyond its
    edge. A detection whose centre lies outside of the area or the mask counts only where it matches.

    Args:
        layers: detected objects.
        truth: true objects, in a CRS of their own.
        areas: where to look; with a footprint of None, everywhere.
        min_iou: least IoU of a match.
        block_size: of the bootstrap, metres.
        replicates, level, seed: of the bootstrap.
        mask: polygons that bound what is assessed.
        mask_rule: whether objects must touch the mask or lie inside.
        further_iou: IoUs of a match to score with as well.
    """
    truth_free = np.ones(len(truth), bool)
    free = [np.ones(len(layer.geometries), bool) for layer in layers]
    results: list[AreaResult] = []
    for area in areas:
        mask_here = (
            None if mask is None else shapely.union_all(project(mask.geometries, mask.crs_wkt, area.crs_wkt))
        )
        truths, chosen = _truths_in(area, truth, truth_free, mask_here, mask_rule)
        truth_free[chosen] = False
        detections, origin = _detections_in(area, layers, free, mask_here, mask_rule)
        matches = match_objects(detections, truths, min_iou)
        results.append(AreaResult(area, detections, truths, matches))
        optional = detections.optional if detections.optional is not None else np.zeros(0, bool)
        for (layer, index), done in zip(origin, (matches.truth >= 0) | ~optional, strict=True):
            free[layer][index] &= not done

    def scored(results: Sequence[AreaResult]) -> tuple[_Joined, ObjectScores, Interval]:
        joined = _joined(results, block_size)
        scores = score_matches(joined.matches)
        resampled = Resampled(
            joined.matches,
            sorted(scores.by_class),
            joined.truth_blocks,
            joined.detection_blocks,
            joined.count,
        )
        return (
            joined,
            scores,
            block_bootstrap(joined.count, resampled, replicates=replicates, level=level, seed=seed),
        )

    whole, scores, interval = scored(results)
    joined = whole.matches
    overlaps = [find_overlaps(result.detections, result.truths) for result in results]
    further = {}
    for iou in further_iou:
        at_iou = [
            replace(item, matches=match_objects(item.detections, item.truths, iou, overlaps=pairs))
            for item, pairs in zip(results, overlaps, strict=True)
        ]
        further[iou] = scored(at_iou)[1:]
    best, curves = {}, {}
    for value in scores.by_class:
        mine = (joined.classes == value) & joined.counted
        true = int(((joined.truth_classes == value) & joined.truth_counted).sum())
        if true:
            precision, recall, confidence = precision_recall_curve(
                joined.scores[mine], joined.truth[mine] >= 0, true
            )
            best[value] = best_f1(precision, recall, confidence)
            curves[value] = (precision, recall)
    return ObjectAccuracy(
        scores=scores,
        interval=interval,
        blocks=whole.count,
        coco=coco_precision(
            [(result.detections, result.truths) for result in results], overlaps=overlaps, most=None
        ),
        further=further,
        calibration=_calibration(joined),
        confusion=object_confusion(
            [(result.detections, result.truths, result.matches) for result in results],
            min_iou,
            sorted(scores.by_class),
        ),
        best=best,
        curves=curves,
        areas=results,
        matches=joined,
        truth_blocks=whole.truth_blocks,
        detection_blocks=whole.detection_blocks,
    )


def _calibration(matches: Matches) -> Calibration:
    """Of confidences from 0 to 1, or from 0 to 100 where one is above 1; unknown ones are left out."""
    counted = matches.counted & np.isfinite(matches.scores)
    scores = matches.scores[counted]
    scale = 100.0 if scores.max(initial=0.0) > 1.0 else 1.0
    calibration = Calibration()
    calibration.add(np.clip(scores / scale, 0.0, 1.0), matches.truth[counted] >= 0)
    return calibration


def _truths_in(
    area: Area, truth: VectorLabels, free: npt.NDArray[np.bool_], mask: Mask, rule: MaskRule
) -> tuple[Truths, npt.NDArray[np.intp]]:
    """The truths that the area shows, and the indices of those that are assessed in it."""
    geometries = project(truth.geometries, truth.crs_wkt, area.crs_wkt)
    central = _central(geometries, area) & free
    clipped = _clip(geometries, area)
    seen = np.flatnonzero(shapely.area(clipped) > 0)
    assessed = central[seen] & _in_mask(geometries[seen], mask, rule)
    return Truths(clipped[seen], truth.values[seen], ~assessed), seen[central[seen]]


def _detections_in(
    area: Area,
    layers: Sequence[DetectedLayer],
    free: Sequence[npt.NDArray[np.bool_]],
    mask: Mask,
    rule: MaskRule,
) -> tuple[Detections, list[tuple[int, int]]]:
    """The detections that the area shows, and for each its layer and index there."""
    geometries: list[npt.NDArray[np.object_]] = [np.zeros(0, object)]
    classes, scores, optional = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, bool)]
    origin: list[tuple[int, int]] = []
    for number, layer in enumerate(layers):
        moved = project(layer.geometries, layer.crs_wkt, area.crs_wkt)
        clipped = _clip(moved, area)
        seen = np.flatnonzero((shapely.area(clipped) > 0) & free[number])
        geometries.append(clipped[seen])
        classes.append(layer.classes[seen])
        scores.append(layer.scores[seen])
        optional.append(~(_central(moved[seen], area) & _in_mask(moved[seen], mask, rule)))
        origin.extend((number, int(index)) for index in seen)
    found = Detections(
        np.concatenate(geometries), np.concatenate(classes), np.concatenate(scores), np.concatenate(optional)
    )
    return found, origin


def _clip(geometries: npt.NDArray[np.object_], area: Area) -> npt.NDArray[np.object_]:
    if area.footprint is None:
        return geometries
    shapely.prepare(area.footprint)
    clipped = geometries.copy()
    cut = ~shapely.contains(area.footprint, geometries)
    clipped[cut] = shapely.intersection(geometries[cut], area.footprint)
    return clipped


def _central(geometries: npt.NDArray[np.object_], area: Area) -> npt.NDArray[np.bool_]:
    if area.footprint is None:
        return np.ones(len(geometries), bool)
    inside: npt.NDArray[np.bool_] = shapely.intersects(area.footprint, shapely.centroid(geometries))
    return inside


def _in_mask(geometries: npt.NDArray[np.object_], mask: Mask, rule: MaskRule) -> npt.NDArray[np.bool_]:
    if mask is None:
        return np.ones(len(geometries), bool)
    test = shapely.intersects if rule == "INTERSECTS" else shapely.covered_by
    inside: npt.NDArray[np.bool_] = test(geometries, mask)
    return inside


@dataclass(frozen=True)
class _Joined:
    """The outcome of all areas, and the block of every truth and detection, of ``count`` blocks."""

    matches: Matches
    truth_blocks: npt.NDArray[np.int64]
    detection_blocks: npt.NDArray[np.int64]
    count: int


def _joined(results: Sequence[AreaResult], block_size: float) -> _Joined:
    of_truths, of_detections, count = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for result in results:
        found, there = result.detections.geometries, result.truths.geometries
        if result.area.footprint is not None:
            bounds = result.area.footprint.bounds
        else:
            bounds = union_of([tuple(shapely.total_bounds(found)), tuple(shapely.total_bounds(there))])
        blocks = result.area.blocks(block_size, bounds)
        truth_blocks = _block_of(blocks, there)
        mine = _block_of(blocks, found)
        # A detection moves with the truth that it found, so that a draw never parts the two.
        hit = result.matches.truth >= 0
        mine[hit] = truth_blocks[result.matches.truth[hit]]
        of_truths.append(truth_blocks + count)
        of_detections.append(mine + count)
        count += blocks.count
    matches = Matches.joined([result.matches for result in results])
    return _Joined(matches, np.concatenate(of_truths), np.concatenate(of_detections), count)


def _block_of(blocks: Blocks, geometries: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    centres = shapely.centroid(geometries)
    return blocks.of(shapely.get_x(centres), shapely.get_y(centres))


class Resampled:
    """The measures of every class and of all, from how often each block was drawn."""

    def __init__(
        self,
        matches: Matches,
        classes: Sequence[int],
        truth_blocks: npt.NDArray[np.int64],
        detection_blocks: npt.NDArray[np.int64],
        count: int,
    ) -> None:
        self._classes = []
        for value in classes:
            mine = np.flatnonzero((matches.classes == value) & matches.counted)
            mine = mine[np.argsort(-matches.scores[mine], kind="stable")]
            true = (matches.truth_classes == value) & matches.truth_counted
            self._classes.append(
                (
                    matches.scores[mine],
                    matches.truth[mine] >= 0,
                    detection_blocks[mine],
                    np.bincount(truth_blocks[true], minlength=count).astype(np.float64),
                )
            )

    def __call__(self, weights: Floats) -> Floats:
        rows, aps = [], []
        total = np.zeros(3)
        for scores, hits, block, truths_per_block in self._classes:
            weight = weights[block]
            true = float(truths_per_block @ weights)
            ap = average_precision(scores, hits, true, weight)
            counts = np.array([float(weight[hits].sum()), float(weight.sum()), true])
            rows.append(_measures(counts, ap))
            total += counts
            aps.append(ap)
        rows.append(_measures(total, mean_or_nan(aps)))
        return np.concatenate(rows)


def _measures(counts: Floats, ap: float) -> Floats:
    hits, found, true = (float(value) for value in counts)
    return np.array([ratio(hits, found), ratio(hits, true), ratio(2 * hits, found + true), ap])
