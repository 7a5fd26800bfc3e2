"""Accuracy of detected objects: matching by overlap, precision, recall, F1, average precision.

Definitions: docs/formats/tools.md, "Compute Accuracy For Object Detection". A detection is a true positive
when it matches a truth of its class that no detection took before, with an intersection over union (IoU) of
at least ``min_iou``; detections choose in the order of their confidence, each the truth that it overlaps
most. Average precision is the area under the precision-recall curve over all points, precision being made
monotone (the envelope), with one point per distinct confidence, so that the order of equal ones is no matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

# COCO's steps of IoU for its mean average precision.
COCO_STEPS: tuple[float, ...] = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Geometries = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Detections:
    """Detected objects.

    Attributes:
        geometries: (n,) shapely polygons.
        classes: (n,) int64 class values.
        scores: (n,) float64 confidences on any one scale; NaN counts as the least confident.
        optional: (n,) True for detections that count only when they match (their centre lies outside of the
            assessed area); None: all count.
    """

    geometries: Geometries
    classes: Ints
    scores: Floats
    optional: Bools | None = None


@dataclass(frozen=True)
class Truths:
    """True objects.

    Attributes:
        geometries: (m,) shapely polygons.
        classes: (m,) int64 class values.
        ignored: (m,) True for truths that are not assessed (cut off by the edge of the assessed area):
            missing them is no error, and neither is a detection of them.
    """

    geometries: Geometries
    classes: Ints
    ignored: Bools


@dataclass(frozen=True)
class Overlaps:
    """All pairs of a detection and a truth of one class that share an area.

    Attributes:
        detection, truth: (pairs,) indices.
        iou: (pairs,) area of the intersection over area of the union, above 0.
    """

    detection: npt.NDArray[np.intp]
    truth: npt.NDArray[np.intp]
    iou: Floats


@dataclass(frozen=True)
class Matches:
    """The outcome for every assessed detection and truth; what scores are computed from.

    Attributes:
        classes, scores: (n,) of the detections.
        truth: (n,) index of the matched truth, -1 for a false positive.
        counted: (n,) False for detections of ignored truths and for optional ones without a match.
        truth_classes: (m,) of the truths.
        truth_counted: (m,) False for ignored truths.
    """

    classes: Ints
    scores: Floats
    truth: npt.NDArray[np.intp]
    counted: Bools
    truth_classes: Ints
    truth_counted: Bools

    @property
    def found(self) -> Bools:
        """(m,) Whether the truth was matched."""
        found = np.zeros(len(self.truth_classes), bool)
        found[self.truth[self.truth >= 0]] = True
        return found

    @staticmethod
    def joined(parts: Sequence[Matches]) -> Matches:
        """The outcomes of several areas as one."""
        starts = np.cumsum([0, *(len(part.truth_classes) for part in parts)])
        return Matches(
            np.concatenate([np.zeros(0, np.int64), *(part.classes for part in parts)]),
            np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
            np.concatenate(
                [
                    np.zeros(0, np.intp),
                    *(
                        np.where(part.truth >= 0, part.truth + start, -1)
                        for part, start in zip(parts, starts, strict=False)
                    ),
                ]
            ),
            np.concatenate([np.zeros(0, bool), *(part.counted for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.truth_classes for part in parts)]),
            np.concatenate([np.zeros(0, bool), *(part.truth_counted for part in parts)]),
        )


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class, or of all; NaN where a number is not defined (no truths, no detections)."""

    precision: float
    recall: float
    f1: float
    ap: float
    true_positive: int
    false_positive: int
    false_negative: int


@dataclass(frozen=True)
class ObjectScores:
    """Scores by class value, and for all classes together.

    ``all``: counts are sums, precision, recall and F1 follow from them; AP is the mean over the classes that
    have truths (mAP at this IoU).
    """

    by_class: dict[int, ClassScores]
    all: ClassScores


def find_overlaps(detections: Detections, truths: Truths) -> Overlaps:
    """Every pair of one class that overlaps, through a spatial index over the truths."""
    found, truth = shapely.STRtree(truths.geometries).query(detections.geometries, predicate="intersects")
    same = detections.classes[found] == truths.classes[truth]
    found, truth = found[same], truth[same]
    inside, outside = detections.geometries[found], truths.geometries[truth]
    shared = shapely.area(shapely.intersection(inside, outside))
    union = shapely.area(inside) + shapely.area(outside) - shared
    iou = np.divide(shared, union, out=np.zeros(len(shared)), where=union > 0)
    real = iou > 0
    return Overlaps(found[real], truth[real], np.minimum(iou[real], 1.0))


def match_objects(
    detections: Detections, truths: Truths, min_iou: float, *, overlaps: Overlaps | None = None
) -> Matches:
    """Match detections to truths.

    Args:
        detections: what was found.
        truths: what is there.
        min_iou: least IoU of a match, 0 to 1; with 0 any shared area is enough.
        overlaps: of these two, where they are known already.
    """
    pairs = overlaps or find_overlaps(detections, truths)
    count = len(detections.geometries)
    scores = np.where(np.isnan(detections.scores), -np.inf, detections.scores)
    rank = np.empty(count, np.intp)
    rank[np.argsort(-scores, kind="stable")] = np.arange(count)
    # Half a rounding error must not decide whether equal boxes overlap by exactly the threshold.
    enough = pairs.iou >= min_iou - 1e-9
    order = np.lexsort((pairs.truth, -pairs.iou, rank[pairs.detection]))
    order = order[enough[order]]
    assessed = ~truths.ignored[pairs.truth[order]]

    matched = np.full(count, -1, np.intp)
    taken = np.zeros(len(truths.geometries), bool)
    # Sorted by confidence, then by overlap: the first free pair of a detection is its match.
    steps = order[assessed]
    for detection, truth in zip(pairs.detection[steps].tolist(), pairs.truth[steps].tolist(), strict=True):
        if matched[detection] < 0 and not taken[truth]:
            matched[detection] = truth
            taken[truth] = True
    optional = np.zeros(count, bool) if detections.optional is None else detections.optional.copy()
    optional[pairs.detection[order[~assessed]]] = True
    return Matches(
        classes=detections.classes,
        scores=scores,
        truth=matched,
        counted=~(optional & (matched < 0)),
        truth_classes=truths.classes,
        truth_counted=~truths.ignored,
    )


def score_matches(matches: Matches, classes: Sequence[int] | None = None) -> ObjectScores:
    """The scores of an outcome, for ``classes`` or for all that occur."""
    if classes is None:
        occurring = np.union1d(matches.classes[matches.counted], matches.truth_classes[matches.truth_counted])
        classes = [int(value) for value in occurring]
    by_class: dict[int, ClassScores] = {}
    for value in classes:
        mine = (matches.classes == value) & matches.counted
        hits = matches.truth[mine] >= 0
        truths = int(((matches.truth_classes == value) & matches.truth_counted).sum())
        ap = average_precision(matches.scores[mine], hits, truths)
        by_class[value] = _class_scores(int(hits.sum()), int((~hits).sum()), truths, ap)
    every = list(by_class.values())
    hits_of_all = sum(item.true_positive for item in every)
    return ObjectScores(
        by_class,
        _class_scores(
            hits_of_all,
            sum(item.false_positive for item in every),
            hits_of_all + sum(item.false_negative for item in every),
            mean_or_nan([item.ap for item in every]),
        ),
    )


def score_objects(detections: Detections, truths: Truths, min_iou: float) -> ObjectScores:
    """Match and score in one step."""
    return score_matches(match_objects(detections, truths, min_iou))


def coco_precision(
    parts: Sequence[tuple[Detections, Truths]],
    steps: Sequence[float] = COCO_STEPS,
    *,
    overlaps: Sequence[Overlaps] | None = None,
    most: int | None = 100,
) -> dict[int, float]:
    """COCO's average precision of each class that has truths, the mean over the steps of IoU.

    As in its reference implementation: at most 100 detections of a class per part (the most confident ones),
    precision at 101 recalls. Its mean over the classes is COCO's mAP.

    Args:
        parts: per picture.
        steps: of IoU.
        overlaps: of the parts, where they are known already.
        most: detections of a class per part that count; None: all, where a part is no chip but a scene.
    """
    known = overlaps or [find_overlaps(*part) for part in parts]
    values: dict[int, list[float]] = {}
    for step in steps:
        matches = Matches.joined(
            [
                _most_confident(match_objects(*part, step, overlaps=pairs), most)
                for part, pairs in zip(parts, known, strict=True)
            ]
        )
        for value in np.unique(matches.truth_classes[matches.truth_counted]):
            mine = (matches.classes == value) & matches.counted
            truths = int(((matches.truth_classes == value) & matches.truth_counted).sum())
            precision = _coco_points(matches.scores[mine], matches.truth[mine] >= 0, truths)
            values.setdefault(int(value), []).append(precision)
    return {value: float(np.mean(found)) for value, found in values.items()}


_COCO_RECALLS = np.linspace(0.0, 1.0, 101)


def _most_confident(matches: Matches, most: int | None) -> Matches:
    """The outcome without detections beyond the ``most`` most confident of each class."""
    if most is None:
        return matches
    order = np.argsort(-matches.scores, kind="stable")
    counted = matches.counted.copy()
    for value in np.unique(matches.classes):
        counted[order[matches.classes[order] == value][most:]] = False
    return Matches(
        matches.classes,
        matches.scores,
        np.where(counted, matches.truth, -1),
        counted,
        matches.truth_classes,
        matches.truth_counted,
    )


def _coco_points(scores: Floats, hits: Bools, truths: int) -> float:
    """The mean of the precision, made monotone, at 101 recalls; 0 at recalls that are not reached."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(found / truths, _COCO_RECALLS, side="left")
    return float(np.append(envelope, 0.0)[place].mean())


def average_precision(scores: Floats, hits: Bools, truths: float, weights: Floats | None = None) -> float:
    """Area under the precision-recall curve; NaN without truths, 0 without detections.

    Args:
        scores: (n,) confidences.
        hits: (n,) whether the detection is a true positive.
        truths: number (or weight) of truths.
        weights: (n,) how often each detection counts; None: once.
    """
    if truths <= 0:
        return float("nan")
    precision, recall, _ = precision_recall_curve(scores, hits, truths, weights)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def precision_recall_curve(
    scores: Floats, hits: Bools, truths: float, weights: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and least confidence at every distinct confidence, from the highest down."""
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    found = np.cumsum(weights[order] * hits[order])
    seen = np.cumsum(weights[order])
    last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]
    precision = np.divide(found, seen, out=np.zeros(len(seen)), where=seen > 0)
    return precision[last], found[last] / truths, ordered[last]


def best_f1(precision: Floats, recall: Floats, confidence: Floats) -> tuple[float, float]:
    """The highest F1 on a curve and the least confidence that gives it; NaN for an empty curve."""
    if not len(precision):
        return float("nan"), float("nan")
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros(len(total)), where=total > 0)
    best = int(np.argmax(f1))
    return float(f1[best]), float(confidence[best])


def mean_or_nan(values: Sequence[float]) -> float:
    """The mean of the numbers that are defined; NaN if none is."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def ratio(part: float, whole: float) -> float:
    """``part / whole``, NaN when there is no whole."""
    return part / whole if whole > 0 else float("nan")


def _class_scores(hits: int, wrong: int, truths: int, ap: float) -> ClassScores:
    return ClassScores(
        precision=ratio(hits, hits + wrong),
        recall=ratio(hits, truths),
        f1=ratio(2 * hits, hits + wrong + truths),
        ap=ap,
        true_positive=hits,
        false_positive=wrong,
        false_negative=truths - hits,
    )
