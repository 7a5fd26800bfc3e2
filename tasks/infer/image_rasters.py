"""Classified raw images on the map: the grid that each comes to lie on, and what its cells hold.

What is computed in pixel space (``use_pixelspace``) is one raster per image, in the image's own pixels. On
the map every cell takes the pixel that its centre lies in, by the image's RPCs, control points or affine, see
``tasks.imagery.image_space``: classes have no mean, a probability belongs to its class, and no value appears
that the function did not give.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import rasterio.windows
import shapely
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from tasks.errors import BadInputError
from tasks.imagery import Grid, RasterInfo, Window
from tasks.imagery.collection import grid_of_collection, same_crs
from tasks.imagery.image_space import ImageTransform, Positions, carries_transform
from tasks.infer.image_grids import EDGE_POINTS, way_of
from tasks.infer.planned import MapGrid

_BLOCK = 1024
_LATTICE = 16  # px between the cells whose place is reckoned, where places are interpolated
_NEAR_ENOUGH_PX = 1 / 32
_MOST_PIXELS = 4096 * 4096  # of the image, held at a time
_CACHE_BYTES = 256 * 2**20

Block = tuple[Window, NDArray[Any], NDArray[np.bool_]]


def map_grid(info: RasterInfo, out_sr: int | None) -> MapGrid | None:
    """The north-up grid that covers an image on the map, with cells as large as its pixels in its middle.

    Args:
        info: the image.
        out_sr: EPSG code of the map; None takes that of the image's own way to the map.

    Returns:
        None for an image that does not say where it lies: its raster stays in pixel space.

    Raises:
        BadInputError: such an image with ``out_sr``, or a map that has no place for it.
    """
    if not carries_transform(info):
        if out_sr is not None:
            raise BadInputError(
                f"{info.address} does not say where it lies, so it cannot be put onto a map (out_sr).",
                "Leave out_sr out: the result then lies on the image, pixel by pixel.",
            )
        return None
    way = way_of(info)
    placed = info if way.kind == "affine" else _as_if_warped(info, way)
    grid = grid_of_collection([placed], out_sr=way.crs_wkt if out_sr is None else f"EPSG:{out_sr}")
    assert grid.crs_wkt is not None
    return MapGrid(crs_wkt=grid.crs_wkt, transform=grid.transform, rows=grid.rows, cols=grid.cols)


def mapped_blocks(source: Path, info: RasterInfo, grid: Grid, fill: float) -> Iterator[Block]:
    """The raster of an image on a map grid, block by block; blocks that it does not reach are left out.

    Memory depends on the block's size alone. Where the way to the image is not linear, places are reckoned
    every 16 cells, and interpolated where that is true to a 32nd of a pixel.

    Args:
        source: a raster of the image's size; what its mask or nodata leaves out counts nowhere.
        info: the image, which knows the way.
        grid: on the map.
        fill: value of cells without a pixel.

    Returns:
        Windows of the grid, with values of the source's type (bands, rows, cols) and which cells count
        (rows, cols).
    """
    way = way_of(info)
    assert grid.crs_wkt is not None
    straight = same_crs(grid.crs_wkt, way.crs_wkt)
    project = None
    if not straight:
        project = pyproj.Transformer.from_crs(grid.crs_wkt, way.crs_wkt, always_xy=True)

    def to_image(cols: NDArray[np.float64], rows: NDArray[np.float64]) -> Positions:
        a, _, c, _, e, f = grid.transform
        x, y = c + a * cols, f + e * rows
        if project is not None:
            x, y = project.transform(x, y)
        return way.to_image(x, y)

    linear = straight and way.kind == "affine"
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), rasterio.open(source) as image:
        for tile in grid.tiles(_BLOCK, _BLOCK):
            window = tile.intersection(grid.window)
            places = (_exact if linear else _interpolated)(window, to_image)
            yield from _taken(image, window, places, fill)


def _as_if_warped(info: RasterInfo, way: ImageTransform) -> RasterInfo:
    """A north-up raster over the image, in the way's reference system, with cells of its middle's size."""
    edge = shapely.segmentize(
        shapely.box(0, 0, info.width, info.height), max(info.width, info.height) / EDGE_POINTS
    )
    x, y = way.to_map(*shapely.get_coordinates(edge).T)
    middle = np.array([info.width, info.height]) / 2
    around = middle + np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])
    near_x, near_y = way.to_map(*around.T)
    # One unit of x may be longer than one of y on the ground (degrees), so each has a size of its own.
    cell_x = float(np.hypot(near_x[1] - near_x[0], near_x[3] - near_x[2]))
    cell_y = float(np.hypot(near_y[1] - near_y[0], near_y[3] - near_y[2]))
    sizes = np.array([*x, *y, cell_x, cell_y])
    if not (np.isfinite(sizes).all() and cell_x > 0 and cell_y > 0):
        raise BadInputError(
            f"The footprint of {info.address} on the map cannot be told from its RPCs or control points.",
            "Write them again, or use a georeferenced raster and leave use_pixelspace off.",
        )
    return info.model_copy(
        update={
            "crs_wkt": way.crs_wkt,
            "transform": (cell_x, 0.0, float(x.min()), 0.0, -cell_y, float(y.max())),
            "width": max(1, int(np.ceil((x.max() - x.min()) / cell_x - 1e-3))),
            "height": max(1, int(np.ceil((y.max() - y.min()) / cell_y - 1e-3))),
        }
    )


def _exact(window: Window, to_image: Any) -> Positions:
    """Where the cells' centres lie in the image, px.  # (rows, cols) each"""
    cols, rows = np.meshgrid(_centres(window.col, window.cols), _centres(window.row, window.rows))
    found: Positions = to_image(cols, rows)
    return found


def _interpolated(window: Window, to_image: Any) -> Positions:
    nodes_col, weights_col, middles_col = _lattice(window.col, window.cols)
    nodes_row, weights_row, middles_row = _lattice(window.row, window.rows)
    at_nodes = to_image(*np.meshgrid(nodes_col, nodes_row))
    at_middles = to_image(*np.meshgrid(middles_col, middles_row))
    for known, between in zip(at_nodes, at_middles, strict=True):
        guessed = (known[:-1, :-1] + known[1:, :-1] + known[:-1, 1:] + known[1:, 1:]) / 4
        # Where one is not finite the comparison is false, too.
        if not (np.abs(guessed - between) <= _NEAR_ENOUGH_PX).all():
            return _exact(window, to_image)
    # Each row of weights holds two numbers and zeros: the products are the same in any order.
    cols, rows = (weights_row @ known @ weights_col.T for known in at_nodes)
    return cols, rows


def _lattice(start: int, count: int) -> tuple[NDArray[np.float64], ...]:
    """Along one axis: nodes, the cells' weights of the nodes (cells, nodes), the middles between nodes."""
    steps = max(1, -(-(count - 1) // _LATTICE))
    nodes = start + 0.5 + np.arange(steps + 1, dtype=np.float64) * _LATTICE
    at = np.arange(count) / _LATTICE
    left = np.minimum(at.astype(np.intp), steps - 1)
    weights = np.zeros((count, steps + 1))
    cells = np.arange(count)
    weights[cells, left], weights[cells, left + 1] = 1 - (at - left), at - left
    return nodes, weights, (nodes[:-1] + nodes[1:]) / 2


def _centres(start: int, count: int) -> NDArray[np.float64]:
    return np.arange(count, dtype=np.float64) + (start + 0.5)


def _taken(image: DatasetReader, window: Window, places: Positions, fill: float) -> Iterator[Block]:
    """The pixels at the places; in quarters where they are spread over more of the image than may be held."""
    cols, rows = places
    inside = (cols >= 0) & (cols < image.width) & (rows >= 0) & (rows < image.height)
    if not inside.any():
        return
    col, row = cols[inside].astype(np.intp), rows[inside].astype(np.intp)
    top, left = int(row.min()), int(col.min())
    high, wide = int(row.max()) - top + 1, int(col.max()) - left + 1
    if high * wide > _MOST_PIXELS and max(window.shape) > 1:
        for part in _quarters(window):
            here = part.slices_in(window)
            yield from _taken(image, part, (cols[here], rows[here]), fill)
        return
    source = rasterio.windows.Window(left, top, wide, high)
    values, counts = image.read(window=source), image.dataset_mask(window=source)
    taken = np.full((image.count, *window.shape), fill, values.dtype)
    valid = np.zeros(window.shape, np.bool_)
    valid[inside] = counts[row - top, col - left] != 0
    taken[:, inside] = values[:, row - top, col - left]
    yield window, taken, valid


def _quarters(window: Window) -> Iterator[Window]:
    half_rows, half_cols = -(-window.rows // 2), -(-window.cols // 2)
    for row in range(window.row, window.row_stop, half_rows):
        for col in range(window.col, window.col_stop, half_cols):
            yield Window(row, col, half_rows, half_cols).intersection(window)
