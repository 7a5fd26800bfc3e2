"""Masks: polygons inside of which results count. The network still sees what lies around them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from tasks.errors import BadInputError
from tasks.imagery import Grid, Window
from tasks.imagery.collection import same_crs
from tasks.labels.burning import burn_polygons
from tasks.labels.records import read_all

TABLE = "mask.parquet"
"""Name of a plan's mask in its folder."""

_EDGE = 1e-3


def geometry_px(geometry: NDArray[np.object_], crs_wkt: str, grid: Grid) -> NDArray[np.object_]:
    """Geometries in pixels of a grid: x = column, y = row.

    On a grid of degrees each lies at that of its longitudes, 360 degrees apart, which is nearest to the
    grid's middle: a grid across the antimeridian goes on beyond 180, other documents start again at -180.

    Args:
        geometry: on the map.
        crs_wkt: its coordinate system.
        grid: on the map.
    """
    a, _, c, _, e, f = grid.transform
    project = None
    assert grid.crs_wkt is not None
    if not same_crs(crs_wkt, grid.crs_wkt):
        project = pyproj.Transformer.from_crs(crs_wkt, grid.crs_wkt, always_xy=True)

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        if project is not None:
            points = np.column_stack(project.transform(points[:, 0], points[:, 1]))
        return (points - (c, f)) / (a, e)

    moved: NDArray[np.object_] = shapely.transform(shapely.force_2d(geometry), move)
    if pyproj.CRS.from_wkt(grid.crs_wkt).is_geographic:
        bounds = shapely.bounds(moved).reshape(-1, 4)
        turn = 360 / a  # px
        with np.errstate(invalid="ignore"):
            turns = np.round((grid.cols / 2 - (bounds[:, 0] + bounds[:, 2]) / 2) / turn)
        for number in np.unique(turns[np.isfinite(turns) & (turns != 0)]).tolist():
            away = turns == number
            moved[away] = _shifted(moved[away], number * turn)
    return moved


def _shifted(geometry: NDArray[np.object_], cols: float) -> NDArray[np.object_]:
    moved: NDArray[np.object_] = shapely.transform(geometry, lambda points: np.add(points, (cols, 0.0)))
    return moved


@dataclass(frozen=True)
class GridMask:
    """A mask on a grid.

    Attributes:
        geometry: valid polygons in grid pixels.
    """

    geometry: NDArray[np.object_]

    @cached_property
    def _tree(self) -> shapely.STRtree:
        shapely.prepare(self.geometry)
        return shapely.STRtree(self.geometry)

    @property
    def window(self) -> Window:
        """The whole pixels around all polygons."""
        xmin, ymin, xmax, ymax = shapely.total_bounds(self.geometry)
        if not np.isfinite([xmin, ymin, xmax, ymax]).all():
            return Window(0, 0, 0, 0)
        # An edge on a pixel border, up to the rounding of a projection, takes no further pixel.
        row, col = int(np.floor(ymin + _EDGE)), int(np.floor(xmin + _EDGE))
        return Window(row, col, int(np.ceil(ymax - _EDGE)) - row, int(np.ceil(xmax - _EDGE)) - col)

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """Pixels whose centre lies in a polygon.  # (window.rows, window.cols)"""
        place = shapely.box(window.col, window.row, window.col_stop, window.row_stop)
        near = self.geometry[np.sort(self._tree.query(place, predicate="intersects"))]
        burnt = burn_polygons(near, np.ones(len(near), np.int64), window, np.dtype(np.uint8))
        return np.asarray(burnt != 0)

    def touches(self, windows: Sequence[Window]) -> NDArray[np.bool_]:
        """Which windows a polygon reaches into.  # (windows,)"""
        boxes = np.array([(w.col, w.row, w.col_stop, w.row_stop) for w in windows]).reshape(-1, 4)
        found = np.zeros(len(windows), np.bool_)
        found[self._tree.query(shapely.box(*boxes.T), predicate="intersects")[0]] = True
        return found

    def holds(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which positions, in pixels, lie in a polygon.  # (positions,)"""
        found = np.zeros(len(x), np.bool_)
        found[self._tree.query(shapely.points(x, y), predicate="intersects")[0]] = True
        return found


@dataclass(frozen=True)
class MaskPolygons:
    """The polygons of a mask, on the map.

    Attributes:
        uri: where they come from.
        crs_wkt: their coordinate system.
        geometry: valid, none empty.
    """

    uri: str
    crs_wkt: str
    geometry: NDArray[np.object_]

    @property
    def digest(self) -> str:
        """SHA-256 of the polygons and their coordinate system."""
        digest = hashlib.sha256(self.crs_wkt.encode())
        for wkb in shapely.to_wkb(self.geometry):
            digest.update(wkb)
        return digest.hexdigest()

    def on_grid(self, grid: Grid) -> GridMask:
        """The same in pixels of a grid; what has no place there is left out."""
        # Of a polygon that was cut at the antimeridian each part has a place of its own.
        moved = geometry_px(shapely.get_parts(self.geometry), self.crs_wkt, grid)
        bounds = shapely.bounds(moved).reshape(-1, 4)
        moved = moved[np.isfinite(bounds).all(axis=1)]
        wrong = ~shapely.is_valid(moved)
        moved[wrong] = shapely.make_valid(moved[wrong])
        parts = shapely.get_parts(shapely.get_parts(moved))
        return GridMask(parts[shapely.get_dimensions(parts) == 2])

    def to_bytes(self) -> bytes:
        """As GeoParquet."""
        import geopandas  # not above: with pandas it takes long to load, and parts rarely have a mask

        sink = io.BytesIO()
        geopandas.GeoDataFrame(geometry=self.geometry, crs=self.crs_wkt).to_parquet(sink, index=False)
        return sink.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> MaskPolygons:
        """What :meth:`to_bytes` wrote."""
        import geopandas

        frame = geopandas.read_parquet(io.BytesIO(data))
        return MaskPolygons("", str(frame.crs.to_wkt()), np.asarray(frame.geometry.array, dtype=object))


def read_mask(uri: str) -> MaskPolygons:
    """The mask of a tool, from any vector source.

    Raises:
        NotFoundError, LabelError: see :func:`tasks.labels.vector.read_vector_labels`.
    """
    labels, stream = read_all(uri, with_classes=False)
    return MaskPolygons(uri, stream.crs_wkt, labels.geometries)


def misses(uri: str) -> BadInputError:
    """The error for a mask beside the imagery."""
    return BadInputError(
        f"The mask {uri} does not touch the imagery or the extent.",
        "Check its coordinate system, or leave it out.",
    )
