"""What the formats that write objects as rectangles share: boxes, sizes and classes, checked.

A box is (class value, xmin, ymin, xmax, ymax) in pixels from the chip's upper-left corner; the maximum edges
are exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.images import encode_picture, picture_shape
from tasks.training_data.sample import Chip, ChipFile, ChipRecord, Context, Sample

if TYPE_CHECKING:
    from tasks.labels.pixels import LabelsInWindow

Box = tuple[int, float, float, float, float]
# A box as a file states it: the class as text.
NamedBox = tuple[str, float, float, float, float]


def objects_of(sample: Sample) -> LabelsInWindow:
    """The sample's objects.

    Raises:
        ValueError: the sample was made for a format that has none.
    """
    if sample.objects is None:
        raise ValueError(f"the sample {sample.number} has no objects")
    return sample.objects


def sample_boxes(sample: Sample) -> list[Box]:
    """The boxes of the objects, clipped to the chip; none is negative, not even as -0.0."""
    found = objects_of(sample)
    rows, cols = sample.image.shape[-2:]
    boxes = np.clip(np.asarray(found.boxes).reshape(-1, 4), 0.0, (cols, rows, cols, rows)) + 0.0
    return [
        (value, xmin, ymin, xmax, ymax)
        for value, (xmin, ymin, xmax, ymax) in zip(found.values.tolist(), boxes.tolist(), strict=True)
    ]


def pixel_area(sample: Sample) -> float:
    """Squared map units of a pixel, turned or not."""
    a, b, _, d, e, _ = sample.transform
    return abs(a * e - b * d)


def areas_by_class(sample: Sample) -> dict[int, list[float]]:
    """The areas of the objects' parts in the chip, squared map units, by class value."""
    pixel = pixel_area(sample)
    found = objects_of(sample)
    areas: dict[int, list[float]] = {}
    for value, area in zip(found.values.tolist(), found.areas.tolist(), strict=True):
        areas.setdefault(value, []).append(area * pixel)
    return areas


def object_of_chip(sample: Sample, value: int) -> tuple[Box, float]:
    """The box of the object that the chip was cut around, and the area of its part in the chip, map units.

    It is the object of its class that is nearest to the chip's centre; the whole chip where there is none.
    """
    rows, cols = sample.image.shape[-2:]
    whole: Box = (value, 0.0, 0.0, float(cols), float(rows))
    candidates = [
        (abs(box[1] + box[3] - cols) + abs(box[2] + box[4] - rows), index, box, area)
        for index, (box, area) in enumerate(
            zip(sample_boxes(sample), objects_of(sample).areas.tolist(), strict=True)
        )
        if box[0] == value
    ]
    _, _, box, area = min(candidates, default=(0, 0, whole, float(rows * cols)))
    return box, area * pixel_area(sample)


def labelled_picture(
    sample: Sample, context: Context, extension: str, label: bytes
) -> tuple[list[ChipFile], ChipRecord]:
    """The files of a chip with one label file, ``labels/NNN<extension>``; features are counted."""
    stem = layout.chip_stem(sample.number)
    files, picture = encode_picture(
        sample.image, stem, layout.IMAGES, sample.transform, context, sample.known
    )
    path = f"{layout.LABELS}/{stem}{extension}"
    record = ChipRecord(number=sample.number, paths=[picture, path], bands=[], areas=areas_by_class(sample))
    return [*files, ChipFile(path, label)], record


def picture_name(sample: Sample, context: Context) -> str:
    """The file name of the sample's picture."""
    return layout.chip_stem(sample.number) + layout.IMAGE_EXTENSIONS[context.chip_format]


def class_value(classes: ClassSchema, text: str, path: Path) -> int:
    """The class that a label file names, by value or by name.

    Raises:
        TrainingDataError: there is no such class.
    """
    value = classes.value_of(text)
    if value is None:
        raise TrainingDataError(
            f"An object in {path} has the class {text!r}, which is not among the classes "
            f"{dict(zip(classes.values, classes.names, strict=True))}.",
            f"List it under Classes in {layout.DEFINITION}, or export again.",
        )
    return value


def known_boxes(chip: Chip, found: Iterable[NamedBox], path: Path) -> list[Box]:
    """Boxes as a label file states them, checked: clipped to the chip, without empty ones.

    An empty box is what some writers leave in a chip without objects. Its class is not looked at.

    Raises:
        TrainingDataError: an unknown class, edges that are no numbers or in the wrong order, or a box that
            lies outside of the chip, whose label therefore is another chip's.
    """
    boxes: list[Box] = []
    size: tuple[int, ...] = ()
    for name, *edges in found:
        xmin, ymin, xmax, ymax = edges
        if not all(map(math.isfinite, edges)) or xmax < xmin or ymax < ymin:
            raise TrainingDataError(
                f"An object in {path} has the box {edges}, whose edges should be numbers in the order "
                "xmin, ymin, xmax, ymax.",
                "Correct the file, or export the training data again.",
            )
        if xmax == xmin or ymax == ymin:
            continue
        size = size or picture_shape(chip.image)
        _, rows, cols = size
        if xmin >= cols or ymin >= rows or xmax <= 0 or ymax <= 0:
            raise TrainingDataError(
                f"An object in {path} has the box {edges}, outside of {chip.image.name} with its "
                f"{cols} x {rows} pixels.",
                "Check that the label belongs to the chip of its name, and that its numbers are pixels.",
            )
        value = class_value(chip.classes, name, path)
        boxes.append((value, max(xmin, 0.0), max(ymin, 0.0), min(xmax, cols), min(ymax, rows)))
    return boxes


def classes_of(names: Iterable[str]) -> ClassSchema | None:
    """The classes that labels name themselves; None where they name none.

    Whole positive numbers are class values; other names are numbered from 1 in their order.
    """
    found = sorted({name.strip() for name in names})
    if not found:
        return None
    if all(name.isdecimal() and int(name) > 0 for name in found):
        return ClassSchema.from_values({int(name): name for name in found})
    return ClassSchema.from_values(dict(enumerate(found, start=1)))


def with_values(chips: Sequence[Chip], values: Iterable[tuple[int, ...]]) -> list[Chip]:
    """The chips, with the class values of each as a whole."""
    return [replace(chip, values=item) for chip, item in zip(chips, values, strict=True)]
