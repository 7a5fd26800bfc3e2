"""The target grid: CRS, cell size and origin, pure geometry with no I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.imagery.windows import Window

Transform = tuple[float, float, float, float, float, float]
Bounds = tuple[float, float, float, float]

ALIGNMENT_TOLERANCE_PX = 0.05
"""Grids whose pixels lie apart by less than this, anywhere, count as the same grid."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A north-up grid of pixels in map space, or in pixel space where there is no CRS.

    Attributes:
        crs_wkt: coordinate reference system as WKT; None in pixel space.
        transform: (a, b, c, d, e, f) of ``affine.Affine``: x = a·col + c, y = e·row + f, with a > 0 > e.
        rows: height, px.
        cols: width, px.
    """

    crs_wkt: str | None
    transform: Transform
    rows: int
    cols: int

    def __post_init__(self) -> None:
        a, b, _, d, e, _ = self.transform
        if b or d or a <= 0 or e >= 0:
            raise ValueError(f"A grid is north-up and not rotated; got the transform {self.transform}.")
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"A grid holds at least one pixel; got {self.rows} rows, {self.cols} columns.")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return (self.rows, self.cols)

    @property
    def cell_size(self) -> tuple[float, float]:
        """Pixel width and height in map units, both positive: (x, y)."""
        return (self.transform[0], -self.transform[4])

    @property
    def window(self) -> Window:
        """The whole grid."""
        return Window(0, 0, self.rows, self.cols)

    @property
    def bounds(self) -> Bounds:
        """(xmin, ymin, xmax, ymax) in map units."""
        return self.window_bounds(self.window)

    def window_bounds(self, window: Window) -> Bounds:
        """(xmin, ymin, xmax, ymax) of a window in map units."""
        a, _, c, _, e, f = self.transform
        return (c + a * window.col, f + e * window.row_stop, c + a * window.col_stop, f + e * window.row)

    def window_transform(self, window: Window) -> Transform:
        """The transform of an array that holds ``window``."""
        a, b, c, d, e, f = self.transform
        return (a, b, c + a * window.col, d, e, f + e * window.row)

    def window_of_bounds(self, bounds: Bounds) -> Window:
        """The smallest window that covers ``bounds``, which may reach outside of the grid.

        An edge that lies on a pixel border, up to a thousandth of a pixel, takes no further pixel.
        """
        a, _, c, _, e, f = self.transform
        xmin, ymin, xmax, ymax = bounds
        col, col_stop = _floor((xmin - c) / a), _ceil((xmax - c) / a)
        row, row_stop = _floor((ymax - f) / e), _ceil((ymin - f) / e)
        return Window(row, col, max(0, row_stop - row), max(0, col_stop - col))

    def to_map(self, col: float, row: float) -> tuple[float, float]:
        """Map coordinates (x, y) of a pixel position; (0, 0) is the corner of the first pixel."""
        a, _, c, _, e, f = self.transform
        return (c + a * col, f + e * row)

    def to_pixel(self, x: float, y: float) -> tuple[float, float]:
        """Pixel position (col, row) of map coordinates, fractional; inverse of :meth:`to_map`."""
        a, _, c, _, e, f = self.transform
        return ((x - c) / a, (y - f) / e)

    def tiles(self, rows: int, cols: int, *, within: Window | None = None) -> Iterator[Window]:
        """Windows of ``rows`` x ``cols`` px, anchored to the grid's origin, in (row, col) order.

        Tiles at the right and lower edge keep their full size and reach outside. With ``within``, only
        the tiles that touch this window.
        """
        area = self.window if within is None else within.intersection(self.window)
        if area.is_empty:
            return
        for row in range(area.row // rows * rows, area.row_stop, rows):
            for col in range(area.col // cols * cols, area.col_stop, cols):
                yield Window(row, col, rows, cols)

    def offset_of(self, transform: Transform, rows: int, cols: int) -> tuple[int, int] | None:
        """(row, col) of a raster's first pixel on this grid, or None where their pixels do not coincide.

        Coordinate reference systems are not compared here. Pixels coincide when no corner of the raster
        lies further than :data:`ALIGNMENT_TOLERANCE_PX` from a pixel corner of this grid.
        """
        a, b, c, d, e, f = transform
        if b or d or a <= 0 or e >= 0:
            return None
        col, row = self.to_pixel(c, f)
        last_col, last_row = self.to_pixel(c + a * cols, f + e * rows)
        first = (round(row), round(col))
        apart = (
            abs(row - first[0]),
            abs(col - first[1]),
            abs(last_row - first[0] - rows),
            abs(last_col - first[1] - cols),
        )
        return first if max(apart) <= ALIGNMENT_TOLERANCE_PX else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; inverse of :meth:`from_dict`."""
        return {
            "crs_wkt": self.crs_wkt,
            "transform": list(self.transform),
            "rows": self.rows,
            "cols": self.cols,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """The grid that :meth:`to_dict` described."""
        a, b, c, d, e, f = (float(number) for number in values["transform"])
        return cls(values["crs_wkt"], (a, b, c, d, e, f), int(values["rows"]), int(values["cols"]))


def _floor(value: float) -> int:
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-3 else math.floor(value)


def _ceil(value: float) -> int:
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-3 else math.ceil(value)
