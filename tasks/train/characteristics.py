"""What a training shows beside curves and samples: pictures of accuracy, and tables that any program reads.

Pictures go into the package and, like the tables, into MLflow, where they need none of our code.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.assess.confusion import BACKGROUND, object_confusion
from tasks.assess.drawings import calibration_png, confusion_png, curves_png
from tasks.assess.objects import Matches, precision_recall_curve
from tasks.assess.tables import to_csv
from tasks.labels import ClassSchema
from tasks.train.modules import LabelModule, ObjectModule, PixelModule
from tasks.train.panoptic_module import PanopticModule
from tasks.train.result import Trained

Confusion = tuple[npt.NDArray[np.int64], list[str]]


def accuracy_pictures(trained: Trained, schema: ClassSchema) -> dict[str, bytes]:
    """PNG files by name: confusion matrix, calibration and, of detectors, precision over recall."""
    pictures = {}
    confusion = confusion_of(trained, schema)
    if confusion is not None:
        pictures["confusion_matrix.png"] = confusion_png(*confusion)
    curves = _curves(trained, schema)
    if curves:
        pictures["precision_recall.png"] = curves_png(curves)
    bins = trained.module.calibration.bins()
    if bins:
        pictures["calibration.png"] = calibration_png(bins, trained.module.calibration.error)
    return pictures


def accuracy_tables(trained: Trained, schema: ClassSchema) -> dict[str, str]:
    """Texts by name: ``metrics.json``; ``per_class``, ``confusion_matrix`` and ``calibration``, each .csv."""
    metrics = trained.metrics
    tables = {"metrics.json": json.dumps(metrics, indent=1, allow_nan=False) + "\n"}
    rows = [_with_intervals(metrics, name) for name in metrics.get("per_class", {})]
    if rows:
        tables["per_class.csv"] = to_csv(rows).decode()
    confusion = confusion_of(trained, schema)
    if confusion is not None:
        counts, names = confusion
        tables["confusion_matrix.csv"] = to_csv(
            [
                {"true": name, **dict(zip(names, row, strict=True))}
                for name, row in zip(names, counts.tolist(), strict=True)
            ]
        ).decode()
    bins = trained.module.calibration.bins()
    if bins:
        tables["calibration.csv"] = to_csv(bins).decode()
    return tables


def confusion_of(trained: Trained, schema: ClassSchema) -> Confusion | None:
    """Counts, rows truth and columns prediction, and the names of both; None where it makes no sense.

    Of detectors: objects above the tuned threshold. Outlines are taken for another class's by their boxes.
    """
    module = trained.module
    if isinstance(module, PixelModule):
        return module.confusion, ["Background", *schema.names]
    if isinstance(module, PanopticModule):
        return module.confusion, ["Background", *schema.names]
    if isinstance(module, LabelModule) and not module.several:
        return module.confusion, list(schema.names)
    if isinstance(module, ObjectModule):
        labels = list(range(1, len(schema) + 1))
        parts = [(*part, chip) for part, chip in zip(module.parts, module.chips, strict=True)]
        counts = object_confusion(
            parts, module.options.detect_min_iou, labels, least_score=float(module.measured["THRESHOLD"])
        )
        return counts, [*schema.names, BACKGROUND]
    return None


def _curves(
    trained: Trained, schema: ClassSchema
) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Precision and recall by class that has objects."""
    module = trained.module
    if not isinstance(module, ObjectModule):
        return {}
    matches = Matches.joined(module.chips)
    found = {}
    for label, name in enumerate(schema.names, start=1):
        mine = (matches.classes == label) & matches.counted
        truths = int(((matches.truth_classes == label) & matches.truth_counted).sum())
        if truths and mine.any():
            precision, recall, _ = precision_recall_curve(
                matches.scores[mine], matches.truth[mine] >= 0, truths
            )
            found[name] = precision, recall
    return found


def _with_intervals(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"class": name, **metrics["per_class"][name]}
    for measure, ends in metrics.get("intervals", {}).get(name, {}).items():
        row[f"{measure}_low"], row[f"{measure}_high"] = ends
    return row
