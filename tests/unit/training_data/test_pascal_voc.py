"""PASCAL_VOC_rectangles: the lexical form, and reading it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import TrainingDataError
from tasks.training_data import pascal_voc

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
    ],
)
def test_what_is_no_annotation_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "0.xml"
    path.write_bytes(content)
    with pytest.raises(TrainingDataError, match=message):
        pascal_voc.decode_annotation(path)
