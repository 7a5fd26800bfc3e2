"""PASCAL_VOC_rectangles: the lexical form, and reading it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import pascal_voc
from tasks.training_data.sample import Folder
from tests.unit.training_data.samples import read, sample, write

EXPECTED = b"""<?xml version="1.0"?>
<annotation>
    <filename>000000000.jpg</filename>
    <source>
        <annotation>Chipline</annotation>
    </source>
    <size>
        <width>128</width>
        <height>64</height>
        <depth>3</depth>
    </size>
    <object>
        <name>1</name>
        <bndbox>
            <xmin>10.00</xmin>
            <ymin>20.00</ymin>
            <xmax>40.00</xmax>
            <ymax>60.25</ymax>
        </bndbox>
    </object>
</annotation>
"""


def test_the_annotation_has_the_documented_form() -> None:
    written = pascal_voc.encode_annotation(
        "000000000.jpg", (3, 64, 128), [(1, 10, 20, 40, 60.25)], source="Chipline"
    )
    assert written == EXPECTED


def test_a_chip_without_objects_is_legal(tmp_path: Path) -> None:
    path = tmp_path / "0.xml"
    path.write_bytes(pascal_voc.encode_annotation("0.tif", (3, 8, 8), [], source="Chipline"))
    assert pascal_voc.decode_annotation(path) == []


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_boxes_round_trip(tmp_path: Path, line_end: bytes) -> None:
    path = tmp_path / "0.xml"
    boxes = [(7, 0.0, 1.5, 20.25, 30.0), (2, 3.0, 4.0, 5.0, 6.0)]
    written = pascal_voc.encode_annotation("0.tif", (3, 32, 32), boxes, source="Chipline")
    path.write_bytes(written.replace(b"\n", line_end))
    assert pascal_voc.decode_annotation(path) == [(str(box[0]), *box[1:]) for box in boxes]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<annotation><object>", "not a PASCAL VOC annotation"),
        (b"<annotation><object><name>1</name></object></annotation>", "no bndbox/xmin"),
        (
            b'<!DOCTYPE a [<!ENTITY x "y">]><annotation><object><name>&x;</name></object></annotation>',
            "document type",
        ),
        ("<!DOCTYPE a><annotation/>".encode("utf-16"), "document type"),
        (b"<html><object/></html>", "<html>"),
        (
            b"<annotation><object><name>1</name><bndbox><xmin>a</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
            b"</bndbox></object></annotation>",
            "could not convert",
        ),
        (b"", "no element"),
        (b"\xff\xfe\xff", "not a PASCAL VOC annotation"),
    ],
)
def test_what_is_no_annotation_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "0.xml"
    path.write_bytes(content)
    with pytest.raises(TrainingDataError, match=message):
        pascal_voc.decode_annotation(path)


FOREIGN = """<annotation verified="yes">
  <folder>VOC2012</folder>
  <filename>000000000.jpg</filename>
  <object>
    <name>{}</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
    <bndbox><xmax>9</xmax><xmin>3</xmin><ymax>6</ymax><ymin>2</ymin></bndbox>
    <part><name>head</name><bndbox><xmin>4</xmin><ymin>3</ymin><xmax>5</xmax><ymax>4</ymax></bndbox></part>
  </object>
</annotation>"""


@pytest.mark.parametrize("name", ["2", "2.0", "Tree", " Tree "])
def test_annotations_that_others_write(tmp_path: Path, name: str) -> None:
    write("PASCAL_VOC_rectangles", [sample()], tmp_path)
    (tmp_path / "labels/000000000.xml").write_text(FOREIGN.format(name).replace("\n", "\r\n"))
    (chip,) = read("PASCAL_VOC_rectangles", tmp_path)
    assert pascal_voc.FORMAT.boxes(chip) == [(2, 3.0, 2.0, 9.0, 6.0)]


def test_the_classes_of_annotations_without_side_files(tmp_path: Path) -> None:
    write("PASCAL_VOC_rectangles", [sample(0), sample(1)], tmp_path)
    for number, name in enumerate(["cat", "ant"]):
        (tmp_path / f"labels/{number:09d}.xml").write_text(FOREIGN.format(name))
    assert pascal_voc.FORMAT.recognises(tmp_path)
    found = pascal_voc.FORMAT.find_classes(Folder(tmp_path, ClassSchema(()), {}, {}, ()))
    assert found is not None
    assert list(zip(found.values, found.names, strict=True)) == [(1, "ant"), (2, "cat")]
