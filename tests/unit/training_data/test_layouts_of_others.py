"""Folders that others wrote: old layouts, missing side files, and what cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import TrainingDataError
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
from tasks.training_data.images import encode_image
from tasks.training_data.masks import encode_label
from tasks.training_data.sample import Sample
from tests.unit.training_data.exports import export

PLACE = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0)
PICTURE = np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8)
CLASSES = ClassSchema.from_values({1: "Building", 4: "Tree"})
SIDE_FILES = (layout.MAP, layout.STATS, layout.ACCUMULATED_STATS, layout.DEFINITION)


def objects(*values: int) -> dict[int, np.ndarray[Any, Any]]:
    """Two objects of each class; classes side by side."""
    found = {}
    for index, value in enumerate(values):
        mask = np.zeros((8, 8), np.uint8)
        mask[4 * index : 4 * index + 2, 0:3], mask[4 * index + 2, 4:6] = 1, 2
        found[value] = mask
    return found


def sample(number: int = 0, **values: object) -> Sample:
    return Sample(number, PICTURE, np.ones((8, 8), bool), PLACE, **values)  # type: ignore[arg-type]


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def picture() -> bytes:
    return encode_image(PICTURE, "TIFF", PLACE, None)


@pytest.fixture
def rcnn(tmp_path: Path) -> Path:
    export(
        tmp_path,
        "RCNN_Masks",
        [sample(0, instances=objects(1, 4)), sample(1, instances=objects(4)), sample(2, instances={})],
        CLASSES,
    )
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_old_change_detection_without_side_files(tmp_path: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4] = 1
    for name in ("images_before", "images_after"):
        put(tmp_path / name / "a.tif", picture())
    put(tmp_path / "labels" / "a.tif", encode_label(mask, PLACE, None))
    data = open_training_data(tmp_path)
    assert data.metadata_format == "Classified_Tiles"
    assert data.classes.values == (255,)
    np.testing.assert_array_equal(read_class_mask(data.chips[0]), mask * 255)
    np.testing.assert_array_equal(read_chip_image2(data.chips[0]), PICTURE)


def test_old_sides_of_image_translation(tmp_path: Path) -> None:
    for side, names in (("train_a", "ab"), ("train_b", "c")):
        for name in names:
            put(tmp_path / "Images" / side / f"{name}.tif", picture())
    data = open_training_data(tmp_path)
    assert data.metadata_format == "CycleGAN"
    assert [chip.stem for chip in data.chips] == ["a", "b"]
    assert data.other is not None
    assert [chip.stem for chip in data.other.chips] == ["c"]


def test_the_root_of_an_image_translation_needs_no_side_files(tmp_path: Path) -> None:
    for side in "AB":
        export(tmp_path / side, "CycleGAN", [sample()], ClassSchema(()))
    assert not (tmp_path / layout.DEFINITION).exists()
    assert open_training_data(tmp_path).other is not None


def test_pairs_of_pictures_without_side_files(tmp_path: Path) -> None:
    for folder in ("images", "images2"):
        put(tmp_path / folder / "0.tif", picture())
    data = open_training_data(tmp_path)
    assert data.metadata_format == "Export_Tiles"
    assert data.chips[0].image2 == tmp_path / "images2" / "0.tif"


def test_masks_of_objects_without_side_files_name_their_classes(rcnn: Path) -> None:
    for name in SIDE_FILES:
        (rcnn / name).unlink()
    data = open_training_data(rcnn)
    assert data.metadata_format == "RCNN_Masks"
    assert dict(zip(data.classes.names, data.classes.values, strict=True)) == {"Building": 1, "Tree": 2}
    assert sorted(read_instances(data.chips[0])) == [1, 2]


def test_a_picture_without_masks_is_one_without_objects(rcnn: Path) -> None:
    data = open_training_data(rcnn)
    assert [len(read_boxes(chip)) for chip in data.chips] == [4, 2, 0]
    assert not read_class_mask(data.chips[2]).any()


def test_folders_with_blanks_as_arcgis_may_name_them(rcnn: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["Classes"][0]["Name"] = "Big building"

    (rcnn / "labels" / "Building").rename(rcnn / "labels" / "Big building")
    edit(rcnn / layout.DEFINITION, rename)
    data = open_training_data(rcnn)
    assert data.classes.names == ("Big building", "Tree")
    assert sorted(read_instances(data.chips[0])) == [1, 4]


def test_bands_of_a_mask_hold_objects_of_their_own(rcnn: Path) -> None:
    bands = np.zeros((2, 8, 8), np.uint8)
    bands[0, 0, 0:2], bands[0, 1], bands[1, 5] = 1, 2, 1
    (rcnn / "labels" / "Tree" / "000000001.tif").write_bytes(encode_image(bands, "TIFF", PLACE, None))
    numbers = read_instances(open_training_data(rcnn).chips[1])[4]
    assert (numbers[0, 0], numbers[1, 0], numbers[5, 0], numbers[7, 0]) == (1, 2, 3, 0)


def test_older_spellings_placeholders_and_counts_as_floats(rcnn: Path) -> None:
    def older(content: dict[str, Any]) -> None:
        content["Classes"] = [{"ClassValue": 0, "ClassName": "Background"}] + [
            {"ClassValue": item["Value"], "ClassName": item["Name"]} for item in content["Classes"]
        ]
        content["ImageHeight"], content["MinCellSize"] = "e.g. 256", "e.g. 1"
        del content["AllTilesStats"]

    def floats(content: dict[str, Any]) -> None:
        content["NumTilesAsDouble"] = float(content.pop("NumTiles"))
        content["NumBands"] = 3.0

    edit(rcnn / layout.DEFINITION, older)
    edit(rcnn / layout.ACCUMULATED_STATS, floats)
    data = open_training_data(rcnn)
    assert data.classes.values == (1, 4)
    assert data.band_stats[0].mean == pytest.approx(PICTURE[0].mean())
    assert data.cell_size == pytest.approx((0.5, 0.5))


def test_no_classes_at_all_are_fine_where_nothing_is_labelled(tmp_path: Path) -> None:
    export(tmp_path, "Export_Tiles", [sample()], ClassSchema(()))
    assert json.loads((tmp_path / layout.DEFINITION).read_text())["Classes"] == []
    (tmp_path / layout.MAP).unlink()
    assert len(open_training_data(tmp_path).chips) == 1


def test_a_layout_that_could_be_of_several_formats_must_be_named(tmp_path: Path) -> None:
    mask = np.ones((8, 8), np.uint8)
    put(tmp_path / "images" / "0.tif", picture())
    put(tmp_path / "labels" / "0.tif", encode_label(mask, PLACE, None))
    with pytest.raises(TrainingDataError, match="holds neither"):
        open_training_data(tmp_path)
    with pytest.raises(TrainingDataError, match="names no classes"):
        open_training_data(tmp_path, "Classified_Tiles")
    with pytest.raises(TrainingDataError, match="Point_Clouds"):
        open_training_data(tmp_path, "Point_Clouds")


def test_side_files_without_a_format_say_so(tmp_path: Path) -> None:
    put(tmp_path / layout.DEFINITION, b"{}")
    with pytest.raises(TrainingDataError, match='Write "MetaDataMode"'):
        open_training_data(tmp_path)


def test_side_files_that_are_no_json_are_refused(tmp_path: Path) -> None:
    put(tmp_path / layout.DEFINITION, b"{")
    with pytest.raises(TrainingDataError, match="is not JSON"):
        open_training_data(tmp_path)


def test_a_mask_of_another_size_is_refused(rcnn: Path) -> None:
    small = encode_label(np.ones((4, 8), np.uint8), PLACE, None)
    (rcnn / "labels" / "Tree" / "000000001.tif").write_bytes(small)
    with pytest.raises(TrainingDataError, match="4 rows of 8 pixels"):
        read_instances(open_training_data(rcnn).chips[1])


def test_a_mask_that_is_cut_off_is_refused(rcnn: Path) -> None:
    path = rcnn / "labels" / "Tree" / "000000001.tif"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(TrainingDataError, match="cannot be read"):
        read_instances(open_training_data(rcnn).chips[1])


def test_negative_object_numbers_are_refused(rcnn: Path) -> None:
    negative = encode_image(np.full((1, 8, 8), -1, np.int16), "TIFF", PLACE, None)
    (rcnn / "labels" / "Tree" / "000000001.tif").write_bytes(negative)
    with pytest.raises(TrainingDataError, match="negative"):
        read_instances(open_training_data(rcnn).chips[1])


def test_a_folder_without_pictures_is_refused(rcnn: Path) -> None:
    (rcnn / "images").rename(rcnn / "pictures")
    with pytest.raises(TrainingDataError, match="no folder images"):
        open_training_data(rcnn)


def test_a_panoptic_picture_without_semantic_map_is_dropped(tmp_path: Path) -> None:
    mask = np.ones((8, 8), np.uint8)
    samples = [sample(number, mask=mask, instances=objects(4)) for number in (0, 1)]
    things = ClassSchema.from_values({4: "Tree"})
    export(tmp_path, "Panoptic_Segmentation", samples, CLASSES, instance_classes=things)
    (tmp_path / "labels" / "000000000.tif").unlink()
    data = open_training_data(tmp_path)
    assert [chip.stem for chip in data.chips] == ["000000001"]
    assert data.dropped == 1
    assert list(read_instances(data.chips[0])) == [4]
    np.testing.assert_array_equal(read_chip_image(data.chips[0]), PICTURE)
