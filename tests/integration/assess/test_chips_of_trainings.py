"""What compare_models says of chips is what a training said of the same chips as its validation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.assess.chip_results import apply_to_chips
from tasks.assess.comparison import CHALLENGER
from tasks.assess.comparison_chips import compare_chips
from tasks.assess.parameters_compare import ComparisonParameters
from tasks.labels import ClassSchema
from tasks.package import open_package
from tasks.settings import settings
from tasks.tracking import Tracker
from tasks.train.parameters import TrainParameters
from tasks.train.train import train_model
from tasks.training_data import TrainingData, open_training_data
from tasks.training_data.sample import Sample
from tests.unit.training_data.exports import export
from tests.unit.training_data.samples import labels

pytestmark = pytest.mark.slow
CLASSES = {3: "Round", 7: "Square"}
SIZE = 64
CASES = [
    ("UNET", "Classified_Tiles", {}, ("iou", "f1", "precision", "recall")),
    ("FCOS", "PASCAL_VOC_rectangles", {"width": "32", "levels": "2", "head_convolutions": "1"}, ("ap",)),
    ("MASKRCNN", "RCNN_Masks", {"width": "32", "levels": "1"}, ("ap",)),
    ("FEATURE_CLASSIFIER", "Labeled_Tiles", {}, ("f1", "precision", "recall")),
    ("CHANGEDETECTOR", "Classified_Tiles", {}, ("iou", "f1")),
]


@pytest.fixture(autouse=True)
def uncontained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CHIPLINE_ALLOW_UNCONTAINED", "true")
    settings.cache_clear()
    yield
    settings.cache_clear()


def chips(folder: Path, metadata_format: str, count: int, *, seed: int, pairs: bool) -> TrainingData:
    """Chips with a red and a blue square; of two dates, both come with the second; a corner is empty."""
    random = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        before, after = (random.integers(20, 60, (3, SIZE, SIZE)).astype(np.uint8) for _ in range(2))
        layers = {value: np.zeros((SIZE, SIZE), np.uint8) for value in CLASSES}
        boxes = []
        for value, left in ((3, 3), (7, 34)):
            top, edge = int(random.integers(3, 34)), int(random.integers(14, 26))
            layers[value][top : top + edge, left : left + edge] = 1
            boxes.append((value, left, top, left + edge, top + edge))
            for image in (after, before) if not pairs else (after,):
                image[0 if value == 3 else 2, top : top + edge, left : left + edge] = 230
        known = np.ones((SIZE, SIZE), bool)
        known[:8, :8] = number % 3 > 0
        before[:, ~known] = after[:, ~known] = 0
        alone = number % 2  # of Labeled_Tiles: one square is gone
        value = (3, 7)[alone]
        if metadata_format == "Labeled_Tiles":
            before[:, layers[(7, 3)[alone]] > 0] = 40
        mask = sum((layers[v] * np.uint8(v) for v in CLASSES), np.zeros((SIZE, SIZE), np.uint8))
        samples.append(
            Sample(
                number=number,
                image=before,
                valid=known,
                transform=(1.0, 0.0, 500_000.0 + SIZE * number, 0.0, -1.0, 5_000_000.0 + 10_000 * seed),
                mask=np.where(known, mask, 0).astype(np.uint8),
                objects=labels(boxes),
                instances=layers,
                value=value,
                known=known,
                image2=after if pairs else None,
                valid2=known if pairs else None,
                known2=known if pairs else None,
            )
        )
    export(folder, metadata_format, samples, ClassSchema.from_values(CLASSES))
    return open_training_data(folder)


@pytest.mark.parametrize(("model_type", "metadata_format", "arguments", "measures"), CASES)
def test_chips_are_judged_as_by_a_training(
    model_type: str,
    metadata_format: str,
    arguments: dict[str, str],
    measures: tuple[str, ...],
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    pairs = model_type == "CHANGEDETECTOR"
    data, apart = (
        chips(tmp_path / name, metadata_format, count, seed=seed, pairs=pairs)
        for seed, (name, count) in enumerate((("data", 16), ("apart", 9)), start=1)
    )
    parameters = TrainParameters.model_validate(
        {
            "in_folder": ["x"],
            "output_name": "m",
            "model_type": model_type,
            "backbone_model": "timm:lcnet_035",
            "max_epochs": 6,
            "learning_rate": 0.004,
            "batch_size": 4,
            "processor_type": "CPU",
            "model_arguments": [
                {"name": name, "value": value} for name, value in {"pretrained": "False", **arguments}.items()
            ],
        }
    )
    result = train_model(
        parameters,
        [data],
        tmp_path,
        tracker=Tracker.disabled(),
        progress=lambda _fraction, _what: None,
        validation=[apart],
    )
    package = open_package(result.package, tmp_path / "cache")
    given = {"threshold": "0.05"} if "ap" in measures else {}
    found = apply_to_chips(package, apart, name="apart", processor="CPU", arguments=given)
    asked = ComparisonParameters(
        model_name="m", evaluation_data="apart", bootstrap_replicates=100, min_iou=0.4
    )
    compared = compare_chips({CHALLENGER: found}, asked)
    for name in CLASSES.values():
        row = compared.values[CHALLENGER][compared.names.index(name)]
        for measure in measures:
            value = float(row[compared.measures.index(measure)])
            expected = result.metrics["per_class"][name][measure]
            known = np.nan if expected is None else expected
            told = json.dumps(result.metrics["per_class"])
            assert value == pytest.approx(known, abs=2e-3, nan_ok=True), told
