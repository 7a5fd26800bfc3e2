"""COCO_rectangles: outlines, and label files that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import NotFoundError, TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import coco, coco_reader
from tasks.training_data.sample import Folder
from tests.unit.training_data.samples import CLASSES, read, sample, write

DOCUMENT: dict[str, Any] = {
    "info": {"year": 2017, "deep": [{"unused": [1, 2]}]},
    "annotations": [
        {"id": 900, "image_id": "a", "category_id": 18.0, "bbox": [1, 2, 3, 4], "score": 0.5},
        {
            "id": 901,
            "image_id": 7,
            "category_id": "18",
            "iscrowd": 1,
            "segmentation": {"counts": [1], "size": [1, 1]},
        },
        {
            "id": 907,
            "image_id": "7",
            "category_id": 3,
            "segmentation": [[5, 6, 9, 6, 9, 8], [2, 6, 3, 7, 2, 7]],
        },
    ],
    "images": [
        {"id": 7, "file_name": "train/000000000.png", "license": 4, "width": 128, "height": 128},
        {"id": "a", "file_name": "000000001.png", "coco_url": "http://example.org/1.png"},
        {"id": 12, "file_name": "not_here.jpg"},
    ],
    "licenses": None,
    "version": 12345,
    "numbers": [678, 90.5, 1e-30, "text"],
    "categories": [
        {"id": 18, "name": "Tree", "supercategory": "plant", "keypoints": ["root"]},
        {"id": 3, "name": "Building"},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write("COCO_rectangles", [sample(0), sample(1), sample(2)], tmp_path)
    (tmp_path / coco_reader.LABELS).write_text(json.dumps(DOCUMENT))
    return tmp_path


def test_a_foreign_file_is_understood(folder: Path) -> None:
    chips = read("COCO_rectangles", folder)
    assert [chip.stem for chip in chips] == ["000000000", "000000001"]
    assert coco.FORMAT.boxes(chips[0]) == [(1, 2.0, 6.0, 9.0, 8.0)]
    assert coco.FORMAT.boxes(chips[1]) == [(2, 1.0, 2.0, 4.0, 6.0)]
    assert coco_reader.read_labels(folder / coco_reader.LABELS, CLASSES).crowds == 1


def test_a_picture_that_the_file_does_not_list_is_dropped(folder: Path) -> None:
    _, dropped = coco.FORMAT.chips(Folder(folder, CLASSES, {}, {}, ()))
    assert dropped == 1


def test_categories_are_classes(folder: Path) -> None:
    found = coco.FORMAT.find_classes(Folder(folder, ClassSchema(()), {}, {}, ()))
    assert found is not None
    assert list(zip(found.values, found.names, strict=True)) == [(3, "Building"), (18, "Tree")]


@pytest.mark.parametrize("ids", [(0, 1), ("x", "y")])
def test_categories_without_usable_numbers_are_numbered(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    path = tmp_path / "labels.json"
    path.write_text(
        json.dumps({"categories": [{"id": ids[0], "name": "Palm"}, {"id": ids[1], "name": "Ash"}]})
    )
    found = coco_reader.classes_in(path)
    assert found is not None
    assert list(zip(found.values, found.names, strict=True)) == [(1, "Palm"), (2, "Ash")]


@given(size=st.integers(1, 40), indent=st.sampled_from([None, 1]))
@settings(max_examples=40, deadline=None)
def test_where_the_file_is_cut_into_pieces_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, size: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("coco") / "labels.json"
    path.write_text(json.dumps(DOCUMENT, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_reader, "_CHUNK", size)
        items = list(coco_reader._items(path))
    expected = [(key, item) for key, value in DOCUMENT.items() if isinstance(value, list) for item in value]
    assert items == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"image_id": 99, "category_id": 3, "bbox": [1, 1, 2, 2]}]}, "picture 99"),
        ({"annotations": [{"image_id": 7, "category_id": 4, "bbox": [1, 1, 2, 2]}]}, "category 4"),
        ({"annotations": [{"image_id": 7, "category_id": 3}]}, "lacks 'segmentation'"),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 1, 2]}]}, "cannot be understood"),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 1, float("nan"), 2]}]}, "nan"),
        ({"annotations": [{"category_id": 3, "bbox": [1, 1, 2, 2]}]}, "lacks 'image_id'"),
        ({"annotations": ["box"]}, "no object"),
        ({"images": [{"id": [], "file_name": "0.png"}]}, "no id"),
        ({"images": [{"id": 1, "file_name": "a/0.png"}, {"id": 2, "file_name": "b/0.png"}]}, "two pictures"),
    ],
)
def test_entries_that_make_no_sense_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / coco_reader.LABELS
    path.write_text(json.dumps(DOCUMENT | change))
    with pytest.raises(TrainingDataError, match=message):
        coco_reader.read_labels(path, CLASSES)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nonsense",
        '{"images": [',
        '{"images": [{"id": 1',
        '{"images" []}',
        "{1: 2}",
        '{"a": 1 "b": 2}',
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(TrainingDataError, match="not COCO"):
        coco_reader.read_labels(path, CLASSES)


def test_a_folder_without_label_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        coco_reader.read_labels(tmp_path / "labels.json", CLASSES)


def _area(ring: list[float]) -> Any:
    return shapely.Polygon(np.reshape(ring, (-1, 2)))


def test_holes_and_parts_are_drawn_without_holes() -> None:
    first: Any = shapely.box(0, 0, 40, 40) - shapely.box(5, 5, 10, 30) - shapely.box(20, 8, 33, 12)
    both: Any = shapely.MultiPolygon([first, shapely.box(50, 50, 60, 70)])
    parts = [_area(ring) for ring in coco.outlines(both)]
    assert all(part.is_valid for part in parts)
    union: Any = shapely.union_all(parts)
    assert union.symmetric_difference(both).area == pytest.approx(0, abs=1e-9)
    assert sum(part.area for part in parts) == pytest.approx(both.area)


def test_what_rounding_leaves_of_a_sliver_is_no_outline() -> None:
    assert coco.outlines(shapely.Polygon([(1, 1), (1.001, 1), (1, 1.001)])) == []


def test_the_labels_are_read_again_when_they_change(folder: Path) -> None:
    assert len(read("COCO_rectangles", folder)) == 2
    (folder / coco_reader.LABELS).write_text(
        json.dumps(DOCUMENT | {"images": DOCUMENT["images"][:1], "annotations": []})
    )
    assert len(read("COCO_rectangles", folder)) == 1
