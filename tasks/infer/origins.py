"""Which raster of a collection an object comes from."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from tasks.imagery import Grid, GridReader, RasterInfo, Window
from tasks.imagery.collection import grid_of_raster, same_crs
from tasks.imagery.identity import unsigned
from tasks.imagery.image_space import in_pixel_space
from tasks.imagery.raster import raster_environment
from tasks.infer.image_grids import read_as
from tasks.infer.planned import Plan, PlannedGrid

# Edge of the cells, in pixels, whose points are looked up together; GDAL resamples whole blocks by itself.
_CELL, _RESAMPLED_CELL = 512, 64
# A wider surrounding than this is not worth reading, in a raster's own pixels.
_WIDEST = 512
_AT_ONCE = 8

Places = NDArray[np.int64]


def origins_of(plan: Plan, planned: PlannedGrid, points: NDArray[np.object_]) -> list[str | None]:
    """Per point, the URI without signatures of the raster that its pixel was taken from.

    That is the first of the collection that is valid there, as the engine reads it: a scene's collar, which
    lies within its rectangle, gives way to the scene below. Only points that several rectangles hold are
    looked up in the imagery. Where no raster is valid (the middle of a ring of pixels) it is the first one
    whose rectangle holds the point; None beside all of them.

    Args:
        points: shapely points as (col, row) of the grid, px.

    Raises:
        RasterError: a raster that overlaps another one cannot be read any more.
    """
    boxes = np.array([(col, row, col + cols, row + rows) for row, col, rows, cols in planned.footprints])
    held, rasters = shapely.STRtree(shapely.box(*boxes.T)).query(points, predicate="intersects")
    order = np.lexsort((rasters, held))
    held, rasters = held[order], rasters[order]
    count = np.bincount(held, minlength=len(points))
    begin = np.cumsum(count) - count
    chosen = np.full(len(points), len(planned.rasters))
    chosen[count > 0] = rasters[begin[count > 0]]
    places = np.floor(np.column_stack([shapely.get_y(points), shapely.get_x(points)])).astype(np.int64)
    # Each point asks its rasters in their order, and all points at once, so that many are read side by side.
    asking, turn = np.flatnonzero(count > 1), 0
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="chipline-origins") as pool:
        while len(asking):
            asked = rasters[begin[asking] + turn]
            valid = np.zeros(len(asking), np.bool_)
            groups = list(_groups(asked[:, None]))
            numbers = [int(asked[group[0]]) for group in groups]
            theirs = [places[asking[group]] for group in groups]
            found = pool.map(lambda number, here: _valid(plan, planned, number, here), numbers, theirs)
            for group, answer in zip(groups, found, strict=True):
                valid[group] = answer
            chosen[asking[valid]] = asked[valid]
            turn += 1
            asking = asking[~valid & (count[asking] > turn)]
    uris = [*(unsigned(plan.rasters[index].uri) for index in planned.rasters), None]
    return [uris[number] for number in chosen.tolist()]


def _valid(plan: Plan, planned: PlannedGrid, raster: int, places: Places) -> NDArray[np.bool_]:
    """Where one raster holds data.  # (points,)"""
    info, grid = plan.rasters[planned.rasters[raster]], planned.grid
    bands = tuple(plan.extract_bands)
    [seen] = read_as(planned, [info])
    with raster_environment(info.uri):
        own = same_crs(seen.crs_wkt, grid.crs_wkt)
        if own and grid.offset_of(seen.transform, info.height, info.width) is not None:
            with GridReader([seen], grid, bands) as reader:
                return _at(reader, places)
        # To resample is dear, and needed only where valid pixels and others lie side by side.
        found, settled = _around(info, grid, bands, places)
        rest = np.flatnonzero(~settled)
        if len(rest):
            with GridReader([info], grid, bands) as reader:
                found[rest] = _at(reader, places[rest], _RESAMPLED_CELL)
    return found


def _at(reader: GridReader, places: Places, cell: int = _CELL) -> NDArray[np.bool_]:
    """Whether each (row, col) of the reader's grid is valid.  # (points,)"""
    found = np.zeros(len(places), np.bool_)
    for group in _groups(places // cell):
        window = _window(places[group], places[group] + 1)
        valid = reader.read(window).valid
        found[group] = valid[places[group, 0] - window.row, places[group, 1] - window.col]
    return found


def _around(
    info: RasterInfo, grid: Grid, bands: tuple[int, ...], places: Places
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether a raster that is resampled is valid at each place of a grid, and whether that is settled.

    It is where the raster's own pixels around the place, more of them than resampling looks at, are all
    valid, or none of them is.  # (points,), (points,)
    """
    found, settled = np.zeros(len(places), np.bool_), np.zeros(len(places), np.bool_)
    to_map, to_own = Affine(*grid.transform), ~Affine(*info.transform)
    project = pyproj.Transformer.from_crs(grid.crs_wkt, info.crs_wkt, always_xy=True)
    corners = places[:, None] + np.array([(0, 0), (0, 1), (1, 0), (1, 1)])  # (points, 4, 2)
    x, y = to_map @ (corners[..., 1], corners[..., 0])
    cols, rows = to_own @ project.transform(x, y)
    own = np.stack([rows, cols], axis=-1)
    low, high = own.min(axis=1), own.max(axis=1)
    # Bilinear resampling takes the neighbours that lie up to one cell of the coarser grid away.
    reach = high - low + 1
    near = np.flatnonzero(np.isfinite(own).all(axis=(1, 2)) & (high - low + 2 * reach < _WIDEST).all(axis=1))
    start = np.floor(low - reach)[near].astype(np.int64)
    stop = np.ceil(high + reach)[near].astype(np.int64)
    alone = in_pixel_space(info)
    with GridReader([alone], grid_of_raster(alone, map_space=False), bands) as reader:
        for group in _groups(start // _CELL):
            window = _window(start[group], stop[group])
            sums = np.zeros((window.rows + 1, window.cols + 1), np.int64)
            sums[1:, 1:] = reader.read(window).valid.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
            (top, left), (bottom, right) = ((at[group] - (window.row, window.col)).T for at in (start, stop))
            many = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            whole = many == (bottom - top) * (right - left)
            found[near[group]] = whole
            settled[near[group]] = whole | (many == 0)
    return found, settled


def _groups(keys: Places) -> Iterator[NDArray[np.intp]]:
    """Positions of equal rows.  # (points, columns)"""
    if not len(keys):
        return
    order = np.lexsort(keys.T[::-1])
    yield from np.split(order, np.flatnonzero(np.any(np.diff(keys[order], axis=0) != 0, axis=1)) + 1)


def _window(start: Places, stop: Places) -> Window:
    """The window from the least start to the greatest stop, each (row, col)."""
    (row, col), (row_stop, col_stop) = start.min(axis=0).tolist(), stop.max(axis=0).tolist()
    return Window(row, col, row_stop - row, col_stop - col)
