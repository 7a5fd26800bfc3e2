"""Chips as pairs of pictures: what a network sees, and what it is to make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from tasks.train import augmentation
from tasks.train.augmentation import Recipe
from tasks.train.datasets import Draw
from tasks.train.normalisation import Normalisation
from tasks.training_data import Chip, read_chip, read_chip2

_CACHE_BYTES = 1 << 30

Picture = tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]
"""Pixels and where they are known (None: everywhere), both (bands, rows, cols)."""


@dataclass(frozen=True)
class SideChip(Chip):
    """A chip of one of the two sides of CycleGAN training data."""

    side: str = "A"

    @classmethod
    def of(cls, chip: Chip, side: str) -> SideChip:
        """The chip, and which side it is of."""
        return cls(**vars(chip), side=side)


class _Pictures(Dataset[Any]):
    """Shared: reading with a bounded cache, windows, turns. Colours stay: they are what is learned.

    Args:
        normalisation: of what the network sees.
        output: of what it makes.
        size: edge of the network's input in pixels; None takes whole chips, cut to a multiple of
            ``multiple`` (validation).
        recipe: of it the turns and mirrors are taken.
    """

    def __init__(
        self,
        *,
        normalisation: Normalisation,
        output: Normalisation,
        size: int | None,
        recipe: Recipe,
        multiple: int,
    ) -> None:
        self.normalisation = normalisation
        self.output = output
        self.size = size
        self.recipe = replace(recipe, scale=0.0)  # the cell size is part of what is learned, too
        self.multiple = multiple
        self._cache: dict[Any, tuple[Picture, ...]] = {}
        self._cached_bytes = 0

    def kept(self, key: Any, *chips: Chip) -> tuple[Picture, ...]:
        """What :meth:`read` gives, kept in memory while there is room."""
        if key in self._cache:
            return self._cache[key]
        found = self.read(*chips)
        size = sum(pixels.nbytes + (0 if known is None else known.nbytes) for pixels, known in found)
        if self._cached_bytes + size <= _CACHE_BYTES:
            self._cache[key] = found
            self._cached_bytes += size
        return found

    def read(self, chip: Chip) -> tuple[Picture, ...]:
        """The pictures of a chip, of one size."""
        raise NotImplementedError

    def pictures(self, index: int) -> tuple[Picture, ...]:
        """Those of a sample."""
        raise NotImplementedError

    def amount(self, index: int) -> float:
        """How much there is to see: the spread of the values."""
        return float(np.std(self.pictures(index)[-1][0]))

    def cut(
        self, pictures: Sequence[Picture], scales: Sequence[Normalisation], rng: np.random.Generator | None
    ) -> list[Tensor]:
        """The same window of each picture, turned alike, normalised; NaN where it is not known.

        Args:
            rng: draws window and turn; None: the whole pictures.
        """
        rows, cols = pictures[0][0].shape[1:]
        if rng is None or self.size is None:
            window = tuple(slice(0, max(n // self.multiple, 1) * self.multiple) for n in (rows, cols))
            code = 0
        else:
            row, col, edge = augmentation.draw_window(rows, cols, self.size, self.recipe, rng)
            window = (slice(row, row + edge), slice(col, col + edge))
            code = augmentation.draw_code(self.recipe, rng)
        made = []
        for (pixels, known), scale in zip(pictures, scales, strict=True):
            values = scale.apply(augmentation.dihedral(pixels[:, window[0], window[1]], code))
            if known is not None:
                values[~augmentation.dihedral(known[:, window[0], window[1]], code)] = np.nan
            made.append(torch.from_numpy(np.ascontiguousarray(values)))
        return made


class TranslationChips(_Pictures):
    """Gives (input, target), both (bands, size, size) float32; pixels that are not known are NaN.

    Args:
        chips: with a second picture each, unless ``factor`` is given.
        scale: by how much both pictures are enlarged first (``resize_to``).
        factor: the input is the target as imagery of cells larger by this factor would show it, unless there
            is a second picture, which is the input then. None: the second picture is the target.
    """

    def __init__(
        self, chips: Sequence[Chip], *, factor: int | None, scale: float = 1.0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.chips = list(chips)
        self.factor = factor
        self.scale = scale

    def __len__(self) -> int:
        return len(self.chips)

    def read(self, chip: Chip) -> tuple[Picture, ...]:
        first = scaled(*read_chip(chip), self.scale)
        if chip.image2 is not None:
            second = scaled(*read_chip2(chip), self.scale)
            return (first, second) if self.factor is None else (second, first)
        assert self.factor is not None  # check_pairs has seen it
        return (coarsened(*first, self.factor), first)

    def pictures(self, index: int) -> tuple[Picture, ...]:
        return self.kept(index, self.chips[index])

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        rng = None if self.size is None else np.random.default_rng(draw)
        image, target = self.cut(self.pictures(draw[0]), (self.normalisation, self.output), rng)
        return _filled(image, self.normalisation), target


class UnpairedChips(_Pictures):
    """Gives a picture of side A and one of side B, both (bands, size, size) float32, drawn apart."""

    def __init__(self, chips: Sequence[Chip], **options: Any) -> None:
        super().__init__(**options)
        self.a = [chip for chip in chips if isinstance(chip, SideChip) and chip.side == "A"]
        self.b = [chip for chip in chips if isinstance(chip, SideChip) and chip.side == "B"]

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    def read(self, chip: Chip) -> tuple[Picture, ...]:
        return (read_chip(chip),)

    def pictures(self, index: int) -> tuple[Picture, ...]:
        return self.kept(("A", index % len(self.a)), self.a[index % len(self.a)])

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        index = draw[0]
        rng = None if self.size is None else np.random.default_rng(draw)
        made = []
        for side, chips, scale in (("A", self.a, self.normalisation), ("B", self.b, self.output)):
            # The smaller side comes round again; in training any picture may go with any.
            number = index % len(chips) if rng is None or side == "A" else int(rng.integers(len(chips)))
            (image,) = self.cut(self.kept((side, number), chips[number]), (scale,), rng)
            made.append(_filled(image, scale))
        return made[0], made[1]


Pictures = TranslationChips | UnpairedChips


def coarsened(
    pixels: npt.NDArray[Any], known: npt.NDArray[np.bool_] | None, factor: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Imagery as sensors with cells larger by ``factor`` see it, on the same cells.

    Cells are averaged, and interpolated back as the reader does it that brings coarse imagery to the cells
    of the network (bilinear).

    Args:
        pixels, known: # (bands, rows, cols)
    """
    rows, cols = pixels.shape[1:]
    values = torch.from_numpy(pixels.astype(np.float32))[None]
    if known is not None:
        values[:, ~torch.from_numpy(known)] = 0.0
    small = functional.interpolate(values, size=(max(rows // factor, 1), max(cols // factor, 1)), mode="area")
    large = functional.interpolate(small, size=(rows, cols), mode="bilinear", align_corners=False)[0].numpy()
    return _of_type(large, pixels.dtype), known


def scaled(pixels: npt.NDArray[Any], known: npt.NDArray[np.bool_] | None, scale: float) -> Picture:
    """A picture of other cells: averaged where they are larger, interpolated (bilinear) where smaller.

    What is made with the help of a pixel that is not known is not known either.

    Args:
        pixels, known: # (bands, rows, cols)
        scale: by how much rows and columns become more.
    """
    if scale == 1.0:
        return pixels, known
    size = tuple(max(1, round(count * scale)) for count in pixels.shape[1:])

    def resampled(values: Tensor) -> npt.NDArray[np.float32]:
        if scale < 1:
            made = functional.interpolate(values[None], size=size, mode="area")
        else:
            made = functional.interpolate(values[None], size=size, mode="bilinear", align_corners=False)
        array: npt.NDArray[np.float32] = made[0].numpy()
        return array

    values = torch.from_numpy(pixels.astype(np.float32))
    if known is None:
        return _of_type(resampled(values), pixels.dtype), None
    there = torch.from_numpy(known)
    values[~there] = 0.0
    return _of_type(resampled(values), pixels.dtype), resampled(there.float()) > 1.0 - 1e-4


def _of_type(values: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def _filled(image: Tensor, scale: Normalisation) -> Tensor:
    """What is not known as the package's function sees it: 0, normalised."""
    nothing = torch.from_numpy(scale.nothing)[:, None, None]
    return torch.where(image.isnan(), nothing, image)
