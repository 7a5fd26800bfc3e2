"""What a training shows of its accuracy: the numbers of the pictures and tables are those of the metrics."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch import nn

from tasks.assess.objects import Detections, Truths, match_objects
from tasks.labels import ClassSchema
from tasks.train.characteristics import accuracy_pictures, accuracy_tables, confusion_of
from tasks.train.models.options import ClassifierOptions, DetectorOptions, PixelOptions
from tasks.train.modules import LabelModule, ObjectModule, PixelModule
from tasks.train.schedule import Budget
from tasks.train.scores import chip_objects, score_chips

SCHEMA = ClassSchema.from_values({3: "Round", 7: "Square"})


def shared() -> dict[str, Any]:
    network = nn.Conv2d(3, 3, 1)
    return {
        "network": network,
        "encoder": network,
        "learning_rate": 0.1,
        "budget": Budget(steps=10, seconds=None),
        "freeze": False,
        "schema": SCHEMA,
    }


def trained(module: Any, **metrics: Any) -> Any:
    return SimpleNamespace(module=module, metrics={"per_class": {}, "intervals": {}, **metrics})


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def detector() -> ObjectModule:
    module = ObjectModule(options=DetectorOptions(detect_min_iou=0.5), **shared())
    random = np.random.default_rng(3)
    for _ in range(6):
        corners = torch.tensor(random.uniform(5, 150, (5, 2)), dtype=torch.float32)
        boxes = torch.cat([corners, corners + 30], dim=1)
        truth = {"boxes": boxes, "labels": torch.tensor(random.integers(1, 3, 5))}
        found = {
            "boxes": boxes + torch.tensor(random.normal(0, 3, (5, 4)), dtype=torch.float32),
            "labels": torch.where(torch.tensor(random.random(5) < 0.7), truth["labels"], 1),
            "scores": torch.tensor(random.random(5)),
        }
        part: tuple[Detections, Truths] = chip_objects(found, truth, rows=200, cols=200)
        module.parts.append(part)
        module.chips.append(match_objects(*part, 0.5))
    values, module.per_class = score_chips(module.chips, SCHEMA)
    module.measured = dict(values)
    module.calibration.add(np.array([0.9, 0.2]), np.array([True, False]))
    return module


def test_a_detector_shows_confusions_curves_and_calibration(detector: ObjectModule) -> None:
    done = trained(
        detector,
        per_class=detector.per_class,
        intervals={"level": 0.95, "Round": {"ap": [0.1, 0.9]}},
    )
    pictures = accuracy_pictures(done, SCHEMA)
    assert set(pictures) == {"confusion_matrix.png", "precision_recall.png", "calibration.png"}
    for data in pictures.values():
        assert Image.open(io.BytesIO(data)).format == "PNG"
    tables = accuracy_tables(done, SCHEMA)
    assert set(tables) == {"metrics.json", "per_class.csv", "confusion_matrix.csv", "calibration.csv"}
    assert json.loads(tables["metrics.json"])["per_class"] == detector.per_class
    first = rows(tables["per_class.csv"])[0]
    assert float(first["ap"]) == detector.per_class["Round"]["ap"]
    assert (first["ap_low"], first["ap_high"]) == ("0.1", "0.9")
    matrix = rows(tables["confusion_matrix.csv"])
    assert [row["true"] for row in matrix] == ["Round", "Square", "background"]
    found = confusion_of(done, SCHEMA)
    assert found is not None
    counts, _ = found
    # At the tuned threshold the diagonal is what the best F1 of all classes counts as right.
    precision, recall = (np.trace(counts) / counts[part].sum() for part in (np.s_[:, :2], np.s_[:2]))
    assert 2 * precision * recall / (precision + recall) == pytest.approx(detector.measured["F1_SCORE"])
    assert len(rows(tables["calibration.csv"])) == 2


def test_pixels_and_classes_of_chips_are_confused_as_scikit_learn_says() -> None:
    pixels = PixelModule(options=PixelOptions(), class_weights=None, **shared())
    pixels.confusion = np.array([[5, 1, 0], [2, 7, 0], [0, 0, 3]])
    found = confusion_of(trained(pixels), SCHEMA)
    assert found is not None
    assert found[1] == ["Background", "Round", "Square"]
    assert "precision_recall.png" not in accuracy_pictures(trained(pixels), SCHEMA)

    random = np.random.default_rng(0)
    labels = LabelModule(options=ClassifierOptions(), several=False, **shared())
    scores, truth = random.random((40, 2)), np.eye(2)[random.integers(0, 2, 40)]
    labels._scores, labels._truths = [torch.tensor(scores)], [torch.tensor(truth)]
    labels.final_values(np.arange(40) // 4)
    done = trained(labels)
    matrix = rows(accuracy_tables(done, SCHEMA)["confusion_matrix.csv"])
    theirs = confusion_matrix(truth.argmax(axis=1), scores.argmax(axis=1))
    assert [[int(row[name]) for name in SCHEMA.names] for row in matrix] == theirs.tolist()
    assert "calibration.png" in accuracy_pictures(done, SCHEMA)
    labels.several = True
    assert confusion_of(done, SCHEMA) is None
