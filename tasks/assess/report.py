"""Accuracy as a table (ArcGIS's fields first), as JSON, and as a page that needs nothing else."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from tasks.assess.object_accuracy import MEASURES as OBJECT_MEASURES
from tasks.assess.object_accuracy import ObjectAccuracy
from tasks.assess.objects import ClassScores
from tasks.assess.pixel_accuracy import BACKGROUND, PixelAccuracy
from tasks.assess.pixel_accuracy import MEASURES as PIXEL_MEASURES

Row = dict[str, Any]

ALL = "All"
# ArcGIS's names of the fields (docs/formats/tools.md, "Compute Accuracy For Object Detection").
_FIELDS = {"precision": "Precision", "recall": "Recall", "f1": "F1_Score", "ap": "AP", "iou": "IoU"}


def object_rows(accuracy: ObjectAccuracy, names: Mapping[int, str]) -> list[Row]:
    """One row per class and one for all; undefined numbers are None."""
    classes = sorted(accuracy.scores.by_class)
    every: list[tuple[int | None, str, ClassScores]] = [
        (value, names.get(value, str(value)), accuracy.scores.by_class[value]) for value in classes
    ]
    every.append((None, ALL, accuracy.scores.all))
    rows = []
    for index, (value, name, scores) in enumerate(every):
        row: Row = {"Kind": "objects", "Class": name, "Class_Value": value}
        row.update({_FIELDS[measure]: _number(getattr(scores, measure)) for measure in OBJECT_MEASURES})
        row["True_Positive"] = scores.true_positive
        row["False_Positive"] = scores.false_positive
        row["False_Negative"] = scores.false_negative
        for place, measure in enumerate(OBJECT_MEASURES):
            _add_interval(row, measure, accuracy.interval, index * len(OBJECT_MEASURES) + place)
        rows.append(row)
    return rows


def pixel_rows(accuracy: PixelAccuracy, names: Mapping[int, str]) -> list[Row]:
    """One row per class, background included, and one with the means over the other classes."""
    scores = accuracy.matrix.scores()
    rows = []
    for index, (value, item) in enumerate(scores.items()):
        name = "background" if value == BACKGROUND else names.get(value, str(value))
        row: Row = {"Kind": "pixels", "Class": name, "Class_Value": value}
        row.update({_FIELDS[measure]: _number(getattr(item, measure)) for measure in PIXEL_MEASURES})
        row["Truth_Pixels"] = item.truth_pixels
        row["Predicted_Pixels"] = item.predicted_pixels
        for place, measure in enumerate(PIXEL_MEASURES):
            _add_interval(row, measure, accuracy.interval, index * len(PIXEL_MEASURES) + place)
        rows.append(row)
    mean: Row = {"Kind": "pixels", "Class": ALL, "Class_Value": None}
    start = len(scores) * len(PIXEL_MEASURES)
    mean.update({_FIELDS[name]: _number(float(accuracy.mean[i])) for i, name in enumerate(PIXEL_MEASURES)})
    mean["Overall_Accuracy"] = _number(accuracy.matrix.overall_accuracy)
    mean["Truth_Pixels"] = mean["Predicted_Pixels"] = accuracy.matrix.pixels
    for place, measure in enumerate(PIXEL_MEASURES):
        _add_interval(mean, measure, accuracy.interval, start + place)
    return [*rows, mean]


def _add_interval(row: Row, measure: str, interval: Any, index: int) -> None:
    row[f"{_FIELDS[measure]}_Low"] = _number(float(interval.low[index]))
    row[f"{_FIELDS[measure]}_High"] = _number(float(interval.high[index]))


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def to_csv(rows: Sequence[Row]) -> bytes:
    """The rows as CSV; a field that a row lacks, or that is undefined, is empty."""
    fields = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


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
            "mean_average_precision_50_95": _number(objects.mean_average_precision),
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
    title = f"Accuracy of {escape(str(parameters['out_accuracy_table']))}"
    level = f"{100 * float(parameters['confidence_level']):g} %"
    body = [f"<h1>{title}</h1>"]
    ours = [row for row in rows if row["Kind"] == "objects"]
    if ours and objects is not None:
        mean = details["objects"]["mean_average_precision_50_95"]
        body.append(f"<h2>Objects, IoU of at least {parameters['min_iou']}</h2>")
        body.append(_table(ours, ("Precision", "Recall", "F1_Score", "AP"), _COUNTS))
        body.append(
            f"<p>COCO mAP over IoU 0.50 to 0.95: {'not defined' if mean is None else f'{mean:.3f}'}. "
            f"In brackets: {level} intervals over {objects.blocks} blocks of ground.</p>"
        )
        body.append(_curves(objects, names))
    ours = [row for row in rows if row["Kind"] == "pixels"]
    if ours:
        body.append("<h2>Pixels</h2>")
        body.append(_table(ours, ("IoU", "F1_Score", "Precision", "Recall"), _PIXELS))
        found = details["pixels"]
        overall = found["overall_accuracy"]
        body.append(
            f"<p>Overall accuracy: {overall:.3f}. The row {ALL} has the means over the classes without "
            f"background. In brackets: {level} intervals over {found['blocks']} blocks of ground.</p>"
        )
        body.append(_confusion(found["classes"], np.array(found["confusion_matrix"]), names))
    listing = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in parameters.items()
    )
    body.append(f"<h2>Parameters</h2><table>{listing}</table>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        + "".join(body)
        + "</html>"
    )


_COUNTS = ("True_Positive", "False_Positive", "False_Negative")
_PIXELS = ("Truth_Pixels", "Predicted_Pixels")
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


def _confusion(classes: Sequence[int], counts: Any, names: Mapping[int, str]) -> str:
    labels = [
        "background" if value == BACKGROUND else escape(names.get(value, str(value))) for value in classes
    ]
    head = "".join(f"<th>{label}</th>" for label in labels)
    lines = "".join(
        f"<tr><th>{label}</th>{''.join(f'<td>{int(number):,}</td>' for number in row)}</tr>"
        for label, row in zip(labels, counts, strict=True)
    )
    return f"<h3>Pixels by truth (rows) and prediction</h3><table><tr><th></th>{head}</tr>{lines}</table>"


def _curves(objects: ObjectAccuracy, names: Mapping[int, str]) -> str:
    """Precision over recall, one small drawing per class."""
    drawings = []
    for value, (precision, recall) in objects.curves.items():
        # At most a few hundred points: a drawing of 260 pixels shows no more.
        chosen = np.unique(np.linspace(0, len(recall) - 1, min(len(recall), 300)).astype(int))
        points = " ".join(f"{20 + 220 * recall[i]:.1f},{240 - 220 * precision[i]:.1f}" for i in chosen)
        drawings.append(
            f'<figure style="display:inline-block;margin:.5rem"><svg width="260" height="260" role="img">'
            '<path d="M20 20V240H240" fill="none" stroke="#888"/>'
            f'<polyline points="{points}" fill="none" stroke="#1565c0" stroke-width="2"/>'
            '<text x="130" y="256" font-size="11">recall</text>'
            '<text x="4" y="14" font-size="11">precision</text></svg>'
            f"<figcaption>{escape(names.get(value, str(value)))}</figcaption></figure>"
        )
    return "".join(drawings)
