"""Labeled_Tiles: chips cut around one object each, whose class is the chip's.

The label is an annotation as in PASCAL_VOC_rectangles with one object: its class value, and its box in the
chip. Format: docs/formats/training-data.md, "Labeled_Tiles".
"""

from __future__ import annotations

from tasks.labels.schema import ClassSchema
from tasks.training_data.pascal_voc import decode_annotation, encode_annotation, names_in_folder
from tasks.training_data.rectangles import (
    class_value,
    classes_of,
    known_boxes,
    labelled_picture,
    object_of_chip,
    picture_name,
    with_values,
)
from tasks.training_data.sample import Boxes, Chip, ChipFile, ChipRecord, Context, Folder, Format, Sample
from tasks.training_data.side_files import SOURCE


class LabeledTiles(Format):
    """One class per chip."""

    name = "Labeled_Tiles"
    label_extension = ".xml"
    # Its boxes can be read, but a detector would take the objects beside for background.
    holds = frozenset({"values"})
    counts = "features"
    needs = frozenset({"value", "objects"})
    chips_at = "feature"

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """``images/`` and ``labels/``; a sample without a value gives an annotation without an object."""
        boxes, areas = [], {}
        if sample.value is not None:
            box, area = object_of_chip(sample, sample.value)
            boxes, areas = [box], {sample.value: [area]}
        xml = encode_annotation(picture_name(sample, context), sample.image.shape, boxes, source=SOURCE)
        files, record = labelled_picture(sample, context, ".xml", xml)
        # Of neighbours that reach into the chip nothing is written, so nothing is counted.
        return files, record.model_copy(update={"areas": areas})

    def find_classes(self, folder: Folder) -> ClassSchema | None:
        """Every name in any annotation."""
        return classes_of(names_in_folder(folder.path))

    def chips(self, folder: Folder) -> tuple[list[Chip], int]:
        """Each with the class of its first object; none for an annotation without objects."""
        chips, dropped = super().chips(folder)
        return with_values(chips, map(_values, chips)), dropped

    def boxes(self, chip: Chip) -> Boxes:
        """The box of the object that the chip was cut around."""
        return known_boxes(chip, decode_annotation(chip.label_path)[:1], chip.label_path)


def _values(chip: Chip) -> tuple[int, ...]:
    found = decode_annotation(chip.label_path)[:1]
    return tuple(class_value(chip.classes, name, chip.label_path) for name, *_ in found)


FORMAT = LabeledTiles()
