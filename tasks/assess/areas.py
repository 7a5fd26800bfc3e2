"""Where accuracy is assessed: footprints of rasters, and the blocks of ground that they are cut into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely

from tasks.errors import BadInputError

if TYPE_CHECKING:
    from tasks.imagery import RasterInfo

Bounds = tuple[float, float, float, float]

# Length of a degree on the ground, at the equator; good enough to size blocks.
_METRES_PER_DEGREE = 111_320.0
# More blocks than this make an interval no better, only slower.
_MOST_BLOCKS_A_SIDE = 400


@dataclass(frozen=True)
class Blocks:
    """A rectangle cut into ``rows`` by ``columns`` equal blocks, numbered row by row from the lower left."""

    bounds: Bounds
    rows: int
    columns: int

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.rows * self.columns

    def of(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The block of each point; points outside belong to the nearest block.  # (n,)"""
        xmin, ymin, xmax, ymax = self.bounds
        column = np.floor((x - xmin) / max(xmax - xmin, 1e-12) * self.columns)
        row = np.floor((y - ymin) / max(ymax - ymin, 1e-12) * self.rows)
        row, column = np.clip(row, 0, self.rows - 1), np.clip(column, 0, self.columns - 1)
        inside: npt.NDArray[np.int64] = (row * self.columns + column).astype(np.int64)
        return inside


@dataclass(frozen=True)
class Area:
    """One footprint.

    Attributes:
        name: the raster's URI, or "everything".
        crs_wkt: the CRS in which it is assessed.
        footprint: polygon in that CRS; None: no bound.
    """

    name: str
    crs_wkt: str
    footprint: shapely.Polygon | None

    @cached_property
    def metres_per_unit(self) -> tuple[float, float]:
        """Length of a map unit along x and y; approximate for geographic coordinates."""
        import pyproj

        crs = pyproj.CRS.from_wkt(self.crs_wkt)
        if not crs.is_geographic:
            factor = float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
            return factor, factor
        latitude = self.footprint.centroid.y if self.footprint is not None else 0.0
        return _METRES_PER_DEGREE * max(math.cos(math.radians(latitude)), 0.01), _METRES_PER_DEGREE

    def blocks(self, block_size: float, bounds: Bounds) -> Blocks:
        """``bounds`` cut into blocks of about ``block_size`` metres, evenly."""
        xmin, ymin, xmax, ymax = bounds
        x_metres, y_metres = self.metres_per_unit
        sides = ((ymax - ymin) * y_metres, (xmax - xmin) * x_metres)
        rows, columns = (min(max(1, round(side / block_size)), _MOST_BLOCKS_A_SIDE) for side in sides)
        return Blocks(bounds, rows, columns)


def area_of(info: RasterInfo) -> Area:
    """The footprint of a raster, rotated ones included.

    Raises:
        BadInputError: the raster has no CRS, so that no truth can be placed on it.
    """
    if info.crs_wkt is None:
        raise BadInputError(
            f"{info.uri} has no coordinate reference system, so truth cannot be placed on it.",
            "Assign one, for example with gdal_edit -a_srs EPSG:32612.",
        )
    a, b, c, d, e, f = info.transform
    corners = [(0, 0), (info.width, 0), (info.width, info.height), (0, info.height)]
    ring = [(a * col + b * row + c, d * col + e * row + f) for col, row in corners]
    return Area(info.uri, info.crs_wkt, shapely.Polygon(ring))


def project(geometries: npt.NDArray[np.object_], from_wkt: str, to_wkt: str) -> npt.NDArray[np.object_]:
    """The geometries in another CRS, in their order; what has no place there becomes an empty polygon."""
    import geopandas

    moved = np.array(geopandas.GeoSeries(geometries, crs=from_wkt).to_crs(to_wkt), dtype=object)
    bounds = shapely.bounds(moved).reshape(-1, 4)
    lost = ~np.isfinite(bounds).all(axis=1)
    moved[lost] = shapely.Polygon()
    bad = ~shapely.is_valid(moved)
    if bad.any():
        moved[bad] = shapely.make_valid(moved[bad], method="structure", keep_collapsed=False)
    return moved


def union_of(bounds: Sequence[Bounds]) -> Bounds:
    """The smallest rectangle around all that are finite; an empty one at the origin if none is."""
    array = np.array([one for one in bounds if np.isfinite(one).all()]).reshape(-1, 4)
    if not len(array):
        return (0.0, 0.0, 0.0, 0.0)
    xmin, ymin = array[:, :2].min(axis=0)
    xmax, ymax = array[:, 2:].max(axis=0)
    return float(xmin), float(ymin), float(xmax), float(ymax)
