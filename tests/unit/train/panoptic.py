"""Chips for panoptic models: two bright squares, which are objects, above a stripe, which is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tasks.labels import ClassSchema
from tasks.training_data import TrainingData, open_training_data
from tests.unit.train.test_zoo import SCHEMA, squares
from tests.unit.training_data.exports import export

STUFF = ClassSchema.from_values({5: "Field"})
SMALL = {"width": "32", "layers": "2", "n_masks": "8"}
STRIPE = 6  # rows


def panoptic_data(folder: Path, count: int = 12, size: int = 64) -> TrainingData:
    """Classes Round (3, label 1) and Square (7, label 3) have objects, Field (5, label 2) has none."""
    samples = []
    for sample in squares(count, size):
        image, mask = sample.image.copy(), np.zeros((size, size), np.uint8)
        image[1, -STRIPE:], mask[-STRIPE:] = 200, 5
        samples.append(replace(sample, image=image, mask=mask))
    export(folder, "Panoptic_Segmentation", samples, STUFF, instance_classes=SCHEMA)
    return open_training_data(folder)
