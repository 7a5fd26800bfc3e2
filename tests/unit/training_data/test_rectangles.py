"""What all formats of rectangles have in common: boxes come back, and bad ones are refused."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data.formats import format_of
from tasks.training_data.rectangles import classes_of, sample_boxes
from tests.unit.training_data.samples import context, read, sample, write

FORMATS = ["PASCAL_VOC_rectangles", "KITTI_rectangles", "YOLO_rectangles", "COCO_rectangles"]
TOLERANCE_PX = 0.00501  # half of the last of two decimals

Boxes = list[tuple[int, float, float, float, float]]


@st.composite
def chips(draw: st.DrawFn) -> tuple[tuple[int, int], list[Boxes], ClassSchema]:
    """A few chips of one size with boxes inside, none of them thinner than labels ever are."""
    rows, cols = draw(st.integers(1, 700)), draw(st.integers(1, 700))
    values = draw(st.lists(st.integers(1, 999), min_size=1, max_size=4, unique=True))

    def edge(length: int) -> st.SearchStrategy[tuple[float, float]]:
        inside = st.floats(0, length, allow_nan=False)
        return st.tuples(inside, inside).filter(lambda pair: abs(pair[1] - pair[0]) >= 0.02)

    def box(
        value: int, xs: tuple[float, float], ys: tuple[float, float]
    ) -> tuple[int, float, float, float, float]:
        return value, min(xs), min(ys), max(xs), max(ys)

    boxes = st.lists(st.builds(box, st.sampled_from(values), edge(cols), edge(rows)), max_size=5)
    return (
        (rows, cols),
        draw(st.lists(boxes, min_size=1, max_size=3)),
        ClassSchema.from_values({value: f"class {value}" for value in values}),
    )


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(drawn=chips())
def test_boxes_come_back(name: str, drawn: tuple[tuple[int, int], list[Boxes], ClassSchema]) -> None:
    size, contents, classes = drawn
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        samples = [sample(i, boxes, size=size) for i, boxes in enumerate(contents)]
        write(name, samples, folder, context(classes))
        found = read(name, folder, classes)
        assert [chip.stem for chip in found] == [f"{i:09d}" for i in range(len(contents))]
        for chip, boxes in zip(found, contents, strict=True):
            again = format_of(name).boxes(chip)
            assert [box[0] for box in again] == [box[0] for box in boxes]
            for mine, theirs in zip(again, boxes, strict=True):
                assert mine[1:] == pytest.approx(theirs[1:], abs=TOLERANCE_PX)
                assert 0 <= mine[1] < mine[3] <= size[1]
                assert 0 <= mine[2] < mine[4] <= size[0]


@pytest.mark.parametrize("name", FORMATS)
def test_a_chip_without_objects_is_a_chip(tmp_path: Path, name: str) -> None:
    write(name, [sample(0), sample(1, [(1, 1, 2, 3, 4)])], tmp_path)
    empty, other = read(name, tmp_path)
    assert format_of(name).boxes(empty) == []
    assert len(format_of(name).boxes(other)) == 1


def test_a_box_is_never_negative_not_even_nothing() -> None:
    boxes = sample_boxes(sample(0, [(1, -0.0, -0.001, 200.0, 5.0)]))
    assert [str(number) for number in boxes[0][1:]] == ["0.0", "0.0", "128.0", "5.0"]


def _voc(folder: Path, name: str, box: tuple[Any, ...]) -> None:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in edges)
    text = f"<annotation><object><name>{name}</name><bndbox>{inner}</bndbox></object></annotation>"
    (folder / "labels/000000000.xml").write_text(text)


def _kitti(folder: Path, name: str, box: tuple[Any, ...]) -> None:
    line = " ".join([name, "0 0 0", *map(str, box), "0 0 0 0 0 0 0"])
    (folder / "labels/000000000.txt").write_text(line)


def _coco(folder: Path, name: str, box: tuple[Any, ...]) -> None:
    document = json.loads((folder / "labels.json").read_text())
    xmin, ymin, xmax, ymax = (float(item) for item in box)
    document["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": name, "bbox": [xmin, ymin, xmax - xmin, ymax - ymin]}
    ]
    (folder / "labels.json").write_text(json.dumps(document))


def _yolo(folder: Path, name: str, box: tuple[Any, ...]) -> None:
    xmin, ymin, xmax, ymax = (float(item) / 128 for item in box)
    numbers = (xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin
    (folder / "labels/000000000.txt").write_text(" ".join([name, *map(str, numbers)]))


WRITERS: dict[str, Callable[[Path, str, tuple[Any, ...]], None]] = {
    "PASCAL_VOC_rectangles": _voc,
    "KITTI_rectangles": _kitti,
    "COCO_rectangles": _coco,
    "YOLO_rectangles": _yolo,
}


@pytest.fixture(params=list(WRITERS))
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Boxes]:
    """Reads the boxes of a chip whose label says what it is told to say."""
    write(request.param, [sample()], tmp_path)

    def _read(name: str, *box: Any) -> Boxes:
        WRITERS[request.param](tmp_path, name, box)
        (chip,) = read(request.param, tmp_path)
        return list(format_of(request.param).boxes(chip))

    return _read


def test_a_box_that_reaches_over_the_edge_is_clipped(foreign: Callable[..., Boxes]) -> None:
    ((value, *edges),) = foreign("1", -3, -2, 8, 300)
    assert value == 1
    assert edges == pytest.approx([0.0, 0.0, 8.0, 128.0])


@pytest.mark.parametrize("box", [(128, 0, 140, 9), (0, -9, 4, 0), (1000, 1000, 1010, 1010)])
def test_a_box_outside_of_the_chip_is_refused(foreign: Callable[..., Boxes], box: tuple[Any, ...]) -> None:
    with pytest.raises(TrainingDataError, match="outside of 000000000"):
        foreign("1", *box)


@pytest.mark.parametrize("box", [("nan", 0, 4, 4), (0, 0, "inf", 4), (9, 0, 4, 4), (0, 9, 4, 4)])
def test_edges_that_make_no_box_are_refused(foreign: Callable[..., Boxes], box: tuple[Any, ...]) -> None:
    with pytest.raises(TrainingDataError, match="box"):
        foreign("1", *box)


def test_an_empty_box_is_none(foreign: Callable[..., Boxes]) -> None:
    assert foreign("1", 0, 0, 0, 0) == []


def test_an_unknown_class_is_refused(foreign: Callable[..., Boxes]) -> None:
    with pytest.raises(TrainingDataError, match="7"):
        foreign("7", 1, 1, 4, 4)


def test_classes_as_labels_name_them() -> None:
    assert classes_of([]) is None
    by_value = classes_of(["7", "2", "7"])
    by_name = classes_of(["Tree", " Palm", "Tree"])
    assert by_value is not None
    assert by_name is not None
    assert (by_value.values, by_value.names) == ((2, 7), ("2", "7"))
    assert (by_name.values, by_name.names) == ((1, 2), ("Palm", "Tree"))
