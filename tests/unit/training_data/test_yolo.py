"""YOLO_rectangles: what a class number means, here and elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tasks.errors import BadInputError, TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import yolo
from tasks.training_data.sample import Folder
from tests.unit.training_data.samples import context, read, sample, write

NOTHING = ClassSchema(())
BOX = (1.0, 1.0, 9.0, 9.0)


def _others(folder: Path, line: str, **names: object) -> Path:
    write("YOLO_rectangles", [sample()], folder)
    (folder / "classes.txt").unlink()
    (folder / "data.yaml").unlink()
    if "yaml" in names:
        (folder / "data.yaml").write_text(yaml.safe_dump(names["yaml"]))
    if "txt" in names:
        (folder / "classes.txt").write_bytes(str(names["txt"]).encode())
    (folder / "labels/000000000.txt").write_bytes(line.encode())
    return folder


def _classes(folder: Path) -> ClassSchema:
    found = yolo.FORMAT.find_classes(Folder(folder, NOTHING, {}, {}, ()))
    assert found is not None
    return found


def test_every_number_up_to_the_largest_value_has_a_name(tmp_path: Path) -> None:
    names = {2: 'Oak: "old" ü', 4: "Ash\ttree"}
    write("YOLO_rectangles", [sample(0, [(4, *BOX)])], tmp_path, context(ClassSchema.from_values(names)))
    content = yaml.safe_load((tmp_path / "data.yaml").read_text(encoding="utf-8"))
    assert content["names"] == {0: "NoData", 1: "unused_1", 3: "unused_3", **names}
    assert (tmp_path / "classes.txt").read_text(encoding="utf-8").split("\n") == [
        "NoData",
        "unused_1",
        'Oak: "old" ü',
        "unused_3",
        "Ash tree",
        "",
    ]


def test_our_names_are_classes_again_and_numbers_are_values(tmp_path: Path) -> None:
    classes = ClassSchema.from_values({2: "Oak", 4: "Ash"})
    write("YOLO_rectangles", [sample(0, [(4, *BOX)])], tmp_path, context(classes))
    again = _classes(tmp_path)
    assert (again.values, again.names) == (classes.values, classes.names)
    (chip,) = read("YOLO_rectangles", tmp_path, again)
    assert yolo.FORMAT.boxes(chip)[0][0] == 4


@pytest.mark.parametrize(
    "names",
    [
        {"yaml": {"names": ["Oak", "Ash"]}},
        {"yaml": {"names": {0: "Oak", 1: "Ash"}}},
        {"txt": "Oak\r\nAsh\r\n"},
    ],
)
def test_a_list_of_others_starts_at_nought(tmp_path: Path, names: dict[str, object]) -> None:
    folder = _others(tmp_path, "1 0.5 0.5 0.25 0.5\r\n0 0.5 0.5 1 1 0.87\r\n", **names)
    classes = _classes(folder)
    assert (classes.values, classes.names) == ((1, 2), ("Oak", "Ash"))
    (chip,) = read("YOLO_rectangles", folder, classes)
    assert yolo.FORMAT.boxes(chip) == [(2, 48.0, 32.0, 80.0, 96.0), (1, 0.0, 0.0, 128.0, 128.0)]


def test_beside_the_side_files_of_an_export_numbers_are_values(tmp_path: Path) -> None:
    folder = _others(tmp_path, "1 0.5 0.5 0.25 0.5", txt="Oak\nAsh\n")
    (folder / "esri_model_definition.emd").write_text("{}")
    (chip,) = read("YOLO_rectangles", folder)
    assert yolo.FORMAT.boxes(chip)[0][0] == 1


def test_a_polygon_counts_as_the_box_around_it(tmp_path: Path) -> None:
    folder = _others(tmp_path, "0 0.25 0.5 0.5 0.5 0.5 0.75", txt="Oak\n")
    (chip,) = read("YOLO_rectangles", folder)
    assert yolo.FORMAT.boxes(chip) == [(1, 32.0, 64.0, 64.0, 96.0)]


@pytest.mark.parametrize(
    "line", ["0 0.5 0.5", "-1 0.5 0.5 0.1 0.1", "Oak 0.5 0.5 0.1 0.1", "0 0.5 0.5 x 0.1", "0 1 1 1 1 1 1 1"]
)
def test_lines_that_make_no_sense_are_refused(tmp_path: Path, line: str) -> None:
    folder = _others(tmp_path, line, txt="Oak\n")
    (chip,) = read("YOLO_rectangles", folder)
    with pytest.raises(TrainingDataError, match="Line 1"):
        yolo.FORMAT.boxes(chip)


def test_pixels_in_place_of_parts_are_refused(tmp_path: Path) -> None:
    folder = _others(tmp_path, "0 64 64 10 10", txt="Oak\n")
    (chip,) = read("YOLO_rectangles", folder)
    with pytest.raises(TrainingDataError, match="outside"):
        yolo.FORMAT.boxes(chip)


@pytest.mark.parametrize("content", ["[1, 2]", "names: 7", "a: [", "names: {x: y}"])
def test_names_that_cannot_be_read_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(TrainingDataError, match="names of the classes"):
        _classes(tmp_path)


def test_values_that_are_no_positions_in_a_list_are_refused() -> None:
    with pytest.raises(BadInputError, match="1000"):
        yolo.FORMAT.check(context(ClassSchema.from_values({1000: "Oak"})))
