"""KITTI_rectangles: columns as ArcGIS's library wants them, and files that others wrote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import kitti
from tasks.training_data.rectangles import class_value
from tasks.training_data.sample import Folder
from tests.unit.training_data.samples import CLASSES, context, read, sample, write

REST = " 0.00 0 0.00 1.00 2.00 3.00 4.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00"
BOX = (1.0, 2.0, 3.0, 4.0)


@given(boxes=st.lists(st.tuples(st.integers(1, 9), *[st.floats(-500, 500)] * 4), max_size=4))
def test_every_column_is_a_number_that_begins_and_ends_with_a_digit(
    boxes: list[tuple[int, float, float, float, float]],
) -> None:
    files, _ = kitti.FORMAT.encode(sample(0, boxes, size=(16, 16)), context())
    text = files[-1].data.decode()
    for line in text.splitlines():
        columns = line.split(" ")
        assert len(columns) == 15
        assert all(re.fullmatch(r"\d+(\.\d+)?", column) for column in columns)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("1" + REST, "1"),
        ("  Tree" + REST + "\r", "Tree"),
        ("Old Tree" + REST, "Old Tree"),
        ("1" + REST + " 0.93", "1"),
        ("Tree" + REST + " 0.93", "Tree"),
        ("1 -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10", "1"),
    ],
)
def test_lines_that_others_write(tmp_path: Path, line: str, name: str) -> None:
    path = tmp_path / "0.txt"
    path.write_bytes(f"\ufeff{line}\n\n".encode())
    assert kitti.decode_lines(path) == [(name, *BOX)]


def test_a_number_after_the_class_belongs_to_it_where_a_class_says_so(tmp_path: Path) -> None:
    path = tmp_path / "0.txt"
    path.write_text("Tree 2" + REST)
    assert kitti.decode_lines(path, ClassSchema.from_values({1: "Tree 2"})) == [("Tree 2", *BOX)]


@pytest.mark.parametrize(
    "line", ["1 2 3", REST, "1" + REST[:-5], "1 x" + REST[5:], "1,2,3", "1" + REST + " 1 1"]
)
def test_wrong_columns_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "0.txt"
    path.write_text("\n" + line)
    # A line of 17 columns is an object of the class "1 0.00 0", which there is not.
    with pytest.raises(TrainingDataError):
        _ = [class_value(CLASSES, name, path) for name, *_ in kitti.decode_lines(path, CLASSES)]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingDataError, match="not text"):
        kitti.decode_lines(path)


def test_regions_that_nobody_labelled_are_no_objects(tmp_path: Path) -> None:
    write("KITTI_rectangles", [sample()], tmp_path)
    (tmp_path / "labels/000000000.txt").write_text(f"DontCare{REST}\nTree{REST}\n")
    (chip,) = read("KITTI_rectangles", tmp_path)
    assert kitti.FORMAT.boxes(chip) == [(2, *BOX)]
    found = kitti.FORMAT.find_classes(Folder(tmp_path, ClassSchema(()), {}, {}, ()))
    assert found is not None
    assert found.names == ("Tree",)


def test_a_folder_is_recognised_by_its_columns(tmp_path: Path) -> None:
    write("KITTI_rectangles", [sample(0), sample(1, [(1, *BOX)])], tmp_path / "a")
    write("YOLO_rectangles", [sample(0), sample(1, [(1, *BOX)])], tmp_path / "b")
    assert kitti.FORMAT.recognises(tmp_path / "a")
    assert not kitti.FORMAT.recognises(tmp_path / "b")
