"""Chips as training samples. What a sample is depends on its chip and a number drawn for it, nothing else,
so that the number of loader processes changes no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from tasks.train import augmentation
from tasks.train.augmentation import Recipe
from tasks.train.normalisation import Normalisation
from tasks.training_data import Chip, read_boxes, read_chip_image, read_class_mask, read_instances

IGNORED = 255  # label of pixels whose class is unknown
BACKGROUND = 0
_CACHE_BYTES = 1 << 30

Draw = tuple[int, int]  # index of the chip, number that decides the augmentation
Target = dict[str, Tensor]


class DrawSampler(Sampler[Draw]):
    """Every chip once per pass, in an order and with draws that follow from the seed and the pass."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.count = count
        self.generator = np.random.default_rng([seed, 0xC41])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Draw]:
        order = self.generator.permutation(self.count)
        draws = self.generator.integers(0, 2**31, size=self.count)
        return iter([(int(index), int(draw)) for index, draw in zip(order, draws, strict=True)])


class _Chips(Dataset[Any]):
    """Shared by both kinds: reading with a bounded cache, windows, scaling, colours.

    Args:
        chips: the samples.
        normalisation: see there.
        size: edge of the network's input in pixels; None takes the whole chip, cut to a multiple of
            ``multiple`` (validation).
        recipe: augmentation; nothing is varied where ``size`` is None.
    """

    def __init__(
        self,
        chips: Sequence[Chip],
        *,
        normalisation: Normalisation,
        size: int | None,
        recipe: Recipe,
        multiple: int,
    ) -> None:
        self.chips = list(chips)
        self.normalisation = normalisation
        self.size = size
        self.recipe = recipe
        self.multiple = multiple
        self._cache: dict[int, tuple[npt.NDArray[Any], Any]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.chips)

    def read(self, index: int) -> tuple[npt.NDArray[Any], Any]:
        """Pixels  # (bands, rows, cols) and label of a chip, kept in memory while there is room."""
        if index in self._cache:
            return self._cache[index]
        chip = self.chips[index]
        sample = (self.read_image(chip), self.read_label(chip))
        if self._cached_bytes + sample[0].nbytes <= _CACHE_BYTES:
            self._cache[index] = sample
            self._cached_bytes += sample[0].nbytes
        return sample

    def read_image(self, chip: Chip) -> npt.NDArray[Any]:
        """What the network sees of a chip, before it is normalised  # (bands, rows, cols)."""
        return read_chip_image(chip)

    def read_label(self, chip: Chip) -> Any:
        raise NotImplementedError

    def varied(self, image: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[Any]:
        """A normalised picture in other colours."""
        return augmentation.vary_colours(image, self.recipe, rng)

    def _whole(self, rows: int, cols: int) -> tuple[int, int]:
        return rows // self.multiple * self.multiple, cols // self.multiple * self.multiple


class PixelChips(_Chips):
    """Gives (image (bands, size, size) float32, labels (size, size) int64).

    Labels are 0 for the background, 1 to n for the classes in the order of the schema, 255 for unknown.
    """

    def __init__(self, chips: Sequence[Chip], *, ignored: Sequence[int] = (), **options: Any) -> None:
        super().__init__(chips, **options)
        self.ignored = tuple(ignored)

    def read_label(self, chip: Chip) -> npt.NDArray[np.uint8]:
        values = read_class_mask(chip)
        labels = np.zeros(values.shape, dtype=np.uint8)
        for index, value in enumerate(chip.classes.values, start=1):
            labels[values == value] = index
        for value in self.ignored:
            labels[values == value] = IGNORED
        return labels

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        index, number = draw
        pixels, labels = self.read(index)
        if self.size is None:
            rows, cols = self._whole(*labels.shape)
            image = self.normalisation.apply(pixels[:, :rows, :cols])
            return torch.from_numpy(image), torch.from_numpy(labels[:rows, :cols].astype(np.int64))
        rng = np.random.default_rng([index, number])
        rows, cols = labels.shape
        row, col, edge = augmentation.draw_window(rows, cols, self.size, self.recipe, rng)
        window = (slice(row, row + edge), slice(col, col + edge))
        image = self.normalisation.apply(pixels[:, window[0], window[1]])
        cut = labels[window]
        if self.recipe.dihedral:
            code = int(rng.integers(8))
            image, cut = augmentation.dihedral(image, code), augmentation.dihedral(cut, code)
        image = self.varied(image, rng)
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        target = torch.from_numpy(np.ascontiguousarray(cut))
        if edge != self.size:
            tensor = _resized(tensor, self.size)
            target = functional.interpolate(target[None, None], size=(self.size, self.size), mode="nearest")[
                0, 0
            ]
        return tensor, target.long()


class ObjectChips(_Chips):
    """Gives (image (bands, size, size) float32, {"boxes" (n, 4) float32, "labels" (n,) int64}).

    Boxes are xmin, ymin, xmax, ymax in pixels; labels are 1 to n in the order of the class schema.
    """

    def read_label(self, chip: Chip) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        found = read_boxes(chip)
        boxes = np.array([box[1:] for box in found], dtype=np.float32).reshape(-1, 4)
        labels = np.array([chip.classes.index(box[0]) + 1 for box in found], dtype=np.int64)
        return boxes, labels

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target]:
        index, number = draw
        pixels, (boxes, labels) = self.read(index)
        rows, cols = pixels.shape[1:]
        if self.size is None:
            rows, cols = self._whole(rows, cols)
            image = self.normalisation.apply(pixels[:, :rows, :cols])
            cut, kept = augmentation.crop_boxes(boxes, 0, 0, rows, cols)
            return torch.from_numpy(image), _target(cut[kept], labels[kept])
        rng = np.random.default_rng([index, number])
        row, col, edge = augmentation.draw_window(rows, cols, self.size, self.recipe, rng)
        image = self.normalisation.apply(pixels[:, row : row + edge, col : col + edge])
        cut, kept = augmentation.crop_boxes(boxes, row, col, edge, edge)
        cut, labels = cut[kept], labels[kept]
        if self.recipe.dihedral:
            code = int(rng.integers(8))
            image = augmentation.dihedral(image, code)
            cut = augmentation.dihedral_boxes(cut, code, edge, edge)
        image = self.varied(image, rng)
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        if edge != self.size:
            tensor = _resized(tensor, self.size)
            cut = cut * np.float32(self.size / edge)
        return tensor, _target(cut, labels)


class InstanceChips(_Chips):
    """Gives (image (bands, size, size) float32, {"boxes", "labels", "masks" (n, size, size) uint8}).

    A box encloses the visible pixels of its object; labels are 1 to n in the order of the class schema.
    """

    def read_label(self, chip: Chip) -> list[tuple[int, npt.NDArray[Any]]]:
        found = read_instances(chip)
        # By label: the number of the object of each pixel  # (rows, cols)
        return [(chip.classes.index(value) + 1, numbers) for value, numbers in sorted(found.items())]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target]:
        index, number = draw
        pixels, layers = self.read(index)
        rows, cols = pixels.shape[1:]
        if self.size is None:
            rows, cols = self._whole(rows, cols)
            image = self.normalisation.apply(pixels[:, :rows, :cols])
            return torch.from_numpy(image), _objects(layers, (slice(rows), slice(cols)), 0, (rows, cols))
        rng = np.random.default_rng([index, number])
        row, col, edge = augmentation.draw_window(rows, cols, self.size, self.recipe, rng)
        window = (slice(row, row + edge), slice(col, col + edge))
        image = self.normalisation.apply(pixels[:, window[0], window[1]])
        code = int(rng.integers(8)) if self.recipe.dihedral else 0
        image = self.varied(augmentation.dihedral(image, code), rng)
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        if edge != self.size:
            tensor = _resized(tensor, self.size)
        return tensor, _objects(layers, window, code, (self.size, self.size))


class LabelChips(_Chips):
    """Gives (image (bands, size, size) float32, truth (classes,) float32 of zeros and ones).

    A chip is scaled to ``size`` as a whole: what it shows of its object and around it stays. ``output`` is
    that size in validation, where ``size`` is None.
    """

    def __init__(self, chips: Sequence[Chip], *, output: int, **options: Any) -> None:
        super().__init__(chips, **options)
        self.output = output

    def read_label(self, chip: Chip) -> npt.NDArray[np.float32]:
        truth = np.zeros(len(chip.classes), np.float32)
        truth[[chip.classes.index(value) for value in chip.values]] = 1.0
        return truth

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        index, number = draw
        pixels, truth = self.read(index)
        image = self.normalisation.apply(pixels)
        if self.size is not None:
            rng = np.random.default_rng([index, number])
            if self.recipe.dihedral:
                image = augmentation.dihedral(image, int(rng.integers(8)))
            image = self.varied(image, rng)
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        if tensor.shape[-2:] != (self.output, self.output):
            tensor = _resized(tensor, self.output)
        return tensor, torch.from_numpy(truth)


def collate_pixels(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch of images (n, bands, rows, cols) and labels (n, rows, cols)."""
    return torch.stack([image for image, _ in samples]), torch.stack([labels for _, labels in samples])


collate_labels = collate_pixels  # truths stack as masks do


def collate_objects(samples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Lists of images and targets, as torchvision's detectors take them."""
    return [image for image, _ in samples], [target for _, target in samples]


def count_labels(dataset: PixelChips, classes: int) -> npt.NDArray[np.int64]:
    """Pixels per label over all chips: background, then the classes  # (classes + 1,)."""
    total = np.zeros(classes + 1, dtype=np.int64)
    for index in range(len(dataset)):
        labels = dataset.read(index)[1]
        total += np.bincount(labels.ravel(), minlength=256)[: classes + 1]
    return total


def _resized(image: Tensor, size: int) -> Tensor:
    smaller = max(image.shape[-2:]) > size
    return functional.interpolate(
        image[None], size=(size, size), mode="bilinear", align_corners=False, antialias=smaller
    )[0]


def _objects(
    layers: list[tuple[int, npt.NDArray[Any]]],
    window: tuple[slice, slice],
    code: int,
    shape: tuple[int, int],
) -> Target:
    """Masks, boxes and labels of the objects of which enough lies inside of the window.

    Args:
        shape: (rows, cols) of the masks; the turned window is scaled to it.
    """
    masks, labels = [], []
    for label, numbers in layers:
        cut = augmentation.dihedral(numbers[window], code)
        present, visible = np.unique(cut[cut > 0], return_counts=True)
        for number, pixels in zip(present, visible, strict=True):
            if pixels >= augmentation.VISIBLE_AT_LEAST * np.count_nonzero(numbers == number):
                masks.append(cut == number)
                labels.append(label)
    stack = torch.zeros((0, *shape), dtype=torch.uint8)
    if masks:
        stack = torch.from_numpy(np.stack(masks)).to(torch.uint8)
        if stack.shape[1:] != shape:
            stack = functional.interpolate(stack[None], size=shape, mode="nearest")[0]
    kept, boxes = [], []
    for position, mask in enumerate(stack.numpy()):
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) > 1 and len(cols) > 1:  # slivers have no inside
            kept.append(position)
            boxes.append((cols[0], rows[0], cols[-1] + 1, rows[-1] + 1))
    target = _target(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)[kept])
    return {**target, "masks": stack[kept]}


def _target(boxes: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Target:
    return {
        "boxes": torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float32)),
        "labels": torch.from_numpy(np.ascontiguousarray(labels)),
    }
