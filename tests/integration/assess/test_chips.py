"""Packages applied to chips, each in a host of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from tasks.assess.chip_results import ChipResults, apply_to_chips
from tasks.errors import BadInputError
from tasks.labels import ClassSchema
from tasks.package import ModelDefinition, open_package, write_dlpk
from tasks.settings import settings
from tasks.training_data import TrainingData, open_training_data
from tasks.training_data.sample import Sample
from tests.integration.infer import functions
from tests.unit.training_data.exports import export
from tests.unit.training_data.samples import labels

SIZE = 48
KINDS = {
    "pixels": (functions.CLASSIFIER, "BrightClassifier", "ImageClassification", {1: "Dark", 2: "Bright"}),
    "objects": (functions.DETECTOR, "BlobDetector", "ObjectDetection", {7: "Blob"}),
    "pairs": (functions.PAIRS, "PairComparer", "ImageClassification", {1: "Same", 2: "Brighter"}),
    "labels": (functions.OBJECTS, "MeanClassifier", "ObjectClassification", {1: "Dark", 2: "Bright"}),
}


@pytest.fixture(autouse=True)
def uncontained(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CHIPLINE_ALLOW_UNCONTAINED", "true")
    settings.cache_clear()
    yield
    settings.cache_clear()


def apply(kind: str, data: TrainingData, folder: Path, **arguments: str) -> ChipResults:
    source, name, model_type, classes = KINDS[kind]
    keys: dict[str, Any] = {
        "ModelType": model_type,
        "InferenceFunction": f"{name}.py",
        "ImageHeight": 64,
        "ImageWidth": 64,
        "ExtractBands": [0, 1, 2] * (1 if kind != "pairs" else 2),
        "Classes": [{"Value": v, "Name": n, "Color": [1, 2, 3]} for v, n in classes.items()],
    }
    if kind == "pairs":
        keys |= {"ModelName": "ChangeDetector", "ExtractBands": list(range(6))}
    path = folder / "p.dlpk"
    write_dlpk(path, ModelDefinition.model_validate(keys), {f"{name}.py": source.encode()})
    package = open_package(path, folder / "cache")
    return apply_to_chips(package, data, name="chips", processor="CPU", arguments=arguments)


def samples(count: int = 5, *, second: bool = False) -> list[Sample]:
    random = np.random.default_rng(6)
    made = []
    for number in range(count):
        image = ndimage.uniform_filter(random.uniform(0, 255, (3, SIZE, SIZE)), (0, 5, 5))
        image = np.clip((image - 128) * 4 + 128, 0, 255).astype(np.uint8)
        valid = np.ones((SIZE, SIZE), bool)
        valid[:6, :9] = number % 2 == 0
        image[:, ~valid] = 0
        found, _ = ndimage.label(image[0] > 128)
        boxes = [(7, c.start, r.start, c.stop, r.stop) for r, c in ndimage.find_objects(found)]
        mask = np.where(random.random((SIZE, SIZE)) < 0.5, 1, 2).astype(np.uint8)
        made.append(
            Sample(
                number=number,
                image=image,
                valid=valid,
                transform=(0.5, 0.0, 500_000.0 + 24 * number, 0.0, -0.5, 5_000_000.0),
                mask=mask,
                objects=labels(boxes),
                value=1 + number % 2,
                instances={1: (found == 1).astype(np.uint8)},
                known=valid,
                image2=image[:, ::-1].copy() if second else None,
                valid2=valid[::-1].copy() if second else None,
                known2=valid[::-1].copy() if second else None,
            )
        )
    return made


@pytest.fixture
def chips(tmp_path: Path) -> Callable[..., tuple[TrainingData, list[Sample]]]:
    def make(
        metadata_format: str, classes: dict[int, str], **values: Any
    ) -> tuple[TrainingData, list[Sample]]:
        made = samples(**values)
        export(tmp_path / metadata_format, metadata_format, made, ClassSchema.from_values(classes))
        return open_training_data(tmp_path / metadata_format), made

    return make


def test_pixels_where_chips_hold_data(chips: Any, tmp_path: Path) -> None:
    data, made = chips("Classified_Tiles", KINDS["pixels"][3])
    found = apply("pixels", data, tmp_path, padding="4")
    assert (found.kind, found.device, found.classes) == ("pixels", "cpu", {1: "Dark", 2: "Bright"})
    for sample, chip in zip(made, found.chips, strict=True):
        total = np.pad(sample.image.astype(np.int64).sum(axis=0), 11)  # nothing is around a chip
        mean = ndimage.uniform_filter(total.astype(float), 7)[11:-11, 11:-11]
        answer = np.where(mean > 3 * 128, 2, 1)
        mask = np.where(sample.valid, sample.mask, 0)
        pairs = {
            (t, f): int(((mask == t) & (answer == f) & sample.valid).sum()) for t in (1, 2) for f in (1, 2)
        }
        assert {pair[:2]: pair[2] for pair in chip.pixels} == {p: n for p, n in pairs.items() if n}
        assert chip.footprint is not None
    with pytest.raises(BadInputError, match=r"up to 48 x 48 pixels.*32 x 32 at a time"):
        apply("pixels", data, tmp_path, tile="32")


def test_objects_with_their_confidences(chips: Any, tmp_path: Path) -> None:
    import shapely

    data, made = chips("PASCAL_VOC_rectangles", {7: "Blob"})
    found = apply("objects", data, tmp_path)
    assert sum(len(chip.found_objects) for chip in found.chips) > 20
    for sample, chip in zip(made, found.chips, strict=True):
        assert sample.objects is not None
        expected = sorted(map(tuple, sample.objects.boxes.tolist()))
        assert {name for name, *_ in chip.found_objects} <= {"Blob"}
        for shapes in ([item[1] for item in chip.true_objects], [item[2] for item in chip.found_objects]):
            bounds = shapely.bounds(shapely.from_wkb(shapes)).reshape(-1, 4).tolist()
            assert sorted(map(tuple, bounds)) == expected
        for _, confidence, shape in chip.found_objects:
            left, _, right, _ = shapely.bounds(shapely.from_wkb(shape))
            assert confidence == 50 + right - left
    with pytest.raises(BadInputError, match=r"holds PASCAL_VOC_rectangles, in which there are no masks"):
        apply("pixels", data, tmp_path)


def test_classes_of_chips_in_full_batches(chips: Any, tmp_path: Path) -> None:
    data, made = chips("Labeled_Tiles", {1: "Dark", 2: "Bright"})
    found = apply("labels", data, tmp_path)
    names = {1: "Dark", 2: "Bright"}
    for sample, chip in zip(made, found.chips, strict=True):
        mean = sample.image[:, sample.valid].mean()
        assert chip.found_labels == ["Bright" if mean > 128 else "Dark"]
        assert chip.true_labels == [names[sample.value or 0]]
    other, _ = chips("RCNN_Masks", {1: "Dark"})
    with pytest.raises(BadInputError, match=r"None of the classes of p \(Blob\) is among those of chips"):
        apply("objects", other, tmp_path)


def test_two_dates(chips: Any, tmp_path: Path) -> None:
    data, made = chips("Classified_Tiles", KINDS["pairs"][3], second=True)
    found = apply("pairs", data, tmp_path)
    for sample, chip in zip(made, found.chips, strict=True):
        assert sample.image2 is not None
        both = sample.valid & sample.valid[::-1]
        total = sample.image2.astype(np.int64).sum(axis=0) - sample.image.astype(np.int64).sum(axis=0)
        answer = np.where(total > 20, 2, 1)
        assert sum(count for _, _, count in chip.pixels) == both.sum()
        right = int(((answer == np.where(sample.valid, sample.mask, 0)) & both).sum())
        assert sum(count for true, given, count in chip.pixels if true == given) == right
    with pytest.raises(BadInputError, match="5 of the 5 chips of chips have two pictures"):
        apply("pixels", data, tmp_path)
