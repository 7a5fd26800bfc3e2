"""Panoptic_Segmentation: class values in ``labels/``, numbered objects in ``labels2/<ClassName>/``.

Format: docs/formats/training-data.md, "Panoptic_Segmentation".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import BadInputError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.images import encode_picture, picture_shape
from tasks.training_data.instances import decode_instances, encode_instances, instance_files
from tasks.training_data.masks import count_values, decode_label, label_files, within
from tasks.training_data.sample import Chip, ChipFile, ChipRecord, Context, Folder, Format, Sample


class Panoptic(Format):
    """Classes of all pixels, and the objects of the classes that have some.

    Readers take the classes of objects out of the semantic map, so that a class of objects must be among its
    classes and must not share its value with another one. Ours writes the objects' pixels into it.
    """

    name = "Panoptic_Segmentation"
    label_extension = ".tif"
    # Boxes can be read too, but a detector would be told of classes that have none.
    holds = frozenset({"masks", "instances"})
    counts = "pixels"
    needs = frozenset({"mask", "instance data"})
    folder_per_class = True

    def check(self, context: Context) -> None:
        """A value must mean the same class in both schemas.

        Raises:
            BadInputError: it does not, or there are no classes of objects.
        """
        if context.instance_classes is None or not len(context.instance_classes):
            raise BadInputError(
                "Panoptic_Segmentation needs objects, and there are none.",
                "Name them with input_instance_data.",
            )
        names = dict(zip(context.classes.values, context.classes.names, strict=True))
        for item in context.instance_classes:
            if names.get(item.value, item.name) != item.name:
                raise BadInputError(
                    f"The value {item.value} is the class {names[item.value]!r} of input_class_data and "
                    f"{item.name!r} of input_instance_data.",
                    "Give a class one value and one name in both, and different classes different values.",
                )
        self.all_classes(context)

    def all_classes(self, context: Context) -> ClassSchema:
        """The classes of both inputs."""
        both = {item.value: item for item in context.instance_classes or ()}
        both |= {item.value: item for item in context.classes}
        return layout.folder_classes(ClassSchema(tuple(both[value] for value in sorted(both))))

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """The line in map.txt has the semantic map, then a column per mask of objects."""
        if sample.mask is None:
            raise ValueError(f"the sample {sample.number} has no mask")
        stem = layout.chip_stem(sample.number)
        files, picture = encode_picture(
            sample.image, stem, layout.IMAGES, sample.transform, context, sample.known
        )
        classes = self.all_classes(context)
        objects = {item.value for item in context.instance_classes or ()}
        instance_classes = ClassSchema(tuple(item for item in classes if item.value in objects))
        more, paths, masks = encode_instances(sample, context, instance_classes, layout.LABELS2)
        # The type must not depend on which classes are in this chip.
        wide = np.result_type(sample.mask.dtype, np.min_scalar_type(max(classes.values, default=1)))
        semantic = within(sample.mask, sample.valid).astype(wide)
        for value, numbers in masks.items():
            semantic[numbers != 0] = value
        labels, label = label_files(semantic, stem, layout.LABELS, sample.transform, context)
        record = ChipRecord(
            number=sample.number, paths=[picture, label, *paths], bands=[], pixels=count_values(semantic)
        )
        return files + labels + more, record

    def recognises(self, path: Path) -> bool:
        """Nothing else has ``labels2/``; but which class has which value only the side files know."""
        return all((path / name).is_dir() for name in (layout.IMAGES, layout.LABELS, layout.LABELS2))

    def chips(self, folder: Folder) -> tuple[list[Chip], int]:
        """The pictures that have a semantic map, with the masks of objects that they have."""
        chips, dropped = super().chips(folder)
        classes = folder.instance_classes or folder.classes
        files = instance_files(folder.path / layout.LABELS2, classes)
        return [replace(chip, labels=files.get(chip.stem, {})) for chip in chips], dropped

    def mask(self, chip: Chip) -> npt.NDArray[Any]:
        """The semantic map, as it is."""
        return decode_label(chip.label_path)

    def instances(self, chip: Chip) -> dict[int, npt.NDArray[Any]]:
        """The masks as they are."""
        return decode_instances(chip, picture_shape(chip.image)[1:])


FORMAT = Panoptic()
