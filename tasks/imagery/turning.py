"""Turning: the pixels of a place that lies at an angle, taken from the window around it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.imagery.places import Place
from tasks.imagery.windows import Window

TurningMethod = Literal["nearest", "bilinear"]
_Scalar = TypeVar("_Scalar", bound=np.generic)

_REMEMBERED_PX = 512 * 512
"""Larger chips are not remembered: 16 bytes per pixel and angle would add up."""


def turned(
    values: NDArray[_Scalar],
    place: Place,
    window: Window,
    *,
    method: TurningMethod = "nearest",
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[_Scalar]:
    """The pixels of a place, as its chip shows them.

    A place that is turned by quarters gives the grid's own pixels in another order. At any other angle each
    chip pixel takes the grid pixel that its centre lies in ("nearest": masks, validity, instances), or the
    mean of the four whose centres are around its centre, weighted by closeness ("bilinear": pictures; whole
    numbers are rounded). What a chip pixel holds depends on its place relative to the grid's pixels only,
    to the last bit: a place moved by whole pixels gives the chip of a picture that is moved likewise.

    Args:
        values: the pixels of ``window``.  # (..., rows, cols)
        place: where the chip lies on the grid.
        window: what ``values`` hold; chip pixels outside of it are 0. ``place.window`` is enough.
        method: how chip pixels are made from grid pixels, at angles that are not quarters.
        valid: which pixels of ``window`` hold data; others, and pixels outside, do not take part in a mean,
            and a chip pixel whose centre lies in one is 0. None if all do.  # (rows, cols), bool

    Returns:
        A contiguous array of its own, of the same type (of a single value without memory, as
        :attr:`Pixels.valid` may be, again such a read-only one).  # (..., place.rows, place.cols)
    """
    if values.shape[-2:] != window.shape or (valid is not None and valid.shape != window.shape):
        raise ValueError(f"Arrays of {window.shape} pixels are needed; got {values.shape}.")
    shape = (*values.shape[:-2], place.rows, place.cols)
    # Everything is reckoned from the place at the origin, so that positions leave no trace in the results.
    anchored = Place(0, 0, place.rows, place.cols, place.angle)
    around = anchored.window.shift(place.row, place.col)
    if valid is not None and not _all(valid):
        values = np.where(valid, values, np.zeros((), values.dtype))
    elif window.contains(around):
        if values.size and not any(values.strides):
            return np.broadcast_to(values[(0,) * values.ndim], shape)
        valid = None
    else:
        valid = np.ones(window.shape, np.bool_)
    held = _held(values, window, around)
    if place.is_exact:
        return np.array(np.rot90(held, -place.quarters, axes=(-2, -1)), order="C")
    remembered = place.rows * place.cols <= _REMEMBERED_PX
    sampling = (_sampling if remembered else _sampling.__wrapped__)(place.rows, place.cols, place.angle)
    planes = held.reshape(-1, around.rows * around.cols)
    if method == "nearest":
        return planes.take(sampling.nearest, axis=1).reshape(shape)
    holds = None if valid is None else _held(valid, window, around).reshape(-1)
    return _blended(planes, holds, sampling, around.cols).reshape(shape)


@dataclass(frozen=True, slots=True)
class _Sampling:
    """For each chip pixel, in rows, where it samples the window around the place."""

    nearest: NDArray[np.intp]  # index of the pixel that holds the centre
    upper_left: NDArray[np.intp]  # index of the first of the four pixels around the centre
    right: NDArray[np.float32]  # how far the centre lies right of that pixel's centre, 0 to 1
    down: NDArray[np.float32]


@lru_cache(maxsize=32)
def _sampling(rows: int, cols: int, angle: float) -> _Sampling:
    place = Place(0, 0, rows, cols, angle)
    window, to_grid = place.window, place.to_grid
    chip_col, chip_row = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
    col = (to_grid.a * chip_col + to_grid.b * chip_row + to_grid.c - window.col).ravel()
    row = (to_grid.d * chip_col + to_grid.e * chip_row + to_grid.f - window.row).ravel()
    left, top = np.floor(col - 0.5), np.floor(row - 0.5)
    return _Sampling(
        (np.floor(row) * window.cols + np.floor(col)).astype(np.intp),
        (top * window.cols + left).astype(np.intp),
        (col - 0.5 - left).astype(np.float32),
        (row - 0.5 - top).astype(np.float32),
    )


def _blended(
    planes: NDArray[_Scalar], holds: NDArray[np.bool_] | None, sampling: _Sampling, cols: int
) -> NDArray[_Scalar]:
    exact = np.can_cast(planes.dtype, np.float32)  # whole numbers of up to 16 bits, and float32 itself
    kind: type[np.floating[Any]] = np.float32 if exact else np.float64
    if holds is None:
        mean = _mean_of_four(planes, sampling, cols, kind)
    else:
        weight = _mean_of_four(holds[None], sampling, cols, kind)
        shown = holds.take(sampling.nearest)
        mean = _mean_of_four(planes, sampling, cols, kind) / np.where(shown, weight, 1)
        mean = np.where(shown, mean, 0)
    if planes.dtype.kind in "iub":
        mean = np.rint(mean)
    return mean.astype(planes.dtype)


def _mean_of_four(
    planes: NDArray[Any], sampling: _Sampling, cols: int, kind: type[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Two blends from left to right, and one from top to bottom: equal pixels give themselves exactly."""
    index = sampling.upper_left
    upper = planes.take(index, axis=1).astype(kind)
    upper += (planes.take(index + 1, axis=1) - upper) * sampling.right
    lower = planes.take(index + cols, axis=1).astype(kind)
    lower += (planes.take(index + cols + 1, axis=1) - lower) * sampling.right
    blended: NDArray[np.floating[Any]] = upper + (lower - upper) * sampling.down
    return blended


def _all(valid: NDArray[np.bool_]) -> bool:
    """Whether all are true; at once where they are one value without memory of its own."""
    return bool(valid.all() if any(valid.strides) else valid[:1, :1].all())


def _held(values: NDArray[_Scalar], window: Window, wanted: Window) -> NDArray[_Scalar]:
    """The pixels of another window; 0 where ``values`` hold none."""
    if window.contains(wanted):
        return values[..., *wanted.slices_in(window)]
    held = np.zeros((*values.shape[:-2], *wanted.shape), values.dtype)
    common = window.intersection(wanted)
    if not common.is_empty:
        held[..., *common.slices_in(wanted)] = values[..., *common.slices_in(window)]
    return held
