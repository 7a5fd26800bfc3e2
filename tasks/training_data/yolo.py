"""YOLO_rectangles: one text file per chip, one object a line: class, centre, width, height.

The numbers are parts of the chip's width and height. The class number is the class VALUE, which is what
ArcGIS's library takes it for. Tools of the YOLO family take it for a position in the list of names, counted
from 0. So ``data.yaml`` and ``classes.txt`` name every number from 0 to the largest class value, even numbers
that are no class. Format: docs/formats/training-data.md, "YOLO_rectangles".
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import yaml

from tasks.errors import BadInputError, TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.images import picture_shape
from tasks.training_data.kitti import first_columns
from tasks.training_data.rectangles import (
    NamedBox,
    known_boxes,
    labelled_picture,
    sample_boxes,
)
from tasks.training_data.sample import (
    Boxes,
    Chip,
    ChipFile,
    ChipRecord,
    Context,
    Folder,
    Format,
    Sample,
    SideWriter,
)

DATA = "data.yaml"
NAMES = "classes.txt"
_LARGEST = 999  # a list of names for every number up to the largest value should stay a list
_COLUMNS = 5
_FIRST, _UNUSED = "NoData", "unused_{}"


class Yolo(Format):
    """Any number of objects per chip, each with its class value and its box."""

    name = "YOLO_rectangles"
    label_extension = ".txt"
    holds = frozenset({"boxes"})
    counts = "features"
    needs = frozenset({"objects"})

    def check(self, context: Context) -> None:
        """Class values are positions in a list.

        Raises:
            BadInputError: a class value of 1000 or more.
        """
        largest = max(context.classes.values, default=0)
        if largest > _LARGEST:
            raise BadInputError(
                f"{self.name} cannot hold the class value {largest}: its class numbers are positions "
                "in a list.",
                f"Number the classes from 1 to at most {_LARGEST}.",
            )

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """``images/`` and ``labels/``; six decimals, which is a hundredth of a pixel in 10,000."""
        rows, cols = sample.image.shape[-2:]
        text = "".join(
            f"{value} {(xmin + xmax) / 2 / cols:.6f} {(ymin + ymax) / 2 / rows:.6f} "
            f"{(xmax - xmin) / cols:.6f} {(ymax - ymin) / rows:.6f}\n"
            for value, xmin, ymin, xmax, ymax in sample_boxes(sample)
        )
        return labelled_picture(sample, context, ".txt", text.encode("ascii"))

    def side_writer(self, context: Context, scratch: Path) -> SideWriter:
        """``data.yaml`` and ``classes.txt``."""
        return _Names(context.classes, scratch)

    def recognises(self, path: Path) -> bool:
        """By the number of columns of the first line in any label."""
        return first_columns(path) == _COLUMNS

    def find_classes(self, folder: Folder) -> ClassSchema | None:
        """As ``data.yaml`` or ``classes.txt`` name them; lists of other tools start at class value 1."""
        names = _names_in(folder.path)
        first = _first_value(folder.path)
        return (
            ClassSchema.from_values(
                {number + first: name for number, name in names.items() if not _is_filler(number, name)}
            )
            if names
            else None
        )

    def boxes(self, chip: Chip) -> Boxes:
        """In pixels; polygons (more than five columns) count as the box around them."""
        path = chip.label_path
        _, rows, cols = picture_shape(chip.image)
        first = _first_value(path.parent.parent)
        found = []
        for number, xmin, ymin, xmax, ymax in decode_lines(path):
            name = str(int(number) + first)
            found.append((name, xmin * cols, ymin * rows, xmax * cols, ymax * rows))
        return known_boxes(chip, found, path)


def decode_lines(path: Path) -> list[NamedBox]:
    """The objects of a label file: (class number as text, xmin, ymin, xmax, ymax), parts of the chip's size.

    Raises:
        TrainingDataError: neither a box nor a polygon, or columns that are no numbers.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TrainingDataError(
            f"The label {path} is not text: {error}.", "Export the training data again."
        ) from error
    found = []
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if columns:
            try:
                found.append(_object(columns))
            except ValueError as error:
                raise TrainingDataError(
                    f"Line {number} of the label {path} is no object in YOLO's form: {error}.",
                    "Each line needs a class number and the box's centre, width and height between 0 and 1.",
                ) from error
    return found


def _object(columns: list[str]) -> NamedBox:
    if not columns[0].isdecimal():
        raise ValueError(f"{columns[0]!r} is no class number")
    numbers = [float(item) for item in columns[1:]]
    if len(numbers) in (4, 5):  # the fifth is a score
        xc, yc, width, height = numbers[:4]
        return columns[0], xc - width / 2, yc - height / 2, xc + width / 2, yc + height / 2
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        xs, ys = numbers[0::2], numbers[1::2]
        return columns[0], min(xs), min(ys), max(xs), max(ys)
    raise ValueError(f"it has {len(columns)} columns, not 5")


class _Names(SideWriter):
    def __init__(self, classes: ClassSchema, scratch: Path) -> None:
        self.classes = classes
        self.scratch = scratch

    def close(self) -> dict[str, Path]:
        own = dict(zip(self.classes.values, self.classes.names, strict=True))
        names = [_FIRST, *(own.get(i, _UNUSED.format(i)) for i in range(1, max(own, default=0) + 1))]
        # JSON texts are YAML texts too.
        lines = [f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(names)]
        # No "path": without it folders are looked for beside this file.
        text = f"train: {layout.IMAGES}\nval: {layout.IMAGES}\nnames:\n" + "".join(lines)
        data, listed = self.scratch / DATA, self.scratch / NAMES
        data.write_bytes(text.encode())
        listed.write_bytes("".join(f"{' '.join(name.split())}\n" for name in names).encode())
        return {DATA: data, NAMES: listed}


def _is_filler(number: int, name: str) -> bool:
    return name == (_UNUSED.format(number) if number else _FIRST)


@functools.lru_cache(maxsize=64)
def _first_value(root: Path) -> int:
    """The class value of the class number 0.

    With the side files of an export class numbers are class values. So they are where the list of names
    starts with what our writer puts there. Any other list starts with a class, and 0 is no class value.
    """
    if any((root / name).is_file() for name in (layout.DEFINITION, layout.ACCUMULATED_STATS)):
        return 0
    return 0 if _names_in(root).get(0) == _FIRST else 1


def _names_in(root: Path) -> dict[int, str]:
    """The names by their number; none where no file lists them."""
    data, listed = root / DATA, root / NAMES
    try:
        if data.is_file():
            content = yaml.safe_load(data.read_text(encoding="utf-8-sig"))
            names = content.get("names") if isinstance(content, dict) else None
            if isinstance(names, list):
                return {i: str(name) for i, name in enumerate(names)}
            if isinstance(names, dict):
                return {int(i): str(name) for i, name in names.items()}
            raise ValueError("it holds no list of names")
        if listed.is_file():
            lines = listed.read_text(encoding="utf-8-sig").splitlines()
            return {i: line.strip() for i, line in enumerate(lines) if line.strip()}
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise TrainingDataError(
            f"The names of the classes in {root} cannot be read: {error}.",
            f"Correct {DATA}: its names are a list, or a name for each number.",
        ) from error
    return {}


FORMAT = Yolo()
