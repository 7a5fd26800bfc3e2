"""Chips as panoptic models see them: the class of every pixel, and objects of the classes that have some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.errors import TrainingDataError
from tasks.train.datasets import (
    BACKGROUND,
    IGNORED,
    Draw,
    InstanceChips,
    Known,
    Target,
    collate_pixels,
    filled,
    labels_of,
    objects_in,
)
from tasks.training_data import Chip, TrainingData, layout, read_class_mask, read_instances

_FORMAT = "Panoptic_Segmentation"  # tells classes with objects from others; elsewhere all classes have them


class PanopticChips(InstanceChips):
    """Gives (image, {"boxes", "labels", "masks"} of the objects, and "classes" (size, size) int64).

    ``classes`` are labels of pixels as :class:`tasks.train.datasets.PixelChips` gives them: 0 for the
    background, 1 to n in the order of the schema, 255 for unknown. The pixels of an object have its class,
    whatever the map of classes says.

    Args:
        things: labels of the classes that have objects, see :func:`things_of`.
    """

    def __init__(self, chips: Sequence[Chip], *, things: Sequence[int], **options: Any) -> None:
        super().__init__(chips, **options)
        self.things = tuple(things)

    def read_label(self, chip: Chip, known: Known) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        labels, numbers = super().read_label(chip, known)
        classes = labels_of(read_class_mask(chip), chip.classes)
        for label, layer in zip(labels, numbers, strict=True):
            classes[layer > 0] = label
        # One more than the label, 0 for unknown: what is turned or filled in is unknown, and of no object.
        first = classes.astype(np.int32) + 1
        if known is not None:
            first[~self.shown(known)] = 0
        return labels, np.concatenate([first[None], numbers.reshape(-1, *first.shape)])

    def amount(self, index: int) -> float:
        return float(np.count_nonzero(self.read(index).label[1][0] > BACKGROUND + 1))

    def most_regions(self) -> int:
        """How many regions the fullest chip has: objects, and classes without any; no pixels are read."""
        return max((self._regions(chip) for chip in self.chips), default=0)

    def _regions(self, chip: Chip) -> int:
        objects = sum(np.count_nonzero(np.unique(layer)) for layer in read_instances(chip).values())
        present = np.unique(labels_of(read_class_mask(chip), chip.classes))
        return int(objects) + int(np.setdiff1d(present, self.things).size)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target]:
        kept = self.read(draw[0])
        labels, before = kept.label
        if self.size is None:
            image, shape = self.whole(kept)
            after, area = self.whole_layers(before, shape), 1.0
        else:
            varied = self.varied(draw, kept, before)
            assert varied.layers is not None
            image, after, area = varied.image, varied.layers, varied.area
        first = after[0].astype(np.int64)
        classes = torch.from_numpy(np.where(first == 0, IGNORED, first - 1))
        return image, {**objects_in(labels, before[1:], after[1:], area), "classes": classes}


def things_of(data: Sequence[TrainingData]) -> tuple[int, ...]:
    """Labels, from 1, of the classes that have objects, as the folders declare them, or by their masks.

    Raises:
        TrainingDataError: there are none, or one is not among the classes.
    """
    first = data[0]
    if first.metadata_format != _FORMAT:
        return tuple(range(1, len(first.classes) + 1))
    if first.instance_classes is not None and len(first.instance_classes):
        values = set(first.instance_classes.values)
    else:
        values = {value for item in data for chip in item.chips for value in chip.labels}
    unknown = sorted(values - set(first.classes.values))
    if unknown:
        raise TrainingDataError(
            f"{first.folder} has objects of the classes {unknown}, which are not among its classes "
            f"{list(first.classes.values)}.",
            f"List them under Classes in {layout.DEFINITION}, or export again.",
        )
    if not values:
        raise TrainingDataError(
            f"{first.folder} has no objects: {layout.LABELS2}/ holds no folder of one of its classes.",
            "Export with input_instance_data, or choose a model_type of pixels, such as UNET.",
        )
    return tuple(sorted(first.classes.index(value) + 1 for value in values))


def collate_panoptic(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """A batch of images (n, bands, rows, cols), and targets; smaller chips are filled with the unknown."""
    images, classes = collate_pixels([(image, target["classes"]) for image, target in samples])
    rows, cols = images.shape[-2:]
    return images, [
        {**target, "classes": shown, "masks": filled(target["masks"], rows, cols, 0)}
        for (_, target), shown in zip(samples, classes, strict=True)
    ]
