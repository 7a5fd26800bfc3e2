"""PASCAL_VOC_rectangles: one XML file per chip; ``<name>`` is the class VALUE as text.

Format: docs/formats/training-data.md, "PASCAL_VOC_rectangles".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from tasks.errors import TrainingDataError

Box = tuple[int, float, float, float, float]

_HEAD = """<?xml version="1.0"?>
<annotation>
    <filename>{filename}</filename>
    <source>
        <annotation>{source}</annotation>
    </source>
    <size>
        <width>{cols}</width>
        <height>{rows}</height>
        <depth>{bands}</depth>
    </size>
"""
_OBJECT = """    <object>
        <name>{}</name>
        <bndbox>
            <xmin>{:.2f}</xmin>
            <ymin>{:.2f}</ymin>
            <xmax>{:.2f}</xmax>
            <ymax>{:.2f}</ymax>
        </bndbox>
    </object>
"""
_TAIL = "</annotation>\n"


def encode_annotation(
    filename: str, shape: tuple[int, int, int], boxes: Iterable[Box], *, source: str
) -> bytes:
    """The XML of one chip.

    Args:
        filename: the chip's file name.
        shape: (bands, rows, cols) of the chip.
        boxes: (class value, xmin, ymin, xmax, ymax) in pixels from the chip's upper-left corner.
        source: who wrote it.
    """
    bands, rows, cols = shape
    head = _HEAD.format(filename=filename, source=source, bands=bands, rows=rows, cols=cols)
    return (head + "".join(_OBJECT.format(*box) for box in boxes) + _TAIL).encode("utf-8")


def decode_annotation(path: Path) -> list[tuple[str, float, float, float, float]]:
    """The objects of a chip: (name as written, xmin, ymin, xmax, ymax), pixels.

    Raises:
        TrainingDataError: no well-formed annotation, or a document with its own entities.
    """
    data = path.read_bytes()
    if re.search(rb"<!(DOCTYPE|ENTITY)", data):
        raise TrainingDataError(
            f"The label {path} declares a document type.", "Remove the DOCTYPE; annotations need none."
        )
    try:
        root = ElementTree.fromstring(data)
        return [_object(item) for item in root.iter("object")]
    except (ElementTree.ParseError, ValueError) as error:
        raise TrainingDataError(
            f"The label {path} is not a PASCAL VOC annotation: {error}.",
            "Export the training data again, or correct the file.",
        ) from error


def _object(item: ElementTree.Element) -> tuple[str, float, float, float, float]:
    xmin, ymin, xmax, ymax = (_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    return (item.findtext("name") or "").strip(), xmin, ymin, xmax, ymax


def _number(item: ElementTree.Element, path: str) -> float:
    text = item.findtext(path)
    if text is None:
        raise ValueError(f"an object has no {path}")
    return float(text)
