"""Small pictures of large rasters: reads through overviews, at a cost that does not grow with the raster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import rasterio.errors
import rasterio.windows
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from tasks.errors import RasterError
from tasks.imagery.collection import grid_of_collection, same_crs
from tasks.imagery.grid import Grid
from tasks.imagery.raster import RasterInfo, open_raster, raster_environment
from tasks.imagery.reader import GridReader, Pixels, ResamplingMethod
from tasks.imagery.services import kind_of_service, reason_of
from tasks.imagery.windows import Window

MAX_SOURCE_PIXELS = 200_000_000
"""Most pixels that one overview may decode per band; a raster without overviews shows its centre then."""

_SERVICE_COST = 20  # a pixel from a service takes as long as this many from a file


def picture_grid(infos: Sequence[RasterInfo], grid: Grid | None, *, max_px: int) -> Grid:
    """The grid of a picture of a collection: the given grid, or the collection's own, made coarser.

    Args:
        infos: the collection, in order.
        grid: what the picture shows; None shows the whole collection, in the first raster's CRS.
        max_px: longest side of the picture; cells are never made finer than the grid's own.
    """
    whole = grid or grid_of_collection(infos, out_sr=infos[0].crs_wkt)
    seen = _affordable(infos, whole)
    factor = max(1.0, max(seen.shape) / max_px)
    a, b, c, d, e, f = whole.window_transform(seen)
    rows, cols = max(1, round(seen.rows / factor)), max(1, round(seen.cols / factor))
    return Grid(whole.crs_wkt, (a * seen.cols / cols, b, c, d, e * seen.rows / rows, f), rows, cols)


def read_overview(
    infos: Sequence[RasterInfo],
    grid: Grid,
    bands: tuple[int, ...],
    *,
    resampling: ResamplingMethod = "average",
) -> Pixels:
    """The collection on a coarse grid; rasters in the grid's CRS are read through their overviews.

    Neighbouring pixels are combined by ``resampling``; positions are true to half a pixel of the picture.
    Use :class:`GridReader` where pixels must be exact.

    Raises:
        RasterError: a raster cannot be read.
        BadInputError: bands that a raster lacks.
    """
    dtype = np.result_type(*(np.dtype(info.dtype) for info in infos))
    values = np.zeros((len(bands), *grid.shape), dtype=dtype)
    valid = np.zeros(grid.shape, dtype=np.bool_)
    for info in infos:
        a, b, _, d, e, _ = info.transform
        if same_crs(info.crs_wkt, grid.crs_wkt) and not (b or d) and a > 0 > e:
            part = grid.window_of_bounds(info.bounds).intersection(grid.window)
            if part.is_empty:
                continue
            found, found_valid = _read_decimated(info, grid, part, bands, resampling)
        else:
            with GridReader([info], grid, bands, resampling=resampling) as reader:
                part = reader.footprints()[0]
                if part.is_empty:
                    continue
                pixels = reader.read(part)
            found, found_valid = pixels.values, pixels.valid
        here = part.slices_in(grid.window)
        taken = found_valid & ~valid[here]
        np.copyto(values[:, *here], found, where=taken)
        valid[here] |= taken
    return Pixels(values, valid)


def _read_decimated(
    info: RasterInfo, grid: Grid, part: Window, bands: tuple[int, ...], resampling: ResamplingMethod
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    xmin, ymin, xmax, ymax = grid.window_bounds(part)
    a, _, c, _, e, f = info.transform
    col, col_stop = max(0.0, (xmin - c) / a), min(float(info.width), (xmax - c) / a)
    row, row_stop = max(0.0, (ymax - f) / e), min(float(info.height), (ymin - f) / e)
    source = rasterio.windows.Window(col, row, col_stop - col, row_stop - row)
    numbers = [band + 1 for band in bands]
    shape = (len(bands), *part.shape)
    method = Resampling[resampling]
    try:
        with raster_environment(info.uri), open_raster(info.uri) as dataset:
            found = dataset.read(numbers, window=source, out_shape=shape, resampling=method)
            masks = dataset.read_masks(numbers, window=source, out_shape=shape, resampling=Resampling.nearest)
    except (rasterio.errors.RasterioError, CPLE_BaseError) as error:
        raise RasterError(
            f"{info.address} could not be read for a picture: {reason_of(error)}.",
            "Check that the file is complete and that its store can be reached.",
        ) from (None if kind_of_service(info.uri) else error)  # GDAL's text may hold credentials
    valid: NDArray[np.bool_] = (masks != 0) & ~np.isnan(found)
    return found, np.asarray(valid.any(axis=0))


def _affordable(infos: Sequence[RasterInfo], whole: Grid) -> Window:
    """The part of the grid around its centre whose source pixels are few enough to decode."""
    pixels = 0.0
    for info in infos:
        with raster_environment(info.uri), open_raster(info.uri) as dataset:
            decoded = info.width * info.height / _smallest_overview(dataset) ** 2
        pixels += decoded * (_SERVICE_COST if kind_of_service(info.uri) else 1)
    share = min(1.0, (MAX_SOURCE_PIXELS / pixels) ** 0.5)
    rows, cols = max(1, round(whole.rows * share)), max(1, round(whole.cols * share))
    return Window((whole.rows - rows) // 2, (whole.cols - cols) // 2, rows, cols)


def _smallest_overview(dataset: DatasetReader) -> float:
    return float(max(dataset.overviews(1), default=1))
