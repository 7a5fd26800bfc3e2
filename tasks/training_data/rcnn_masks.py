"""RCNN_Masks: for each class in a chip one raster, whose pixels number the objects from 1.

Format: docs/formats/training-data.md, "RCNN_Masks".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.images import encode_picture, picture_shape
from tasks.training_data.instances import (
    areas_of_instances,
    decode_instances,
    encode_instances,
    instance_files,
    named_folders,
)
from tasks.training_data.masks import class_mask
from tasks.training_data.pairing import paired_chips
from tasks.training_data.sample import Chip, ChipFile, ChipRecord, Context, Folder, Format, Sample


class RcnnMasks(Format):
    """``labels/<ClassName>/NNN.tif``, only where the class occurs in the chip.

    A chip without any mask is a chip without objects. Objects are counted as they are in the masks: one that
    lies below others, or is too small for a pixel, is none.
    """

    name = "RCNN_Masks"
    label_extension = ".tif"
    holds = frozenset({"masks", "boxes", "instances"})
    counts = "features"
    needs = frozenset({"instances"})
    folder_per_class = True

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """The line in map.txt has a column per mask."""
        stem = layout.chip_stem(sample.number)
        files, path = encode_picture(
            sample.image, stem, layout.IMAGES, sample.transform, context, sample.known
        )
        classes = layout.folder_classes(context.classes)
        more, paths, masks = encode_instances(sample, context, classes, layout.LABELS)
        a, b, _, d, e, _ = sample.transform
        areas = areas_of_instances(masks, abs(a * e - b * d))
        return files + more, ChipRecord(number=sample.number, paths=[path, *paths], bands=[], areas=areas)

    def recognises(self, path: Path) -> bool:
        """Folders below labels/, with rasters."""
        labels = path / layout.LABELS
        return (
            (path / layout.IMAGES).is_dir()
            and not (path / layout.LABELS2).exists()
            and any(labels.glob("*/*.tif"))
        )

    def find_classes(self, folder: Folder) -> ClassSchema | None:
        """As the folders below labels/ are named."""
        return named_folders(folder.path / layout.LABELS)

    def chips(self, folder: Folder) -> tuple[list[Chip], int]:
        """All pictures, each with the masks that it has."""
        chips, dropped = paired_chips(folder, self.name, None)
        files = instance_files(folder.path / layout.LABELS, folder.classes)
        return [replace(chip, labels=files.get(chip.stem, {})) for chip in chips], dropped

    def mask(self, chip: Chip) -> npt.NDArray[Any]:
        """The classes of the objects; where two classes lie on a pixel, the higher value counts."""
        return class_mask(self.instances(chip), picture_shape(chip.image)[1:], chip.classes)

    def instances(self, chip: Chip) -> dict[int, npt.NDArray[Any]]:
        """The masks as they are."""
        return decode_instances(chip, picture_shape(chip.image)[1:])


FORMAT = RcnnMasks()
