"""Imagenet: the folder of a chip is its class."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import imagenet
from tasks.training_data.sample import Folder
from tests.unit.training_data.samples import context, read, sample, write

NOTHING = ClassSchema(())


def test_classes_come_back_in_the_order_of_the_chips(tmp_path: Path) -> None:
    box = (1.0, 1.0, 9.0, 9.0)
    write(
        "Imagenet", [sample(i, [(value, *box)], value=value) for i, value in enumerate([2, 1, 2])], tmp_path
    )
    assert not (tmp_path / "labels").exists()
    chips = read("Imagenet", tmp_path)
    assert [(chip.stem, chip.values) for chip in chips] == [
        ("000000000", (2,)),
        ("000000001", (1,)),
        ("000000002", (2,)),
    ]
    assert chips[0].image == tmp_path / "images/Tree/000000000.png"


def test_names_that_are_no_folder_names_are_replaced(tmp_path: Path) -> None:
    classes = ClassSchema.from_values({1: "Old / Oak"})
    (record,) = write("Imagenet", [sample(0, value=1)], tmp_path, context(classes))
    # A blank would end the column of map.txt.
    assert len((tmp_path / "map.txt").read_text().split()) == 1
    (chip,) = read("Imagenet", tmp_path, imagenet.FORMAT.all_classes(context(classes)))
    assert chip.values == (1,)
    assert chip.image == tmp_path / record.paths[0]


def test_a_chip_without_class_has_no_place() -> None:
    with pytest.raises(ValueError, match="class"):
        imagenet.FORMAT.encode(sample(), context())


def test_pictures_beside_the_folders_are_dropped(tmp_path: Path) -> None:
    write("Imagenet", [sample(0, value=1)], tmp_path)
    (tmp_path / "images/stray.png").write_bytes(b"")
    chips, dropped = imagenet.FORMAT.chips(Folder(tmp_path, context().classes, {}, {}, ()))
    assert (len(chips), dropped) == (1, 1)


def test_a_folder_that_is_no_class_is_refused(tmp_path: Path) -> None:
    write("Imagenet", [sample(0, value=2)], tmp_path)
    with pytest.raises(TrainingDataError, match="Tree"):
        read("Imagenet", tmp_path, ClassSchema.from_values({1: "Building"}))


def test_a_folder_without_side_files(tmp_path: Path) -> None:
    write("Imagenet", [sample(0, value=2), sample(1, value=1)], tmp_path)
    assert imagenet.FORMAT.recognises(tmp_path)
    found = imagenet.FORMAT.find_classes(Folder(tmp_path, NOTHING, {}, {}, ()))
    assert found is not None
    assert found.names == ("Building", "Tree")


def test_other_folders_are_not_recognised(tmp_path: Path) -> None:
    write("KITTI_rectangles", [sample()], tmp_path)
    assert not imagenet.FORMAT.recognises(tmp_path)
    assert not imagenet.FORMAT.recognises(tmp_path / "missing")
