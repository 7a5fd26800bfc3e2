"""Polygons to pixels: which pixel centres lie inside, later polygons on top.

The rule is GDAL's (polygons filled by scan lines, what ``rasterio.features.rasterize`` gives), computed for
all polygons at once on arrays. Coordinates stay the grid's, so that a polygon burns alike whatever window it
is burnt in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from tasks.imagery.windows import Window

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Runs that are longer on average are filled one by one, shorter ones by listing their pixels.
_LONG_RUN_PX = 48
_PIXELS_AT_ONCE = 2**20


def burn_polygons(
    geometries: npt.NDArray[np.object_],
    values: npt.NDArray[np.int64],
    window: Window,
    dtype: np.dtype[np.unsignedinteger],
) -> npt.NDArray[np.unsignedinteger]:
    """The value of the last polygon that holds a pixel's centre; 0 where there is none.

    Args:
        geometries: (n,) valid polygons and multipolygons, pixel coordinates (x right, y down).
        values: (n,) what to burn.
        window: which pixels.
        dtype: of the result.

    Returns:
        array  # (window.rows, window.cols)
    """
    out = np.zeros(window.shape, dtype=dtype)
    if len(geometries) and not window.is_empty:
        polygon, first, length = _runs(geometries, window)
        _fill(out.reshape(-1), first, length, values.astype(dtype)[polygon])
    return out


@dataclass(frozen=True)
class _Edges:
    """Edges of rings, in the grid's pixels (moving them would round them).

    Attributes:
        polygon: (edges,) which polygon.
        ring: (edges,) index into ``rings``.
        x1, y1: where it starts; ``x2, y2`` where it ends.
        rings: all rings.
    """

    polygon: Ints
    ring: Ints
    x1: Floats
    y1: Floats
    x2: Floats
    y2: Floats
    rings: npt.NDArray[np.object_]


def _edges(geometries: npt.NDArray[np.object_], window: Window) -> _Edges:
    parts, part_of = shapely.get_parts(geometries, return_index=True)
    rings, ring_of = shapely.get_rings(parts, return_index=True)
    points, point_of = shapely.get_coordinates(rings, return_index=True)
    x, y = points.T
    start = np.flatnonzero(point_of[:-1] == point_of[1:])
    low, high = np.minimum(y[start], y[start + 1]), np.maximum(y[start], y[start + 1])
    # Edges above and below hold no row of the window.
    start = start[(high >= window.row) & (low <= window.row_stop)]
    ring = point_of[start]
    polygon = part_of[ring_of[ring]].astype(np.int64)
    return _Edges(polygon, ring, x[start], y[start], x[start + 1], y[start + 1], rings)


def _runs(geometries: npt.NDArray[np.object_], window: Window) -> tuple[Ints, Ints, Ints]:
    """Runs of pixels inside polygons, ordered by polygon: polygon, flat index of the first pixel, length."""
    edges = _edges(geometries, window)
    down = edges.y1 < edges.y2
    top_x, top_y = np.where(down, edges.x1, edges.x2), np.where(down, edges.y1, edges.y2)
    low_x, low_y = np.where(down, edges.x2, edges.x1), np.where(down, edges.y2, edges.y1)
    # An edge counts for the rows whose centre line lies at or below its upper end and above its lower.
    first_row = np.clip(np.ceil(top_y - 0.5), window.row, window.row_stop).astype(np.int64)
    counts = np.clip(np.ceil(low_y - 0.5), window.row, window.row_stop).astype(np.int64) - first_row
    edge = np.repeat(np.arange(len(counts)), counts)
    row = first_row[edge] + np.arange(len(edge)) - (np.cumsum(counts) - counts)[edge]
    along = (row + 0.5 - top_y[edge]) * (low_x - top_x)[edge] / (low_y - top_y)[edge]
    col = _columns(np.floor(along + top_x[edge] + 0.5), window)
    # A ring crosses a centre line an even number of times: sorted, crossings pair up to runs.
    width = window.cols + 1
    keys = np.sort((edges.polygon[edge] * window.rows + row - window.row) * width + col)
    line, start = np.divmod(keys[0::2], width)
    stop = keys[1::2] - line * width
    owner, row = np.divmod(line, window.rows)
    first, length = row * window.cols + start, stop - start
    there = length > 0
    owner, first, length = owner[there], first[there], length[there]
    level = _level_runs(edges, window)
    if level is not None:
        owner, first, length = (
            np.concatenate(pair) for pair in zip((owner, first, length), level, strict=True)
        )
        order = np.argsort(owner, kind="stable")
        owner, first, length = owner[order], first[order], length[order]
    return owner, first, length


def _level_runs(edges: _Edges, window: Window) -> tuple[Ints, Ints, Ints] | None:
    """Upper edges of rings that lie on a centre line are inside, those of holes too (as in GDAL)."""
    row = np.floor(edges.y1)
    inside = (row >= window.row) & (row < window.row_stop)
    level = np.flatnonzero((edges.y1 == edges.y2) & (edges.y1 == row + 0.5) & inside)
    if not len(level):
        return None
    x1, x2 = edges.x1[level], edges.x2[level]
    upper = np.where(shapely.is_ccw(edges.rings[edges.ring[level]]), x1 < x2, x1 > x2)
    start = _columns(np.floor(np.minimum(x1, x2) + 0.5), window)
    length = _columns(np.floor(np.maximum(x1, x2) + 0.5), window) - start
    upper &= length > 0
    level, start, length = level[upper], start[upper], length[upper]
    first = (row[level].astype(np.int64) - window.row) * window.cols + start
    return edges.polygon[level], first, length


def _columns(col: Floats, window: Window) -> Ints:
    """Columns of the grid as columns of the window, from 0 to its width."""
    return np.clip(col - window.col, 0, window.cols).astype(np.int64)


def _fill(
    flat: npt.NDArray[np.unsignedinteger], first: Ints, length: Ints, values: npt.NDArray[np.unsignedinteger]
) -> None:
    """Write each run's value, in the order of the runs."""
    total = int(length.sum())
    if total > _LONG_RUN_PX * len(length):
        ends = first + length
        for start, stop, value in zip(first.tolist(), ends.tolist(), values.tolist(), strict=True):
            flat[start:stop] = value
        return
    ends = np.cumsum(length)
    begin = 0
    while begin < len(length):
        done = int(ends[begin - 1]) if begin else 0
        stop_run = max(begin + 1, int(np.searchsorted(ends, done + _PIXELS_AT_ONCE, side="right")))
        here = slice(begin, stop_run)
        shift = first[here] - (ends[here] - length[here] - done)
        pixels = np.repeat(shift, length[here]) + np.arange(int(ends[stop_run - 1]) - done)
        # Of several values for one pixel the last one stays.
        flat[pixels] = np.repeat(values[here], length[here])
        begin = stop_run
