"""Labeled_Tiles: a chip has the class of the object that it was cut around."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import labeled_tiles
from tasks.training_data.pascal_voc import encode_annotation
from tasks.training_data.sample import Folder
from tests.unit.training_data.samples import context, read, sample, write


def test_classes_and_boxes_come_back(tmp_path: Path) -> None:
    around = (2, 40.0, 30.0, 88.0, 98.0)
    write("Labeled_Tiles", [sample(0, [(1, 0, 0, 9, 9), around], value=2), sample(5, value=1)], tmp_path)
    first, second = read("Labeled_Tiles", tmp_path)
    assert (first.values, labeled_tiles.FORMAT.boxes(first)) == ((2,), [around])
    # An object that is not among those in the chip is the chip.
    assert (second.values, labeled_tiles.FORMAT.boxes(second)) == ((1,), [(1, 0.0, 0.0, 128.0, 128.0)])


@given(
    others=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=5),
    at=st.integers(0, 5),
)
def test_of_several_objects_of_its_class_the_one_in_the_centre_counts(
    others: list[tuple[int, int]], at: int
) -> None:
    boxes = [(1, float(x), float(y), x + 40.0, y + 30.0) for x, y in others]
    centred = (1, 50.0, 56.0, 78.0, 72.0)
    boxes.insert(at, centred)
    files, record = labeled_tiles.FORMAT.encode(sample(0, boxes, value=1), context())
    assert b"<xmin>50.00</xmin>" in files[-1].data
    assert files[-1].data.count(b"<object>") == 1
    assert record.areas == {1: [28 * 16 / 4]}


def test_of_several_objects_in_a_file_the_first_counts(tmp_path: Path) -> None:
    write("Labeled_Tiles", [sample(0, value=1)], tmp_path)
    boxes = [("Tree", 1.0, 2.0, 3.0, 4.0), ("1", 5.0, 5.0, 7.0, 7.0)]
    (tmp_path / "labels/000000000.xml").write_bytes(
        encode_annotation("0.png", (3, 128, 128), boxes, source="another")
    )
    (chip,) = read("Labeled_Tiles", tmp_path)
    assert (chip.values, labeled_tiles.FORMAT.boxes(chip)) == ((2,), [(2, 1.0, 2.0, 3.0, 4.0)])


def test_a_chip_without_object_has_no_class(tmp_path: Path) -> None:
    (record,) = write("Labeled_Tiles", [sample(0)], tmp_path)
    assert record.areas == {}
    (chip,) = read("Labeled_Tiles", tmp_path)
    assert chip.values == ()


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    write("Labeled_Tiles", [sample(0, value=2)], tmp_path)
    with pytest.raises(TrainingDataError, match="class '2'"):
        read("Labeled_Tiles", tmp_path, ClassSchema.from_values({1: "Building"}))


def test_classes_without_side_files(tmp_path: Path) -> None:
    write("Labeled_Tiles", [sample(0, value=2)], tmp_path)
    found = labeled_tiles.FORMAT.find_classes(Folder(tmp_path, ClassSchema(()), {}, {}, ()))
    assert found is not None
    assert found.values == (2,)
