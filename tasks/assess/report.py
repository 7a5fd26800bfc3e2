"""Accuracy as a table (ArcGIS's fields first), as JSON, and as a page that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from tasks.assess.bootstrap import Interval
from tasks.assess.calibration import Calibration
from tasks.assess.object_accuracy import MEASURES as OBJECT_MEASURES
from tasks.assess.object_accuracy import ObjectAccuracy
from tasks.assess.objects import ClassScores, ObjectScores, mean_or_nan
from tasks.assess.pixel_accuracy import BACKGROUND, PixelAccuracy
from tasks.assess.pixel_accuracy import MEASURES as PIXEL_MEASURES

Row = dict[str, Any]

ALL = "All"
# ArcGIS's names of the fields (docs/formats/tools.md, "Compute Accuracy For Object Detection").
FIELDS = {"precision": "Precision", "recall": "Recall", "f1": "F1_Score", "ap": "AP", "iou": "IoU"}


def object_rows(accuracy: ObjectAccuracy, names: Mapping[int, str], min_iou: float) -> list[Row]:
    """One row per class and one for all, then the same for every further IoU; undefined numbers are None.

    ``COCO_mAP``: average precision over IoU 0.50 to 0.95; of all classes, their mean.
    """
    rows = _rows_at(min_iou, accuracy.scores, accuracy.interval, names)
    for row in rows:
        value = row["Class_Value"]
        coco = mean_or_nan(list(accuracy.coco.values())) if value is None else accuracy.coco.get(value)
        row["COCO_mAP"] = None if coco is None else _number(coco)
    for iou, (scores, interval) in accuracy.further.items():
        rows += _rows_at(iou, scores, interval, names)
    return rows


def _rows_at(iou: float, scores: ObjectScores, interval: Interval, names: Mapping[int, str]) -> list[Row]:
    classes = sorted(scores.by_class)
    every: list[tuple[int | None, str, ClassScores]] = [
        (value, names.get(value, str(value)), scores.by_class[value]) for value in classes
    ]
    every.append((None, ALL, scores.all))
    rows = []
    for index, (value, name, item) in enumerate(every):
        row: Row = {"Kind": "objects", "Class": name, "Class_Value": value}
        row.update({FIELDS[measure]: _number(getattr(item, measure)) for measure in OBJECT_MEASURES})
        row["True_Positive"] = item.true_positive
        row["False_Positive"] = item.false_positive
        row["False_Negative"] = item.false_negative
        row["Min_IoU"] = iou
        for place, measure in enumerate(OBJECT_MEASURES):
            _add_interval(row, measure, interval, index * len(OBJECT_MEASURES) + place)
        rows.append(row)
    return rows


def pixel_rows(accuracy: PixelAccuracy, names: Mapping[int, str]) -> list[Row]:
    """One row per class, background included, and one with the means over the other classes."""
    scores = accuracy.matrix.scores()
    rows = []
    for index, (value, item) in enumerate(scores.items()):
        name = "background" if value == BACKGROUND else names.get(value, str(value))
        row: Row = {"Kind": "pixels", "Class": name, "Class_Value": value}
        row.update({FIELDS[measure]: _number(getattr(item, measure)) for measure in PIXEL_MEASURES})
        row["Truth_Pixels"] = item.truth_pixels
        row["Predicted_Pixels"] = item.predicted_pixels
        for place, measure in enumerate(PIXEL_MEASURES):
            _add_interval(row, measure, accuracy.interval, index * len(PIXEL_MEASURES) + place)
        rows.append(row)
    mean: Row = {"Kind": "pixels", "Class": ALL, "Class_Value": None}
    start = len(scores) * len(PIXEL_MEASURES)
    mean.update({FIELDS[name]: _number(float(accuracy.mean[i])) for i, name in enumerate(PIXEL_MEASURES)})
    mean["Overall_Accuracy"] = _number(accuracy.matrix.overall_accuracy)
    mean["Truth_Pixels"] = mean["Predicted_Pixels"] = accuracy.matrix.pixels
    for place, measure in enumerate(PIXEL_MEASURES):
        _add_interval(mean, measure, accuracy.interval, start + place)
    return [*rows, mean]


def _add_interval(row: Row, measure: str, interval: Any, index: int) -> None:
    row[f"{FIELDS[measure]}_Low"] = _number(float(interval.low[index]))
    row[f"{FIELDS[measure]}_High"] = _number(float(interval.high[index]))


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def to_json(rows: Sequence[Row], details: Mapping[str, Any]) -> bytes:
    """The rows with all details as JSON."""
    return (json.dumps({"rows": list(rows), **details}, indent=1, allow_nan=False) + "\n").encode()


def details_of(
    objects: ObjectAccuracy | None, pixels: PixelAccuracy | None, names: Mapping[int, str]
) -> dict[str, Any]:
    """What the rows do not hold."""
    details: dict[str, Any] = {}
    if objects is not None:
        details["objects"] = {
            "coco_map": _number(mean_or_nan(list(objects.coco.values()))),
            "calibration_error": _number(objects.calibration.error),
            "reliability": objects.calibration.bins(),
            "classes": [names.get(value, str(value)) for value in sorted(objects.scores.by_class)],
            "confusion_matrix": objects.confusion.tolist(),
            "blocks": objects.blocks,
            "best_f1": {
                names.get(value, str(value)): {"f1": _number(f1), "confidence": _number(confidence)}
                for value, (f1, confidence) in objects.best.items()
            },
            "areas": [
                {
                    "raster": result.area.name,
                    "truths": int(result.matches.truth_counted.sum()),
                    "found": int((result.matches.found & result.matches.truth_counted).sum()),
                    "detections": int(result.matches.counted.sum()),
                }
                for result in objects.areas
            ],
        }
    if pixels is not None:
        details["pixels"] = {
            "classes": list(pixels.matrix.values),
            "confusion_matrix": pixels.matrix.matrix().tolist(),
            "overall_accuracy": _number(pixels.matrix.overall_accuracy),
            "blocks": pixels.blocks,
        }
    return details


def shown(row: Row, field: str) -> str:
    """A measure with its interval, as a person reads it: ``0.53 (0.41 to 0.62)``."""
    value, low, high = row.get(field), row.get(f"{field}_Low"), row.get(f"{field}_High")
    if value is None:
        return "not defined"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def to_html(
    rows: Sequence[Row],
    details: Mapping[str, Any],
    parameters: Mapping[str, Any],
    objects: ObjectAccuracy | None,
    names: Mapping[int, str],
) -> str:
    """A page with the tables, the precision-recall curves, the confusion matrix and the parameters."""
    title = f"Accuracy of {parameters['out_accuracy_table']}"
    level = f"{100 * float(parameters['confidence_level']):g} %"
    body: list[str] = []
    ours = [row for row in rows if row["Kind"] == "objects"]
    if ours and objects is not None:
        body.append(_objects(ours, details["objects"], objects, names, level))
    ours = [row for row in rows if row["Kind"] == "pixels"]
    if ours:
        body.append("<h2>Pixels</h2>")
        body.append(_table(ours, PIXEL_FIELDS, PIXEL_COUNTS))
        found = details["pixels"]
        overall = found["overall_accuracy"]
        body.append(
            f"<p>Overall accuracy: {overall:.3f}. The row {ALL} has the means over the classes without "
            f"background. In brackets: {level} intervals over {found['blocks']} blocks of ground.</p>"
        )
        body.append(_confusion(found["classes"], np.array(found["confusion_matrix"]), names))
    return page(title, "".join(body), parameters)


def page(title: str, body: str, parameters: Mapping[str, Any]) -> str:
    """A page that needs nothing else: a heading, ``body`` (HTML) and the parameters."""
    listing = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in parameters.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{body}"
        f"<h2>Parameters</h2><table>{listing}</table></html>"
    )


OBJECT_FIELDS = ("Precision", "Recall", "F1_Score", "AP", "COCO_mAP")
PIXEL_FIELDS = ("IoU", "F1_Score", "Precision", "Recall")
COUNTS = ("True_Positive", "False_Positive", "False_Negative")
PIXEL_COUNTS = ("Truth_Pixels", "Predicted_Pixels")
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2rem;max-width:70rem}table{border-collapse:collapse}"
    "td,th{border:1px solid #bbb;padding:.3rem .6rem;text-align:right}th{background:#eee}"
    "td:first-child,th:first-child{text-align:left}svg{background:#fafafa;border:1px solid #bbb}"
)


def _table(rows: Sequence[Row], measures: Sequence[str], counts: Sequence[str]) -> str:
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("Class", *measures, *counts))
    lines = []
    for row in rows:
        cells = [escape(str(row["Class"])), *(shown(row, name) for name in measures)]
        cells += [f"{row[name]:,}" for name in counts]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _objects(
    rows: Sequence[Row],
    details: Mapping[str, Any],
    objects: ObjectAccuracy,
    names: Mapping[int, str],
    level: str,
) -> str:
    parts = []
    for iou in dict.fromkeys(row["Min_IoU"] for row in rows):
        parts.append(f"<h2>Objects, IoU of at least {iou:g}</h2>")
        ours = [row for row in rows if row["Min_IoU"] == iou]
        parts.append(_table(ours, [name for name in OBJECT_FIELDS if name in ours[0]], COUNTS))
    classes = [*details["classes"], "background"]
    parts.append(
        "<p>COCO mAP is the mean average precision over IoU 0.50 to 0.95. "
        f"In brackets: {level} intervals over {objects.blocks} blocks of ground.</p>"
        + _curves(objects, names)
        + _confusion_table(
            "Objects by truth (rows) and detection; background: nothing there, or nothing found",
            classes,
            details["confusion_matrix"],
        )
        + _reliability(objects.calibration)
    )
    return "".join(parts)


def _confusion(classes: Sequence[int], counts: Any, names: Mapping[int, str]) -> str:
    labels = ["background" if value == BACKGROUND else names.get(value, str(value)) for value in classes]
    return _confusion_table("Pixels by truth (rows) and prediction", labels, counts)


def _confusion_table(title: str, names: Sequence[str], counts: Any) -> str:
    labels = [escape(name) for name in names]
    head = "".join(f"<th>{label}</th>" for label in labels)
    lines = "".join(
        f"<tr><th>{label}</th>{''.join(f'<td>{int(number):,}</td>' for number in row)}</tr>"
        for label, row in zip(labels, counts, strict=True)
    )
    return f"<h3>{title}</h3><table><tr><th></th>{head}</tr>{lines}</table>"


def _reliability(calibration: Calibration) -> str:
    """Share of hits over confidence: on the diagonal where confidences are what they say."""
    bins = calibration.bins()
    if not bins:
        return ""
    points = [(item["confidence"], item["share_right"]) for item in bins]
    return (
        "<h3>Calibration</h3>"
        + _drawing(points, "confidence", "share right", "", diagonal=True)
        + f"<p>Expected calibration error: {calibration.error:.3f}.</p>"
    )


def _curves(objects: ObjectAccuracy, names: Mapping[int, str]) -> str:
    """Precision over recall, one small drawing per class."""
    drawings = []
    for value, (precision, recall) in objects.curves.items():
        points = [(recall[i], precision[i]) for i in thinned(len(recall))]
        drawings.append(_drawing(points, "recall", "precision", names.get(value, str(value))))
    return "".join(drawings)


def thinned(count: int) -> list[int]:
    """At most a few hundred indices of a curve's points: a small drawing shows no more."""
    return np.unique(np.linspace(0, count - 1, min(count, 300)).astype(int)).tolist() if count else []


def _drawing(
    points: Sequence[tuple[float, float]], across: str, up: str, caption: str, *, diagonal: bool = False
) -> str:
    """A curve in the unit square."""
    line = " ".join(f"{20 + 220 * x:.1f},{240 - 220 * y:.1f}" for x, y in points)
    return (
        '<figure style="display:inline-block;margin:.5rem"><svg width="260" height="260" role="img">'
        '<path d="M20 20V240H240" fill="none" stroke="#888"/>'
        + ('<path d="M20 240L240 20" stroke="#bbb" stroke-dasharray="4"/>' if diagonal else "")
        + f'<polyline points="{line}" fill="none" stroke="#1565c0" stroke-width="2"/>'
        f'<text x="130" y="256" font-size="11">{across}</text>'
        f'<text x="4" y="14" font-size="11">{up}</text></svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
