"""PASCAL_VOC_rectangles: one XML file per chip; ``<name>`` is the class VALUE as text.

Format: docs/formats/training-data.md, "PASCAL_VOC_rectangles".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.rectangles import (
    NamedBox,
    classes_of,
    known_boxes,
    labelled_picture,
    picture_name,
    sample_boxes,
)
from tasks.training_data.sample import Boxes, Chip, ChipFile, ChipRecord, Context, Folder, Format, Sample
from tasks.training_data.side_files import SOURCE

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
    filename: str,
    shape: tuple[int, ...],
    boxes: Iterable[tuple[int | str, float, float, float, float]],
    *,
    source: str,
) -> bytes:
    """The XML of one chip.

    Args:
        filename: the chip's file name.
        shape: (bands, rows, cols) of the chip.
        boxes: (class value, xmin, ymin, xmax, ymax) in pixels from the chip's upper-left corner; a text in
            place of the class value must be XML already.
        source: who wrote it.
    """
    bands, rows, cols = shape
    head = _HEAD.format(filename=filename, source=source, bands=bands, rows=rows, cols=cols)
    return (head + "".join(_OBJECT.format(*box) for box in boxes) + _TAIL).encode("utf-8")


def decode_annotation(path: Path) -> list[NamedBox]:
    """The objects of a chip: (name as written, xmin, ymin, xmax, ymax), pixels.

    Raises:
        TrainingDataError: no well-formed annotation, or a document with its own entities.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_Plain()))
        if root.tag != "annotation":
            raise ValueError(f"its root is <{root.tag}>")
        return [_object(item) for item in root.findall("object")]
    except _DocumentTypeError:
        raise TrainingDataError(
            f"The label {path} declares a document type.", "Remove the DOCTYPE; annotations need none."
        ) from None
    except (ElementTree.ParseError, ValueError) as error:
        raise TrainingDataError(
            f"The label {path} is not a PASCAL VOC annotation: {error}.",
            "Export the training data again, or correct the file.",
        ) from error


class _DocumentTypeError(Exception):
    pass


class _Plain(ElementTree.TreeBuilder):
    """Stops at a document type, before any entity that it declares can be expanded."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _DocumentTypeError(name, pubid, system)


def _object(item: ElementTree.Element) -> NamedBox:
    xmin, ymin, xmax, ymax = (_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    return (item.findtext("name") or "").strip(), xmin, ymin, xmax, ymax


def _number(item: ElementTree.Element, path: str) -> float:
    text = item.findtext(path)
    if text is None:
        raise ValueError(f"an object has no {path}")
    return float(text)


def names_in_folder(path: Path) -> list[str]:
    """The names of all objects in the annotations of ``labels/``, as written."""
    labels = sorted((path / layout.LABELS).glob("*.xml"))
    return [name for label in labels for name, *_ in decode_annotation(label)]


class PascalVoc(Format):
    """Any number of objects per chip, each with its class value and its box."""

    name = layout.PASCAL_VOC
    label_extension = ".xml"
    holds = frozenset({"boxes"})
    counts = "features"
    needs = frozenset({"objects"})

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """``images/`` and ``labels/``; two decimals."""
        xml = encode_annotation(
            picture_name(sample, context), sample.image.shape, sample_boxes(sample), source=SOURCE
        )
        return labelled_picture(sample, context, ".xml", xml)

    def recognises(self, path: Path) -> bool:
        """Annotations in XML, though without side files they could be Labeled_Tiles as well."""
        return any((path / layout.LABELS).glob("*.xml"))

    def find_classes(self, folder: Folder) -> ClassSchema | None:
        """Every name in any annotation."""
        return classes_of(names_in_folder(folder.path))

    def boxes(self, chip: Chip) -> Boxes:
        """Names of classes in place of their values are understood too."""
        return known_boxes(chip, decode_annotation(chip.label_path), chip.label_path)


FORMAT = PascalVoc()
