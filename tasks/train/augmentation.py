"""Augmentation that keeps labels true: every change of the picture is done to the label as well.

All functions are pure; the same generator state gives the same result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.train.recipes import DEFAULT, NONE, Recipe

__all__ = ["DEFAULT", "NONE", "Recipe"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Boxes = npt.NDArray[np.float32]  # (n, 4): xmin, ymin, xmax, ymax in pixels, max edges exclusive

# A box that a crop cuts to less than this share of its area teaches edges, not objects.
VISIBLE_AT_LEAST = 0.25


def draw_code(recipe: Recipe, rng: np.random.Generator) -> int:
    """Which of the eight positions a chip is put into; see :func:`dihedral`."""
    if not recipe.dihedral:
        return 0
    return int(rng.integers(2 if recipe.upright else 8))


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


def draw_colours(recipe: Recipe, bands: int, rng: np.random.Generator) -> tuple[float, Floats]:
    """Other colours of a normalised chip: the factor about each band's mean, and a shift of each band."""
    contrast = 1.0 + rng.uniform(-recipe.contrast, recipe.contrast)
    shift = rng.uniform(-recipe.brightness, recipe.brightness)
    tint = rng.uniform(-recipe.tint, recipe.tint, size=bands)
    return float(contrast), (shift + tint).astype(np.float32)


def draw_window(
    rows: int, cols: int, size: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[int, int, int]:
    """A square window (row, col, edge) inside a chip; its edge differs from ``size`` by the scale."""
    edge = size
    if recipe.scale:
        edge = round(size * float(np.exp(rng.uniform(-recipe.scale, recipe.scale))))
    edge = max(1, min(edge, rows, cols))
    return int(rng.integers(0, rows - edge + 1)), int(rng.integers(0, cols - edge + 1)), edge


def nearest_pixels(old: int, new: int) -> npt.NDArray[np.int64]:
    """Of an axis of ``old`` pixels in ``new`` ones: which old pixel the centre of each new one lies in.

    The picture is interpolated between centres of pixels; counted from corners, labels would lie beside it.
    """
    return (2 * np.arange(new, dtype=np.int64) + 1) * old // (2 * new)


def nearest(layers: Array, rows: int, cols: int) -> Array:
    """Layers of whole numbers (..., rows, cols) in another size; every pixel keeps one of the old values."""
    row, col = nearest_pixels(layers.shape[-2], rows), nearest_pixels(layers.shape[-1], cols)
    result: Array = layers[..., row[:, None], col]
    return result


def padded(array: Array, rows: int, cols: int, fill: float) -> Array:
    """The array (..., rows, cols) with ``fill`` to the right and below, so that it has at least that size."""
    missing = max(rows - array.shape[-2], 0), max(cols - array.shape[-1], 0)
    if not any(missing):
        return array
    margins = [(0, 0)] * (array.ndim - 2) + [(0, missing[0]), (0, missing[1])]
    return np.pad(array, margins, constant_values=fill)
