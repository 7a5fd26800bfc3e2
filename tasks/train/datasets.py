"""Chips as training samples. What a sample is depends on its chip and a number drawn for it, nothing else,
so that the number of loader processes changes no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from tasks.labels import ClassSchema
from tasks.train import augmentation
from tasks.train.augmentation import Recipe
from tasks.train.chip_cache import ChipCache
from tasks.train.normalisation import Normalisation
from tasks.training_data import Chip, read_boxes, read_chip, read_class_mask, read_instances

IGNORED = 255  # label of pixels whose class is unknown
BACKGROUND = 0
_CACHE_BYTES = 1 << 30

Draw = tuple[int, int]  # index of the chip, number that decides the augmentation
Target = dict[str, Tensor]
Pixels = npt.NDArray[Any]
Known = npt.NDArray[np.bool_] | None  # (bands, rows, cols), where there is data; None: everywhere


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


@dataclass(frozen=True)
class _Kept:
    """A chip as it is kept: pixels and where they are known  # (bands, rows, cols); its label."""

    pixels: Pixels
    known: Known
    label: Any


@dataclass(frozen=True)
class _Varied:
    """A chip as the network sees it.

    Attributes:
        image: # (bands, size, size) float32
        layers: what went along with it, pixel by pixel  # (n, size, size), whole numbers
        boxes: # (n, 4), not cut at the edges
        area: by how much areas have grown.
    """

    image: Tensor
    layers: Pixels | None
    boxes: npt.NDArray[np.float32] | None
    area: float


class _Chips(Dataset[Any]):
    """Shared by all kinds: reading with a bounded cache, windows, scaling, colours.

    Args:
        chips: the samples; they may differ in size.
        normalisation: see there.
        size: edge of the network's input in pixels; None takes the whole chip, cut to a multiple of
            ``multiple`` (validation).
        recipe: augmentation; nothing is varied where ``size`` is None.
        factor: by how much chips are enlarged (``resize_to``); ``size`` and ``multiple`` are in enlarged
            pixels.

    Attributes:
        pictures: of how many pictures the bands are; each has its own colours.
        outside: value of the layers where no chip shows anything.
    """

    pictures = 1
    outside = 0

    def __init__(
        self,
        chips: Sequence[Chip],
        *,
        normalisation: Normalisation,
        size: int | None,
        recipe: Recipe,
        multiple: int,
        factor: float = 1.0,
    ) -> None:
        self.chips = list(chips)
        self.normalisation = normalisation
        self.size = size
        self.recipe = recipe
        self.multiple = multiple
        self.factor = factor
        self._cache = ChipCache(len(self.chips), _CACHE_BYTES)

    def __len__(self) -> int:
        return len(self.chips)

    def read(self, index: int) -> _Kept:
        """A chip, kept in memory while there is room."""
        found: _Kept | None = self._cache.get(index)
        if found is not None:
            return found
        chip = self.chips[index]
        pixels, known = self.read_image(chip)
        kept = _Kept(pixels, known, self.read_label(chip, known))
        self._cache.put(index, kept)
        return kept

    def read_image(self, chip: Chip) -> tuple[Pixels, Known]:
        """What the network sees of a chip, before it is normalised."""
        return read_chip(chip)

    def read_label(self, chip: Chip, known: Known) -> Any:
        """What a chip is labelled with; ``known``: where it holds data."""
        raise NotImplementedError

    def shown(self, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Where every picture shows something, in one band at least  # (rows, cols)."""
        shown: npt.NDArray[np.bool_] = np.logical_and.reduce(
            [part.any(axis=0) for part in np.split(known, self.pictures)]
        )
        return shown

    def amount(self, index: int) -> float:
        """How much of a chip's label there is to see: pixels, objects or classes."""
        label = self.read(index).label
        return float(len(label[0]) if isinstance(label, tuple) else np.count_nonzero(label))

    def varied(
        self,
        draw: Draw,
        kept: _Kept,
        layers: Pixels | None = None,
        boxes: npt.NDArray[np.float32] | None = None,
    ) -> _Varied:
        """The chip as the draw decides.

        Args:
            layers: # (n, rows, cols), whole numbers
            boxes: # (n, 4)
        """
        assert self.size is not None
        rng = np.random.default_rng(draw)
        if self.recipe.steps:
            return self._stepped(rng, kept, layers, boxes)
        pixels, known, layers = self._padded(kept, layers)
        rows, cols = pixels.shape[1:]
        row, col, edge = augmentation.draw_window(
            rows, cols, round(self.size / self.factor), self.recipe, rng
        )
        window = (..., slice(row, row + edge), slice(col, col + edge))
        code = augmentation.draw_code(self.recipe, rng)
        pixels = augmentation.dihedral(pixels[window], code)
        known = None if known is None else augmentation.dihedral(known[window], code)
        image = torch.from_numpy(self.coloured(pixels, known, rng))
        if layers is not None:
            layers = augmentation.dihedral(layers[window], code)
            layers = augmentation.nearest(layers, self.size, self.size) if edge != self.size else layers
        if boxes is not None:
            boxes = boxes - np.array([col, row, col, row], np.float32)
            boxes = augmentation.dihedral_boxes(boxes, code, edge, edge) * np.float32(self.size / edge)
        if edge != self.size:
            image = _resized(image, self.size, self.size)
        return _Varied(image, layers, boxes, (self.size / edge) ** 2)

    def coloured(self, pixels: Pixels, known: Known, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """The network's input for pixels, in other colours; those of each picture vary apart."""
        bands = len(pixels) // self.pictures
        contrasts, shifts = [], []
        for _ in range(self.pictures):
            contrast, shift = augmentation.draw_colours(self.recipe, bands, rng)
            contrasts += [contrast] * bands
            shifts.append(shift)
        return self.normalisation.apply(
            pixels, np.array(contrasts, np.float32), np.concatenate(shifts), known
        )

    def whole(self, kept: _Kept) -> tuple[Tensor, tuple[int, int]]:
        """The whole chip as the network's input, cut to (or, if it is smaller, filled to) a multiple.

        Returns:
            The image and its (rows, cols); :meth:`whole_layers` gives the same part of layers.
        """
        image = torch.from_numpy(self.normalisation.apply(kept.pixels, known=kept.known))
        rows, cols = image.shape[1:]
        if self.factor != 1.0:
            rows, cols = round(rows * self.factor), round(cols * self.factor)
            image = _resized(image, rows, cols)
        step = self.multiple
        rows, cols = max(rows // step, 1) * step, max(cols // step, 1) * step
        image = image[:, :rows, :cols]
        missing = (0, cols - image.shape[2], 0, rows - image.shape[1])
        if any(missing):
            nothing = torch.from_numpy(self.normalisation.nothing)[:, None, None]
            frame = nothing.expand(-1, rows, cols).clone()
            frame[:, : image.shape[1], : image.shape[2]] = image
            image = frame
        return image.contiguous(), (rows, cols)

    def whole_layers(self, layers: Pixels, shape: tuple[int, int]) -> Pixels:
        """Layers (..., rows, cols) of the whole chip, as :meth:`whole` cuts it; they are not enlarged."""
        rows, cols = shape
        return augmentation.padded(layers[..., :rows, :cols], rows, cols, self.outside)

    def _padded(self, kept: _Kept, layers: Pixels | None) -> tuple[Pixels, Known, Pixels | None]:
        """A chip that is smaller than the window is filled: enlarged, its objects would have another size."""
        assert self.size is not None
        edge = round(self.size / self.factor)
        pixels, known = kept.pixels, kept.known
        if min(pixels.shape[1:]) < edge:
            known = np.ones(pixels.shape, np.bool_) if known is None else known
            known = augmentation.padded(known, edge, edge, fill=False)
            pixels = augmentation.padded(pixels, edge, edge, 0)
            layers = None if layers is None else augmentation.padded(layers, edge, edge, self.outside)
        return pixels, known, layers

    def _stepped(
        self,
        rng: np.random.Generator,
        kept: _Kept,
        layers: Pixels | None,
        boxes: npt.NDArray[np.float32] | None,
    ) -> _Varied:
        from tasks.train import variations

        assert self.size is not None
        pixels, known, layers = self._padded(kept, layers)
        view = variations.view_of(
            torch.from_numpy(self.normalisation.apply(pixels, known=known)),
            None if known is None else torch.from_numpy((~known).astype(np.uint8)),
            None if layers is None else torch.from_numpy(np.ascontiguousarray(layers)),
            None if boxes is None else torch.from_numpy(boxes),
        )
        view = variations.vary(view, self.recipe, self.normalisation, rng, outside=self.outside)
        edge = round(self.size / self.factor)
        if not view.cropped:
            rows, cols = view.shape
            row, col = int(rng.integers(0, rows - edge + 1)), int(rng.integers(0, cols - edge + 1))
            view = variations.crop(view, row, col, edge, edge)
        view = variations.resize(view, self.size, self.size)
        return _Varied(
            view.image.as_subclass(Tensor).contiguous(),
            None if view.layers is None else view.layers.as_subclass(Tensor).numpy(),
            None if view.boxes is None else view.boxes.as_subclass(Tensor).numpy(),
            view.area,
        )


class PixelChips(_Chips):
    """Gives (image (bands, size, size) float32, labels (size, size) int64).

    Labels are 0 for the background, 1 to n for the classes in the order of the schema, 255 for unknown: of
    ignored classes, and where no band holds data.
    """

    outside = IGNORED

    def __init__(self, chips: Sequence[Chip], *, ignored: Sequence[int] = (), **options: Any) -> None:
        super().__init__(chips, **options)
        self.ignored = tuple(ignored)

    def read_label(self, chip: Chip, known: Known) -> npt.NDArray[np.uint8]:
        values = read_class_mask(chip)
        labels = labels_of(values, chip.classes)
        for value in self.ignored:
            labels[values == value] = IGNORED
        if known is not None:
            labels[~self.shown(known)] = IGNORED
        return labels

    def amount(self, index: int) -> float:
        label = self.read(index).label
        return float(np.count_nonzero((label > 0) & (label != IGNORED)))

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        kept = self.read(draw[0])
        if self.size is None:
            image, shape = self.whole(kept)
            labels = self.whole_layers(kept.label, shape)
        else:
            varied = self.varied(draw, kept, kept.label[None])
            assert varied.layers is not None
            image, labels = varied.image, varied.layers[0]
        return image, torch.from_numpy(labels.astype(np.int64))


class ObjectChips(_Chips):
    """Gives (image (bands, size, size) float32, {"boxes" (n, 4) float32, "labels" (n,) int64}).

    Boxes are xmin, ymin, xmax, ymax in pixels; labels are 1 to n in the order of the class schema.
    """

    def read_label(self, chip: Chip, known: Known) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:  # noqa: ARG002
        found = read_boxes(chip)
        boxes = np.array([box[1:] for box in found], dtype=np.float32).reshape(-1, 4)
        labels = np.array([chip.classes.index(box[0]) + 1 for box in found], dtype=np.int64)
        return boxes, labels

    def most_objects(self) -> int:
        """How many objects the fullest chip has; labels are read, no pixels."""
        return max((len(read_boxes(chip)) for chip in self.chips), default=0)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target]:
        kept = self.read(draw[0])
        boxes, labels = kept.label
        if self.size is None:
            image, shape = self.whole(kept)
            boxes = boxes * np.float32(self.factor)
        else:
            varied = self.varied(draw, kept, boxes=boxes)
            assert varied.boxes is not None
            image, boxes, shape = varied.image, varied.boxes, (self.size, self.size)
        cut, visible = augmentation.crop_boxes(boxes, 0, 0, *shape)
        return image, _target(cut[visible], labels[visible])


class InstanceChips(_Chips):
    """Gives (image (bands, size, size) float32, {"boxes", "labels", "masks" (n, size, size) uint8}).

    A box encloses the visible pixels of its object; labels are 1 to n in the order of the class schema.
    """

    def read_label(self, chip: Chip, known: Known) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:  # noqa: ARG002
        found = sorted(read_instances(chip).items())
        labels = np.array([chip.classes.index(value) + 1 for value, _ in found], np.int64)
        # By label: the number of the object of each pixel  # (labels, rows, cols)
        return labels, np.array([numbers for _, numbers in found], np.int32)

    def amount(self, index: int) -> float:
        return float(sum(len(np.unique(layer[layer > 0])) for layer in self.read(index).label[1]))

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target]:
        kept = self.read(draw[0])
        labels, layers = kept.label
        if not len(labels):  # a chip that shows no object
            layers = np.zeros((0, *kept.pixels.shape[1:]), np.int32)
        if self.size is None:
            image, shape = self.whole(kept)
            return image, objects_in(labels, layers, self.whole_layers(layers, shape), 1.0)
        varied = self.varied(draw, kept, layers)
        assert varied.layers is not None
        return varied.image, objects_in(labels, layers, varied.layers, varied.area)


class LabelChips(_Chips):
    """Gives (image (bands, size, size) float32, truth (classes,) float32 of zeros and ones).

    A chip is scaled to ``output`` as a whole: what it shows of its object and around it stays. Where
    ``size`` is less than that, a window of ``size`` is taken in training.
    """

    def __init__(self, chips: Sequence[Chip], *, output: int, **options: Any) -> None:
        super().__init__(chips, **options)
        self.output = output

    def read_label(self, chip: Chip, known: Known) -> npt.NDArray[np.float32]:  # noqa: ARG002
        truth = np.zeros(len(chip.classes), np.float32)
        truth[[chip.classes.index(value) for value in chip.values]] = 1.0
        return truth

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        kept = self.read(draw[0])
        if self.size is None:
            image = torch.from_numpy(self.normalisation.apply(kept.pixels, known=kept.known))
            return _resized(image, self.output, self.output), torch.from_numpy(kept.label)
        rng = np.random.default_rng(draw)
        if self.recipe.steps:
            from tasks.train import variations

            image = torch.from_numpy(self.normalisation.apply(kept.pixels, known=kept.known))
            unknown = None if kept.known is None else torch.from_numpy((~kept.known).astype(np.uint8))
            view = variations.vary(
                variations.view_of(image, unknown), self.recipe, self.normalisation, rng, outside=0
            )
            image = view.image.as_subclass(Tensor)
        else:
            code = augmentation.draw_code(self.recipe, rng)
            known = None if kept.known is None else augmentation.dihedral(kept.known, code)
            image = torch.from_numpy(self.coloured(augmentation.dihedral(kept.pixels, code), known, rng))
        image = _resized(image, self.output, self.output)
        row, col = (int(value) for value in rng.integers(0, self.output - self.size + 1, size=2))
        image = image[:, row : row + self.size, col : col + self.size]
        return image.contiguous(), torch.from_numpy(kept.label)


def collate_pixels(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch of images (n, bands, rows, cols) and labels (n, rows, cols).

    Chips of several sizes (in validation, where they are whole) are filled: what is added is unknown.
    """
    shapes = {image.shape[-2:] for image, _ in samples}
    if len(shapes) > 1:
        rows, cols = (max(shape[axis] for shape in shapes) for axis in (0, 1))
        samples = [
            (filled(image, rows, cols, 0.0), filled(labels, rows, cols, IGNORED)) for image, labels in samples
        ]
    return torch.stack([image for image, _ in samples]), torch.stack([labels for _, labels in samples])


def collate_labels(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch of images (n, bands, rows, cols) and truths (n, classes)."""
    return torch.stack([image for image, _ in samples]), torch.stack([truth for _, truth in samples])


def collate_objects(samples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Lists of images and targets, as torchvision's detectors take them."""
    return [image for image, _ in samples], [target for _, target in samples]


def labels_of(values: Pixels, schema: ClassSchema) -> npt.NDArray[np.uint8]:
    """The label of each class value: from 1, in the order of the schema; 0 for all else."""
    labels = np.zeros(values.shape, dtype=np.uint8)
    for label, value in enumerate(schema.values, start=1):
        labels[values == value] = label
    return labels


def count_labels(dataset: PixelChips, classes: int) -> npt.NDArray[np.int64]:
    """Pixels per label over all chips: background, then the classes  # (classes + 1,)."""
    total = np.zeros(classes + 1, dtype=np.int64)
    for index in range(len(dataset)):
        labels = dataset.read(index).label
        total += np.bincount(labels.ravel(), minlength=256)[: classes + 1]
    return total


def filled(tensor: Tensor, rows: int, cols: int, value: float) -> Tensor:
    """The tensor (..., rows, cols) with ``value`` to the right and below, so that it has that size."""
    missing = (0, cols - tensor.shape[-1], 0, rows - tensor.shape[-2])
    return functional.pad(tensor, missing, value=value)


def _resized(image: Tensor, rows: int, cols: int) -> Tensor:
    if image.shape[-2:] == (rows, cols):
        return image
    smaller = image.shape[-2] > rows or image.shape[-1] > cols
    return functional.interpolate(
        image[None], size=(rows, cols), mode="bilinear", align_corners=False, antialias=smaller
    )[0]


def objects_in(
    labels: npt.NDArray[np.int64], before: npt.NDArray[Any], after: npt.NDArray[Any], area: float
) -> Target:
    """Masks, boxes and labels of the objects of which enough is left.

    Args:
        labels: of each layer.
        before, after: the numbers of the objects in the chip and in the sample  # (labels, rows, cols)
        area: by how much areas have grown.
    """
    masks, found = [], []
    for label, old, new in zip(labels, before, after, strict=True):
        sizes = dict(
            zip(*(part.tolist() for part in np.unique(old[old > 0], return_counts=True)), strict=True)
        )
        present, visible = np.unique(new[new > 0], return_counts=True)
        for number, pixels in zip(present.tolist(), visible.tolist(), strict=True):
            mask = new == number
            rows, cols = mask.any(axis=1).sum(), mask.any(axis=0).sum()
            # Slivers have no inside.
            if pixels >= augmentation.VISIBLE_AT_LEAST * area * sizes[number] and min(rows, cols) > 1:
                masks.append(mask)
                found.append(label)
    boxes = []
    for mask in masks:
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((cols[0], rows[0], cols[-1] + 1, rows[-1] + 1))
    stack = np.array(masks, np.uint8).reshape(-1, *after.shape[1:])
    target = _target(np.array(boxes, np.float32).reshape(-1, 4), np.array(found, np.int64))
    return {**target, "masks": torch.from_numpy(stack)}


def _target(boxes: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Target:
    return {
        "boxes": torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float32)),
        "labels": torch.from_numpy(np.ascontiguousarray(labels)),
    }
