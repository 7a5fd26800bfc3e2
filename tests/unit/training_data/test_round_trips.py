"""What is written is what is read: pixels, class values, objects and places, for any content."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import BadInputError, TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import (
    layout,
    open_training_data,
    read_boxes,
    read_chip_image,
    read_chip_image2,
    read_class_mask,
    read_instances,
)
from tasks.training_data.sample import Sample
from tests.unit.training_data.exports import export

CELL = 0.5
CLASSES = ClassSchema.from_values({1: "Building", 2: "Palm tree", 300: "Straße"})
CHIP_FORMATS = {"TIFF": "float32", "PNG": "uint16", "MRF": "int32"}


def place(number: int, angle: float = 0.0) -> tuple[float, ...]:
    moved = Affine.translation(500_000 + 100 * number, 5_000_000)
    return tuple(moved @ Affine.rotation(angle) @ Affine.scale(CELL, -CELL))[:6]


def picture(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return random.uniform(0, 250, shape).astype(dtype)


def sample(seed: int, number: int, size: tuple[int, int], **values: Any) -> Sample:
    random = np.random.default_rng([seed, number])
    given_values = {
        "image": picture(random, values.pop("dtype", "uint8"), (3, *size)),
        "valid": random.random(size) < 0.8,
        "transform": place(number),
        **values,
    }
    return Sample(number=number, **given_values)


def instances(random: np.random.Generator, size: tuple[int, int]) -> dict[int, np.ndarray[Any, Any]]:
    """Numbered rectangles, later on top, dense, for some of the classes."""
    found = {}
    for value in CLASSES.values:
        mask = np.zeros(size, np.uint16)
        for number in range(1, int(random.integers(0, 5)) + 1):
            top, left = random.integers(0, size[0]), random.integers(0, size[1])
            mask[top : top + int(random.integers(1, 9)), left : left + int(random.integers(1, 9))] = number
        present = np.unique(mask[mask > 0])
        if len(present):
            found[value] = np.where(mask > 0, np.searchsorted(present, mask) + 1, 0).astype(np.uint16)
    return found


def dense(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values = [value for value in np.unique(mask) if value]
    out = np.zeros_like(mask)
    for number, value in enumerate(values, start=1):
        out[mask == value] = number
    return out


def seen_mask(item: Sample) -> np.ndarray[Any, Any]:
    assert item.mask is not None
    return np.where(item.valid, item.mask, 0)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    chip_format=st.sampled_from(sorted(CHIP_FORMATS)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_classified_tiles_give_back_masks_pictures_and_counts(
    seed: int, chip_format: str, size: tuple[int, int]
) -> None:
    random = np.random.default_rng(seed)
    samples = [
        sample(
            seed,
            number,
            size,
            dtype=CHIP_FORMATS[chip_format],
            mask=random.choice(np.array([0, *CLASSES.values], np.uint16), size),
        )
        for number in (0, 3)
    ]
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), "Classified_Tiles", samples, CLASSES, chip_format=chip_format)
        data = open_training_data(Path(folder))
        masks = [read_class_mask(chip) for chip in data.chips]
        pictures = [read_chip_image(chip) for chip in data.chips]
        stats = json.loads((Path(folder) / layout.ACCUMULATED_STATS).read_text())
    assert data.classes == CLASSES
    expected = [seen_mask(item) for item in samples]
    for item, mask, image, wanted in zip(samples, masks, pictures, expected, strict=True):
        np.testing.assert_array_equal(mask, wanted)
        assert mask.dtype == np.uint16
        np.testing.assert_array_equal(image, item.image)
        assert image.dtype == item.image.dtype
    counted = stats["ClassPixelStats"]["NumPixelsPerClass"]
    assert counted == [sum(int((mask == value).sum()) for mask in expected) for value in CLASSES.values]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.tuples(st.integers(2, 40), st.integers(2, 40)))
def test_rcnn_masks_give_back_objects_their_boxes_and_classes(seed: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    samples = [sample(seed, number, size, instances=instances(random, size)) for number in (0, 1)]
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), "RCNN_Masks", samples, CLASSES)
        data = open_training_data(Path(folder))
        found = [read_instances(chip) for chip in data.chips]
        boxes = [read_boxes(chip) for chip in data.chips]
        masks = [read_class_mask(chip) for chip in data.chips]
        stats = json.loads((Path(folder) / layout.ACCUMULATED_STATS).read_text())
    assert data.classes.names == ("Building", "Palm_tree", "Straße")
    total = dict.fromkeys(CLASSES.values, 0)
    for item, got, got_boxes, got_mask in zip(samples, found, boxes, masks, strict=True):
        assert item.instances is not None
        seen = {value: dense(np.where(item.valid, mask, 0)) for value, mask in item.instances.items()}
        seen = {value: mask for value, mask in seen.items() if mask.any()}
        assert sorted(got) == sorted(seen)
        expected_boxes, flat = [], np.zeros(size, int)
        for value, mask in sorted(seen.items()):
            np.testing.assert_array_equal(got[value], mask)
            flat[mask > 0] = value
            total[value] += int(mask.max())
            for number in range(1, int(mask.max()) + 1):
                rows, cols = np.nonzero(mask == number)
                expected_boxes.append((value, cols.min(), rows.min(), cols.max() + 1, rows.max() + 1))
        assert got_boxes == expected_boxes
        np.testing.assert_array_equal(got_mask, flat)
    assert stats["FeatureStats"]["NumFeaturesPerClass"] == list(total.values())
    assert stats["OutputFeatures"] is True


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.tuples(st.integers(2, 30), st.integers(2, 30)))
def test_panoptic_folders_hold_objects_in_both_maps(seed: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(seed)
    stuff = ClassSchema.from_values({1: "Building", 9: "Water"})
    things = ClassSchema.from_values({2: "Palm tree", 300: "Straße"})
    samples = []
    for number in range(2):
        objects = {value: mask for value, mask in instances(random, size).items() if value != 1}
        mask = random.choice(np.array([0, 1, 9], np.uint8), size)
        samples.append(sample(seed, number, size, mask=mask, instances=objects))
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), "Panoptic_Segmentation", samples, stuff, instance_classes=things)
        data = open_training_data(Path(folder))
        found = [(read_class_mask(chip), read_instances(chip)) for chip in data.chips]
        stats = json.loads((Path(folder) / layout.ACCUMULATED_STATS).read_text())
    assert data.classes.values == (1, 2, 9, 300)
    assert data.instance_classes is not None
    assert data.instance_classes.names == ("Palm_tree", "Straße")
    totals = dict.fromkeys(data.classes.values, 0)
    for item, (semantic, got) in zip(samples, found, strict=True):
        assert item.instances is not None
        expected = seen_mask(item).astype(int)
        for value, numbers in sorted(item.instances.items()):
            seen = dense(np.where(item.valid, numbers, 0))
            expected[seen > 0] = value
            if seen.any():
                np.testing.assert_array_equal(got[value], seen)
            else:
                assert value not in got
        np.testing.assert_array_equal(semantic, expected)
        assert semantic.dtype == np.uint16
        for value in totals:
            totals[value] += int((expected == value).sum())
    assert stats["ClassPixelStats"]["NumPixelsPerClass"] == list(totals.values())


def test_pairs_of_pictures_without_labels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    samples = [
        sample(0, number, (8, 9), image2=picture(random, "uint16", (5, 8, 9)), valid2=np.ones((8, 9), bool))
        for number in range(3)
    ]
    export(tmp_path, "Export_Tiles", samples, ClassSchema(()))
    data = open_training_data(tmp_path)
    assert len(data.classes) == 0
    for item, chip in zip(samples, data.chips, strict=True):
        assert item.image2 is not None
        np.testing.assert_array_equal(read_chip_image(chip), item.image)
        np.testing.assert_array_equal(read_chip_image2(chip), item.image2)
    first = np.stack([item.image2 for item in samples if item.image2 is not None])[:, 0]
    assert data.declared_stats2[0].mean == pytest.approx(first.mean())
    assert len(data.declared_stats2) == 5
    assert (
        (tmp_path / layout.MAP).read_bytes().startswith(b"images\\000000000.tif  images2\\000000000.tif \r\n")
    )
    with pytest.raises(TrainingDataError, match="no class masks"):
        read_class_mask(data.chips[0])


def test_pictures_of_one_raster_have_no_second(tmp_path: Path) -> None:
    export(tmp_path, "Export_Tiles", [sample(0, 0, (8, 8))], ClassSchema(()))
    data = open_training_data(tmp_path)
    with pytest.raises(TrainingDataError, match="no second picture"):
        read_chip_image2(data.chips[0])


def test_the_two_sides_of_an_image_translation(tmp_path: Path) -> None:
    first, second = [sample(0, number, (8, 8)) for number in range(3)], [sample(1, 5, (8, 8), dtype="uint16")]
    export(tmp_path / "A", "CycleGAN", first, ClassSchema(()))
    export(tmp_path / "B", "CycleGAN", second, ClassSchema(()))
    data = open_training_data(tmp_path)
    assert data.metadata_format == "CycleGAN"
    assert data.folder == tmp_path
    assert [chip.stem for chip in data.chips] == ["000000000", "000000001", "000000002"]
    assert data.other is not None
    np.testing.assert_array_equal(read_chip_image(data.other.chips[0]), second[0].image)


def test_change_detection_has_two_pictures_and_a_mask(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    mask = random.choice(np.array([0, 1], np.uint8), (8, 8))
    later = picture(random, "uint8", (3, 8, 8))
    item = sample(0, 0, (8, 8), mask=mask, image2=later, valid2=np.ones((8, 8), bool))
    export(tmp_path, "Classified_Tiles", [item], ClassSchema.from_values({1: "Changed"}), chip_format="PNG")
    (chip,) = open_training_data(tmp_path).chips
    np.testing.assert_array_equal(read_chip_image2(chip), later)
    np.testing.assert_array_equal(read_class_mask(chip), np.where(item.valid, mask, 0))
    assert sorted(path.name for path in (tmp_path / "images2").iterdir()) == [
        "000000000.pgw",
        "000000000.png",
    ]


@pytest.mark.parametrize("chip_format", sorted(CHIP_FORMATS))
@pytest.mark.parametrize("angle", [0, 90, 30])
def test_the_footprint_of_a_turned_chip_bounds_its_corners(
    tmp_path: Path, chip_format: str, angle: float
) -> None:
    dtype = CHIP_FORMATS[chip_format]
    item = sample(0, 0, (8, 20), transform=place(0, angle), dtype=dtype)
    export(tmp_path, "Export_Tiles", [item], ClassSchema(()), chip_format=chip_format)
    (chip,) = open_training_data(tmp_path).chips
    corners = [Affine(*item.transform) @ corner for corner in ((0, 0), (20, 0), (0, 8), (20, 8))]
    xs, ys = zip(*corners, strict=True)
    assert chip.footprint == pytest.approx((min(xs), min(ys), max(xs), max(ys)), abs=1e-6)


def test_a_value_must_mean_one_class_in_both_inputs(tmp_path: Path) -> None:
    stuff, things = ClassSchema.from_values({1: "Road"}), ClassSchema.from_values({1: "Car"})
    item = sample(0, 0, (8, 8), mask=np.zeros((8, 8), np.uint8), instances={})
    with pytest.raises(BadInputError, match="'Road' of input_class_data and 'Car'"):
        export(tmp_path, "Panoptic_Segmentation", [item], stuff, instance_classes=things)
    with pytest.raises(BadInputError, match="input_instance_data"):
        export(tmp_path, "Panoptic_Segmentation", [item], stuff)
