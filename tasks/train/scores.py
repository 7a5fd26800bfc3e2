"""Values on the validation chips, as training watches them; the metrics are those of tasks.assess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
import torch
from torch import Tensor

from tasks.assess.chips import cut_off
from tasks.assess.objects import (
    Detections,
    Matches,
    Overlaps,
    Truths,
    average_precision,
    best_f1,
    mean_or_nan,
    precision_recall_curve,
    ratio,
)
from tasks.assess.pixels import class_measures
from tasks.labels import ClassSchema
from tasks.train.datasets import IGNORED

Values = dict[str, float]

BETA = 2.0
_SEVERAL_FROM = 0.5  # probability from which on a chip has a class, where it may have several
_NO_OBJECT_THRESHOLD = 0.5  # of a package whose validation chips held nothing to tune it on


def chip_objects(
    found: dict[str, Tensor], truth: dict[str, Tensor], *, rows: int, cols: int
) -> tuple[Detections, Truths]:
    """The objects of one chip; classes are the network's labels, from 1.

    An object at the chip's edge is cut there, often to a sliver: it is not assessed.

    Args:
        found: a detector's output, "boxes" (n, 4) xmin, ymin, xmax, ymax, "labels" (n,), "scores" (n,).
        truth: the target, "boxes" and "labels".
        rows, cols: size of the chip, pixels.
    """
    detections = Detections(_boxes(found), _labels(found), found["scores"].detach().cpu().double().numpy())
    corners = truth["boxes"].detach().cpu().double().numpy().reshape(-1, 4)
    return detections, Truths(_boxes(truth), _labels(truth), cut_off(corners, rows, cols))


def mask_overlaps(boxes: Overlaps, found: Tensor, truth: Tensor) -> Overlaps:
    """The overlaps of masks, for those pairs whose boxes overlap."""
    ours, theirs = found.detach().cpu().numpy(), truth.detach().cpu().numpy()
    iou = np.zeros(len(boxes.iou))
    for pair, (detection, true) in enumerate(zip(boxes.detection, boxes.truth, strict=True)):
        shared = np.count_nonzero(ours[detection] & theirs[true])
        whole = np.count_nonzero(ours[detection] | theirs[true])
        iou[pair] = ratio(float(shared), float(whole)) if whole else 0.0
    real = iou > 0
    return Overlaps(boxes.detection[real], boxes.truth[real], iou[real])


@dataclass(frozen=True)
class _Curve:
    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    f1: float
    threshold: float
    at: int


def score_chips(chips: Sequence[Matches], schema: ClassSchema) -> tuple[Values, dict[str, Values]]:
    """Average precision, and the other values at the confidence where F1 is largest.

    Returns:
        AVERAGE_PRECISION (mean of the classes that occur), F1_SCORE, PRECISION, RECALL and THRESHOLD of all
        classes together;
        and per class ap, precision, recall, f1 and the number of objects.
    """
    matches = Matches.joined(chips)
    scores, classes = matches.scores[matches.counted], matches.classes[matches.counted]
    hits = matches.truth[matches.counted] >= 0
    truths = matches.truth_classes[matches.truth_counted]
    per_class: dict[str, Values] = {}
    for label, item in enumerate(schema, start=1):
        mine = classes == label
        objects = int((truths == label).sum())
        curve = _curve(scores[mine], hits[mine], objects)
        per_class[item.name] = {
            "ap": average_precision(scores[mine], hits[mine], objects),
            "precision": float(curve.precision[curve.at]) if curve else 0.0,
            "recall": float(curve.recall[curve.at]) if curve else 0.0,
            "f1": curve.f1 if curve else 0.0,
            "objects": float(objects),
        }
    every = _curve(scores, hits, len(truths))
    values = {
        "AVERAGE_PRECISION": mean_or_nan([row["ap"] for row in per_class.values()]),
        "F1_SCORE": every.f1 if every else 0.0,
        "PRECISION": float(every.precision[every.at]) if every else 0.0,
        "RECALL": float(every.recall[every.at]) if every else 0.0,
        "THRESHOLD": every.threshold if every else _NO_OBJECT_THRESHOLD,
    }
    return values, per_class


def label_counts(truth: Tensor, found: Tensor, size: int) -> npt.NDArray[np.int64]:
    """Pixels by true (rows) and found label, of those whose truth is known  # (size, size)."""
    known = truth != IGNORED
    counts = torch.bincount(truth[known] * size + found[known], minlength=size * size)
    table: npt.NDArray[np.int64] = counts.reshape(size, size).cpu().numpy()
    return table


def pixel_scores(confusion: npt.NDArray[np.int64], schema: ClassSchema) -> tuple[Values, dict[str, Values]]:
    """ACCURACY, and F1_SCORE, DICE, PRECISION, RECALL and MIOU as means over the classes that occur.

    The background is left out of the means. DICE is F1_SCORE by the name that it has in ArcGIS.

    Args:
        confusion: pixels, rows truth, columns prediction, 0 the background  # (classes + 1, classes + 1).
    """
    measures = class_measures(confusion)
    truth = confusion.sum(axis=1)
    per_class = {
        name: {
            **dict(zip(("iou", "f1", "precision", "recall"), map(float, row), strict=True)),
            "pixels": float(count),
        }
        for name, row, count in zip(["Background", *schema.names], measures, truth, strict=True)
    }
    occurring = [row for row, count in zip(measures[1:], truth[1:], strict=True) if count > 0]
    total = int(confusion.sum())
    iou, f1, precision, recall = (
        mean_or_nan([float(row[column]) for row in occurring]) for column in range(len(measures[0]))
    )
    if occurring:
        # A class that is there and is never found has no precision of its own: in the mean it is 0.
        precision = float(np.mean([np.nan_to_num(row[2]) for row in occurring]))
    values = {
        "ACCURACY": float(np.trace(confusion) / total) if total else float("nan"),
        "F1_SCORE": f1,
        "DICE": f1,
        "PRECISION": precision,
        "RECALL": recall,
        "MIOU": iou,
    }
    return values, per_class


def chosen_labels(scores: npt.NDArray[np.float32], *, several: bool) -> npt.NDArray[np.bool_]:
    """The classes that each chip is given: the most probable one, or all of at least 0.5  # (n, classes)."""
    if several:
        return np.asarray(scores >= _SEVERAL_FROM)
    chosen = np.zeros(scores.shape, bool)
    chosen[np.arange(len(scores)), scores.argmax(axis=1)] = True
    return chosen


def label_scores(
    scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], schema: ClassSchema, *, several: bool
) -> tuple[Values, dict[str, Values]]:
    """ACCURACY, and F1_SCORE, PRECISION and RECALL as means over the classes that occur; these per class.

    MULTI_LABEL_FBETA is the F-beta of all decisions together, which counts recall as :data:`BETA` times as
    important as precision.

    Args:
        scores: probability of each class for each chip  # (n, classes)
        truth: whether the chip has the class  # (n, classes)
        several: see :func:`chosen_labels`; a chip is right when all its classes are.
    """
    predicted = chosen_labels(scores, several=several)
    per_class: dict[str, Values] = {}
    for column, item in enumerate(schema):
        ours, theirs = predicted[:, column], truth[:, column]
        both = float(np.count_nonzero(ours & theirs))
        found, there = float(np.count_nonzero(ours)), float(np.count_nonzero(theirs))
        per_class[item.name] = {
            "precision": ratio(both, found),
            "recall": ratio(both, there),
            "f1": ratio(2 * both, found + there),
            "chips": there,
        }
    occurring = [row for row in per_class.values() if row["chips"] > 0]
    both, found, there = (float(np.count_nonzero(part)) for part in (predicted & truth, predicted, truth))
    values = {
        "ACCURACY": float((predicted == truth).all(axis=1).mean()) if len(truth) else float("nan"),
        "F1_SCORE": mean_or_nan([row["f1"] for row in occurring]),
        # As in pixel_scores.
        "PRECISION": mean_or_nan([float(np.nan_to_num(row["precision"])) for row in occurring]),
        "RECALL": mean_or_nan([row["recall"] for row in occurring]),
        "MULTI_LABEL_FBETA": ratio((1 + BETA**2) * both, BETA**2 * there + found),
    }
    return values, per_class


def _curve(scores: npt.NDArray[np.float64], hits: npt.NDArray[np.bool_], objects: int) -> _Curve | None:
    """The precision-recall curve and its best point; None where there is nothing to draw one from."""
    if not len(scores) or not objects:
        return None
    precision, recall, confidence = precision_recall_curve(scores, hits, objects)
    f1, threshold = best_f1(precision, recall, confidence)
    return _Curve(precision, recall, f1, threshold, int(np.argmax(confidence <= threshold)))


def _boxes(values: dict[str, Tensor]) -> npt.NDArray[np.object_]:
    corners = values["boxes"].detach().cpu().double().numpy().reshape(-1, 4)
    boxes: npt.NDArray[np.object_] = shapely.box(corners[:, 0], corners[:, 1], corners[:, 2], corners[:, 3])
    return boxes


def _labels(values: dict[str, Tensor]) -> npt.NDArray[np.int64]:
    labels: npt.NDArray[np.int64] = values["labels"].detach().cpu().numpy()
    return labels
