"""MultiLabeled_Tiles: every chip has the set of classes that occur in it.

The label is an annotation as in PASCAL_VOC_rectangles with one object, the whole chip, whose name lists the
NAMES of the classes with commas between. Format: docs/formats/training-data.md, "MultiLabeled_Tiles".
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from tasks.errors import BadInputError
from tasks.labels.schema import ClassSchema
from tasks.training_data.pascal_voc import decode_annotation, encode_annotation, names_in_folder
from tasks.training_data.rectangles import (
    class_value,
    classes_of,
    labelled_picture,
    objects_of,
    picture_name,
    with_values,
)
from tasks.training_data.sample import Chip, ChipFile, ChipRecord, Context, Folder, Format, Sample
from tasks.training_data.side_files import SOURCE

# ArcGIS's library wants an object in every annotation, and knows no chip without any class.
NO_CLASS = "NoData"


class MultiLabeledTiles(Format):
    """Class names in one text, in the order of the class values; a chip without labels says NoData."""

    name = "MultiLabeled_Tiles"
    label_extension = ".xml"
    holds = frozenset({"values"})
    counts = "features"
    needs = frozenset({"objects"})

    def check(self, context: Context) -> None:
        """A class name with a comma would be read as two classes; blanks at its ends would be lost.

        Raises:
            BadInputError: there is such a name, or a class called NoData.
        """
        for item in context.classes:
            if "," in item.name or item.name != item.name.strip() or item.name in ("", NO_CLASS):
                raise BadInputError(
                    f"{self.name} cannot hold the class name {item.name!r}: names stand in a list with "
                    f"commas, and {NO_CLASS} means that a chip has no class.",
                    "Give the class another name, without commas and without blanks at its ends.",
                )

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """``images/`` and ``labels/``."""
        present = set(objects_of(sample).values.tolist())
        names = [item.name for item in context.classes if item.value in present]
        rows, cols = sample.image.shape[-2:]
        xml = encode_annotation(
            picture_name(sample, context),
            sample.image.shape,
            [(escape(",".join(names) or NO_CLASS), 0.0, 0.0, float(cols), float(rows))],
            source=SOURCE,
        )
        return labelled_picture(sample, context, ".xml", xml)

    def find_classes(self, folder: Folder) -> ClassSchema | None:
        """Every name in any list."""
        lists = names_in_folder(folder.path)
        return classes_of(name for text in lists for name in text.split(",") if name.strip() != NO_CLASS)

    def chips(self, folder: Folder) -> tuple[list[Chip], int]:
        """Each with its classes; values in place of names are understood too."""
        chips, dropped = super().chips(folder)
        return with_values(chips, map(_values, chips)), dropped


def _values(chip: Chip) -> tuple[int, ...]:
    found = decode_annotation(chip.label_path)[:1]
    names = [name.strip() for text, *_ in found for name in text.split(",")]
    values = {
        class_value(chip.classes, name, chip.label_path)
        for name in names
        if name and (name != NO_CLASS or NO_CLASS in chip.classes.names)
    }
    return tuple(sorted(values))


FORMAT = MultiLabeledTiles()
