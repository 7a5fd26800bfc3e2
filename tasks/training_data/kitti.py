"""KITTI_rectangles: one text file per chip, one object a line in 15 columns.

The first column is the class value, the fifth to eighth are the box, all others are 0. Format:
docs/formats/training-data.md, "KITTI_rectangles".
"""

from __future__ import annotations

from pathlib import Path

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.rectangles import NamedBox, classes_of, known_boxes, labelled_picture, sample_boxes
from tasks.training_data.sample import Boxes, Chip, ChipFile, ChipRecord, Context, Folder, Format, Sample

# What follows the class: truncated, occluded, alpha, the box, three sizes, a position, an angle.
_NUMBERS = 14
_LINE = "{} 0.00 0 0.00 {:.2f} {:.2f} {:.2f} {:.2f} 0.00 0.00 0.00 0.00 0.00 0.00 0.00\n"
# KITTI's own name for regions that nobody labelled.
_NOT_LABELLED = "DontCare"


def decode_lines(path: Path, classes: ClassSchema | None = None) -> list[NamedBox]:
    """The objects of a label file: (class as written, xmin, ymin, xmax, ymax), pixels.

    A class may be a text, with blanks in it. A 16th column (a score) is ignored; where it could also be the
    last column of 15 with a blank in the class, ``classes`` decides.

    Raises:
        TrainingDataError: too few columns, or columns that are no numbers.
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
        if not columns:
            continue
        extra = _has_score(columns, classes)
        head = len(columns) - _NUMBERS - extra
        name = " ".join(columns[:head])
        try:
            if head < 1:
                raise ValueError(f"it has {len(columns)} columns, not 15")
            xmin, ymin, xmax, ymax = [float(item) for item in columns[head:]][3:7]
        except ValueError as error:
            raise TrainingDataError(
                f"Line {number} of the label {path} is no object in KITTI's form: {error}.",
                "Each line needs the class and 14 numbers, separated by blanks; export again, or correct it.",
            ) from error
        found.append((name, xmin, ymin, xmax, ymax))
    return found


def _has_score(columns: list[str], classes: ClassSchema | None) -> bool:
    if len(columns) != _NUMBERS + 2:
        return False
    if not _is_number(columns[1]):
        return False  # a class of two words
    return classes is None or classes.value_of(" ".join(columns[:2])) is None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Kitti(Format):
    """Any number of objects per chip, each with its class value and its box; all numbers are 0 or more."""

    name = "KITTI_rectangles"
    label_extension = ".txt"
    holds = frozenset({"boxes"})
    counts = "features"
    needs = frozenset({"objects"})

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """``images/`` and ``labels/``; two decimals. An empty file is a chip without objects."""
        text = "".join(_LINE.format(*box) for box in sample_boxes(sample))
        return labelled_picture(sample, context, ".txt", text.encode("ascii"))

    def recognises(self, path: Path) -> bool:
        """By the number of columns of the first line in any label."""
        return first_columns(path) in (_NUMBERS + 1, _NUMBERS + 2)

    def find_classes(self, folder: Folder) -> ClassSchema | None:
        """Every name in any label, DontCare left out."""
        paths = sorted((folder.path / layout.LABELS).glob("*.txt"))
        return classes_of(box[0] for path in paths for box in decode_lines(path) if box[0] != _NOT_LABELLED)

    def boxes(self, chip: Chip) -> Boxes:
        """Names of classes in place of their values are understood too; DontCare is no object."""
        found = decode_lines(chip.label_path, chip.classes)
        if chip.classes.value_of(_NOT_LABELLED) is None:
            found = [box for box in found if box[0] != _NOT_LABELLED]
        return known_boxes(chip, found, chip.label_path)


def first_columns(path: Path) -> int:
    """The number of columns of the first line in any text file of ``labels/``; 0 where there is none."""
    for label in sorted((path / layout.LABELS).glob("*.txt")):
        with label.open(encoding="utf-8-sig", errors="replace") as lines:
            for line in lines:
                if line.split():
                    return len(line.split())
    return 0


FORMAT = Kitti()
