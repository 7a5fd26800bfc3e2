"""Areas of a grid's cells on the ellipsoid, whatever the coordinate system: degrees and Web Mercator too."""

from __future__ import annotations

import numpy as np
import pyproj
from numpy.typing import NDArray

from tasks.imagery import Grid, Window


class CellAreas:
    """Areas of cells in square metres.

    Each cell's corners are carried into an equal-area projection around the window: a cylindrical one for
    degrees, where cells stay rectangles and the area is exact, else Lambert's azimuthal one. Along a row the
    cell in the window's middle counts for all, which in UTM changes nothing that four digits show.

    Args:
        grid: with a coordinate system.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._crs = pyproj.CRS.from_wkt(str(grid.crs_wkt))
        self._to_degrees = pyproj.Transformer.from_crs(self._crs, "EPSG:4326", always_xy=True)

    def of_rows(self, window: Window) -> NDArray[np.float64]:
        """Area of a cell in each row of the window, m².  # (window.rows,)"""
        a, b, c, d, e, f = self._grid.transform
        middle = window.col + window.cols // 2
        rows = np.arange(window.row, window.row_stop + 1)
        cols = np.array([middle, middle + 1])
        x = a * cols[None] + b * rows[:, None] + c
        y = d * cols[None] + e * rows[:, None] + f
        longitude, latitude = self._to_degrees.transform(x.mean(), y.mean())
        if self._crs.is_geographic:
            flat = f"+proj=cea +lon_0={longitude:.6f} +datum=WGS84 +units=m"
        else:
            flat = f"+proj=laea +lon_0={longitude:.6f} +lat_0={latitude:.6f} +datum=WGS84 +units=m"
        project = pyproj.Transformer.from_crs(self._crs, flat, always_xy=True)
        east, north = project.transform(x, y)
        points = np.stack([east, north], axis=-1)  # (rows + 1, 2, 2)
        one, other = points[1:, 1] - points[:-1, 0], points[1:, 0] - points[:-1, 1]
        areas: NDArray[np.float64] = np.abs(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]) / 2
        return areas
