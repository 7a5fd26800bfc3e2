"""Augmentation that keeps labels true: every change of the picture is done to the label as well.

All functions are pure; the same generator state gives the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Boxes = npt.NDArray[np.float32]  # (n, 4): xmin, ymin, xmax, ymax in pixels, max edges exclusive

# A box that a crop cuts to less than this share of its area teaches edges, not objects.
VISIBLE_AT_LEAST = 0.25


@dataclass(frozen=True)
class Recipe:
    """How strongly chips are varied; zeros and False leave them as they are.

    Attributes:
        dihedral: the eight turns and mirrors of a square.
        brightness: largest shift of all bands, in standard deviations.
        contrast: largest relative change of the spread about the chip's mean.
        tint: largest shift of a single band, in standard deviations.
        scale: largest change of size, as the natural logarithm of the factor.
    """

    dihedral: bool = True
    brightness: float = 0.4
    contrast: float = 0.2
    tint: float = 0.15
    scale: float = 0.2


DEFAULT = Recipe()
NONE = Recipe(dihedral=False, brightness=0.0, contrast=0.0, tint=0.0, scale=0.0)


def dihedral(image: Array, code: int) -> Array:
    """One of the eight turns and mirrors of the last two axes: bit 0 left-right, 1 up-down, 2 transposed."""
    if code & 1:
        image = image[..., ::-1]
    if code & 2:
        image = image[..., ::-1, :]
    if code & 4:
        image = np.swapaxes(image, -1, -2)
    return image


def dihedral_boxes(boxes: Boxes, code: int, rows: int, cols: int) -> Boxes:
    """The boxes of a chip of (rows, cols) pixels after :func:`dihedral` with the same code."""
    xmin, ymin, xmax, ymax = boxes.T
    if code & 1:
        xmin, xmax = cols - xmax, cols - xmin
    if code & 2:
        ymin, ymax = rows - ymax, rows - ymin
    if code & 4:
        xmin, ymin, xmax, ymax = ymin, xmin, ymax, xmax
    return np.stack([xmin, ymin, xmax, ymax], axis=1).astype(np.float32)


def crop_boxes(boxes: Boxes, row: int, col: int, rows: int, cols: int) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """The boxes relative to a window, cut at its edges, and which of them are kept.

    A box is kept when at least ``VISIBLE_AT_LEAST`` of its area and more than a pixel of it are inside.
    """
    shifted = boxes - np.array([col, row, col, row], dtype=np.float32)
    limits = np.array([cols, rows, cols, rows], dtype=np.float32)
    cut = np.clip(shifted, 0.0, limits).astype(np.float32)
    sizes = cut[:, 2:] - cut[:, :2]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept = (sizes > 1.0).all(axis=1) & (sizes.prod(axis=1) >= VISIBLE_AT_LEAST * areas)
    return cut, kept


def vary_colours(image: npt.NDArray[np.float32], recipe: Recipe, rng: np.random.Generator) -> Array:
    """Brightness, contrast and tint of a normalised chip  # (bands, rows, cols) float32."""
    bands = len(image)
    contrast = 1.0 + rng.uniform(-recipe.contrast, recipe.contrast)
    shift = rng.uniform(-recipe.brightness, recipe.brightness)
    tint = rng.uniform(-recipe.tint, recipe.tint, size=(bands, 1, 1))
    mean = image.mean(axis=(1, 2), keepdims=True)
    result: Array = ((image - mean) * contrast + mean + shift + tint).astype(np.float32)
    return result


def draw_window(
    rows: int, cols: int, size: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[int, int, int]:
    """A square window (row, col, edge) inside a chip; its edge differs from ``size`` by the scale."""
    edge = size
    if recipe.scale:
        edge = round(size * float(np.exp(rng.uniform(-recipe.scale, recipe.scale))))
    edge = max(1, min(edge, rows, cols))
    return int(rng.integers(0, rows - edge + 1)), int(rng.integers(0, cols - edge + 1)), edge
