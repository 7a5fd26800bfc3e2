"""A cheap look at a raster's values: a few small windows, always the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.imagery.grid import Grid
from tasks.imagery.raster import RasterInfo
from tasks.imagery.reader import GridReader
from tasks.imagery.windows import Window

WINDOW_PX = 256
# Shares of height and width at which the windows' centres lie: the middle, and half way to the corners.
_PLACES = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
# Of a raster in strips, each window's rows bring the whole width along.
_STRIP_PIXELS = 2**20
_HIGH = 99.0  # percentile: a few saturated pixels say nothing about the scale


@dataclass(frozen=True)
class BandSample:
    """The valid values of one band: smallest, 99th percentile, mean, standard deviation."""

    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class RasterSample:
    """What some windows of a raster hold.

    Attributes:
        bands: per band of the raster; empty where no pixel is valid.
        valid: share of the pixels that are valid, 0-1.
        zero: share of the valid pixels that are 0 in every band, 0-1.
    """

    bands: tuple[BandSample, ...]
    valid: float
    zero: float


def sample_raster(info: RasterInfo) -> RasterSample:
    """Read up to five windows of 256 x 256 pixels, all bands, in the raster's own pixels.

    Raises:
        RasterError: it cannot be read.
    """
    # In pixel space nothing is resampled, however the raster lies on the ground.
    raw = info.model_copy(update={"crs_wkt": None, "transform": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)})
    grid = Grid(None, raw.transform, info.height, info.width)
    values, valid = [], []
    with GridReader([raw], grid) as reader:
        for window in _windows(info):
            pixels = reader.read(window)
            values.append(pixels.values[:, pixels.valid].astype(np.float64))
            valid.append(pixels.valid.ravel())
    known = np.concatenate(values, axis=1)  # (bands, valid pixels)
    finite = known[:, np.isfinite(known).all(axis=0)]
    bands: tuple[BandSample, ...] = ()
    if finite.shape[1]:
        bands = tuple(
            BandSample(
                float(band.min()), float(np.percentile(band, _HIGH)), float(band.mean()), float(band.std())
            )
            for band in finite
        )
    return RasterSample(
        bands=bands,
        valid=float(np.concatenate(valid).mean()),
        zero=float((finite == 0).all(axis=0).mean()) if finite.shape[1] else 0.0,
    )


def _windows(info: RasterInfo) -> Iterator[Window]:
    cols = min(WINDOW_PX, info.width)
    rows = min(WINDOW_PX, info.height)
    if info.block_shape[1] > 4 * WINDOW_PX:
        rows = min(rows, max(_STRIP_PIXELS // info.block_shape[1], 1))
    seen = set()
    for down, right in _PLACES:
        row = min(max(round(down * info.height) - rows // 2, 0), info.height - rows)
        col = min(max(round(right * info.width) - cols // 2, 0), info.width - cols)
        if (row, col) not in seen:
            seen.add((row, col))
            yield Window(row, col, rows, cols)
