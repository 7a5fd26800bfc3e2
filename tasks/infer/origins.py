"""Which raster of a collection an object comes from."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from tasks.imagery import GridReader, Window
from tasks.imagery.identity import unsigned
from tasks.imagery.raster import raster_environment
from tasks.infer.image_grids import read_as
from tasks.infer.planned import Plan, PlannedGrid

# Edge of the cells, in pixels, whose points are looked up together.
_CELL = 512


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
    none = len(planned.rasters)
    first = np.full(len(points), none)
    np.minimum.at(first, held, rasters)
    chosen = first.copy()
    contested = np.bincount(held, minlength=len(points)) > 1
    chosen[contested] = none
    places = np.floor(np.column_stack([shapely.get_y(points), shapely.get_x(points)]))
    for raster in np.unique(rasters[contested[held]]).tolist():
        here = held[rasters == raster]
        here = here[contested[here] & (chosen[here] == none)]
        if len(here):
            valid = _valid(plan, planned, raster, places[here].astype(np.int64))
            chosen[here[valid]] = raster
    chosen = np.where(chosen == none, first, chosen)
    uris = [*(unsigned(plan.rasters[index].uri) for index in planned.rasters), None]
    return [uris[number] for number in chosen.tolist()]


def _valid(plan: Plan, planned: PlannedGrid, raster: int, places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where one raster holds data.  # (points,)"""
    found = np.zeros(len(places), np.bool_)
    info = plan.rasters[planned.rasters[raster]]
    cells = places // _CELL
    order = np.lexsort(cells.T[::-1])
    starts = np.flatnonzero(np.any(np.diff(cells[order], axis=0) != 0, axis=1)) + 1
    with (
        raster_environment(info.uri),
        GridReader(read_as(planned, [info]), planned.grid, tuple(plan.extract_bands)) as reader,
    ):
        for group in np.split(order, starts):
            row, col = places[group].min(axis=0).tolist()
            row_stop, col_stop = (places[group].max(axis=0) + 1).tolist()
            valid = reader.read(Window(row, col, row_stop - row, col_stop - col)).valid
            found[group] = valid[places[group, 0] - row, places[group, 1] - col]
    return found
