"""Every byte of a label, for the geometry that docs/formats/training-data.md uses as its example.

The expected files are written by hand. All lines end with LF.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training_data.samples import sample, write

GOLDEN = Path(__file__).parent / "golden" / "formats"
BOXES = [(1, 10.0, 20.0, 40.0, 60.0), (2, 70.25, 0.0, 128.0, 35.75)]


@pytest.mark.parametrize(
    ("name", "written", "golden"),
    [
        ("PASCAL_VOC_rectangles", "labels/000000000.xml", "PASCAL_VOC_rectangles.xml"),
        ("KITTI_rectangles", "labels/000000000.txt", "KITTI_rectangles.txt"),
        ("MultiLabeled_Tiles", "labels/000000000.xml", "MultiLabeled_Tiles.xml"),
        ("YOLO_rectangles", "labels/000000000.txt", "YOLO_rectangles.txt"),
        ("YOLO_rectangles", "data.yaml", "YOLO_rectangles.data.yaml"),
        ("YOLO_rectangles", "classes.txt", "YOLO_rectangles.classes.txt"),
        ("COCO_rectangles", "labels.json", "COCO_rectangles.json"),
    ],
)
def test_the_labels_of_a_chip_at_a_position(tmp_path: Path, name: str, written: str, golden: str) -> None:
    write(name, [sample(0, BOXES), sample(3)], tmp_path)
    assert (tmp_path / written).read_bytes() == (GOLDEN / golden).read_bytes()


def test_the_label_of_a_chip_around_a_feature(tmp_path: Path) -> None:
    boxes = [(1, 0.0, 0.0, 50.0, 128.0), (2, 40.0, 30.5, 88.0, 97.5), (2, 90.0, 60.0, 128.0, 70.0)]
    write("Labeled_Tiles", [sample(0, boxes, value=2)], tmp_path)
    assert (tmp_path / "labels/000000000.xml").read_bytes() == (GOLDEN / "Labeled_Tiles.xml").read_bytes()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("PASCAL_VOC_rectangles", b"images\\000000000.png  labels\\000000000.xml \r\n"),
        ("KITTI_rectangles", b"images\\000000000.png  labels\\000000000.txt \r\n"),
        ("YOLO_rectangles", b"images\\000000000.png  labels\\000000000.txt \r\n"),
        ("Labeled_Tiles", b"images\\000000000.png  labels\\000000000.xml \r\n"),
        ("MultiLabeled_Tiles", b"images\\000000000.png  labels\\000000000.xml \r\n"),
        ("Imagenet", b"images\\Building\\000000000.png \r\n"),
    ],
)
def test_the_line_of_a_chip_in_the_map(tmp_path: Path, name: str, line: bytes) -> None:
    write(name, [sample(0, BOXES, value=1)], tmp_path)
    assert (tmp_path / "map.txt").read_bytes() == line


@pytest.mark.parametrize(
    "name", ["PASCAL_VOC_rectangles", "KITTI_rectangles", "YOLO_rectangles", "COCO_rectangles"]
)
def test_features_are_counted_by_their_area_on_the_map(tmp_path: Path, name: str) -> None:
    (record,) = write(name, [sample(0, BOXES)], tmp_path)
    # Cells of 0.5 by 0.5 map units.
    assert record.areas == {1: [1200 / 4], 2: [57.75 * 35.75 / 4]}


def test_coco_has_no_map_so_that_arcgis_reads_its_labels(tmp_path: Path) -> None:
    write("COCO_rectangles", [sample(0, BOXES)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "labels.json"}


@pytest.mark.parametrize("name", ["Labeled_Tiles", "Imagenet"])
def test_of_a_chip_around_a_feature_only_that_is_counted(tmp_path: Path, name: str) -> None:
    boxes = [(1, 0.0, 0.0, 50.0, 128.0), (1, 40.0, 30.0, 88.0, 98.0), (2, 60.0, 60.0, 70.0, 70.0)]
    (record,) = write(name, [sample(0, boxes, value=1)], tmp_path)
    assert record.areas == {1: [48 * 68 / 4]}
