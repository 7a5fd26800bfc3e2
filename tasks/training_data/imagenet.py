"""Imagenet: chips cut around one object each, in a folder that has the name of its class; no label files.

Format: docs/formats/training-data.md, "Imagenet".
"""

from __future__ import annotations

from pathlib import Path

from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.images import encode_picture
from tasks.training_data.pairing import pictures
from tasks.training_data.rectangles import class_value, classes_of, object_of_chip
from tasks.training_data.sample import Chip, ChipFile, ChipRecord, Context, Folder, Format, Sample


class Imagenet(Format):
    """One class per chip, told by its folder."""

    name = "Imagenet"
    holds = frozenset({"values"})
    counts = "features"
    needs = frozenset({"value", "objects"})
    chips_at = "feature"
    folder_per_class = True

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """``images/<class name>/``."""
        if sample.value is None:
            raise ValueError("a chip in this format has a class")
        stem = layout.chip_stem(sample.number)
        classes = layout.folder_classes(context.classes)
        folder = f"{layout.IMAGES}/{classes.names[classes.index(sample.value)]}"
        files, picture = encode_picture(sample.image, stem, folder, sample.transform, context, sample.known)
        _, area = object_of_chip(sample, sample.value)
        record = ChipRecord(number=sample.number, paths=[picture], bands=[], areas={sample.value: [area]})
        return files, record

    def recognises(self, path: Path) -> bool:
        """Folders in ``images/``, and no labels."""
        return bool(_class_folders(path)) and not (path / layout.LABELS).exists()

    def find_classes(self, folder: Folder) -> ClassSchema | None:
        """The names of the folders."""
        return classes_of(item.name for item in _class_folders(folder.path))

    def chips(self, folder: Folder) -> tuple[list[Chip], int]:
        """Each with the class of its folder; pictures beside the folders are left out."""
        chips = [
            Chip(
                stem=image.stem,
                image=image,
                label=None,
                footprint=None,
                classes=folder.classes,
                metadata_format=self.name,
                values=(class_value(folder.classes, item.name, item),),
            )
            for item in _class_folders(folder.path)
            for image in pictures(item)
        ]
        return sorted(chips, key=lambda chip: (chip.stem, chip.values)), len(
            pictures(folder.path / layout.IMAGES)
        )


def _class_folders(path: Path) -> list[Path]:
    images = path / layout.IMAGES
    return sorted(item for item in images.iterdir() if item.is_dir()) if images.is_dir() else []


FORMAT = Imagenet()
