"""Classified_Tiles: one single-band label raster per chip, pixel = class value, 0 = no label.

With a second raster, whose chips go to ``images2/``, it is a change detection data set: ``images`` is the
earlier picture, ``images2`` the later one. Format: docs/formats/training-data.md, "Classified_Tiles".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.images import encode_picture
from tasks.training_data.masks import count_values, decode_label, encode_label, label_files, within
from tasks.training_data.pairing import paired_chips
from tasks.training_data.sample import Chip, ChipFile, ChipRecord, Context, Folder, Format, Sample

__all__ = ["FORMAT", "ClassifiedTiles", "decode_label", "encode_label"]

# What arcgis.learn takes the labels of change detection for, whatever classes the side files name.
_CHANGE = ClassSchema.from_values({255: "Change"})
_OLD_IMAGES, _OLD_IMAGES2 = "images_before", "images_after"


class ClassifiedTiles(Format):
    """Class values as pixels; the labels' type is the smallest that holds the largest class value."""

    name = layout.CLASSIFIED_TILES
    label_extension = ".tif"
    holds = frozenset({"masks"})
    counts = "pixels"
    needs = frozenset({"mask"})

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """``images/``, ``labels/`` and, of a second raster, ``images2/``."""
        if sample.mask is None:
            raise ValueError("a classified tile needs a mask")
        stem = layout.chip_stem(sample.number)
        files, picture = encode_picture(
            sample.image, stem, layout.IMAGES, sample.transform, context, sample.known
        )
        if sample.image2 is not None:
            files += encode_picture(
                sample.image2, stem, layout.IMAGES2, sample.transform, context, sample.known2
            )[0]
        mask = within(sample.mask, sample.valid)
        labels, label = label_files(mask, stem, layout.LABELS, sample.transform, context)
        record = ChipRecord(number=sample.number, paths=[picture, label], bands=[], pixels=count_values(mask))
        return files + labels, record

    def recognises(self, path: Path) -> bool:
        """Old change detection folders; other tiles without side files could be of several formats."""
        return all((path / name).is_dir() for name in (_OLD_IMAGES, _OLD_IMAGES2, layout.LABELS))

    def find_classes(self, folder: Folder) -> ClassSchema | None:
        """Of change detection, in which every value but 0 is a change; else only the side files know."""
        seconds = (layout.IMAGES2, _OLD_IMAGES2)
        return _CHANGE if any((folder.path / name).is_dir() for name in seconds) else None

    def chips(self, folder: Folder) -> tuple[list[Chip], int]:
        """Also in the older layout of change detection, ``images_before/`` and ``images_after/``."""
        if (folder.path / _OLD_IMAGES).is_dir() and not (folder.path / layout.IMAGES).is_dir():
            return paired_chips(
                folder, self.name, self.label_extension, images=_OLD_IMAGES, images2=_OLD_IMAGES2
            )
        return super().chips(folder)

    def mask(self, chip: Chip) -> npt.NDArray[Any]:
        """The label raster."""
        mask = decode_label(chip.label_path)
        if chip.classes == _CHANGE:
            return np.where(mask != 0, np.uint8(_CHANGE.values[0]), np.uint8(0))
        return mask


FORMAT = ClassifiedTiles()
