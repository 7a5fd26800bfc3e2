"""Places: where a chip lies on a grid, possibly turned about its centre; pure geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass

from affine import Affine

from tasks.imagery.windows import Window

_QUARTER = 90.0


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A rectangle of chip pixels on a grid.

    Attributes:
        row: first row of the unturned rectangle, px of the grid; it may lie outside.
        col: first column, px.
        rows: height of the chip, px.
        cols: width of the chip, px.
        angle: degrees from 0 to below 360 by which the chip's frame is turned about the rectangle's centre,
            counter-clockwise on the screen (so that the picture in the chip appears turned clockwise).
    """

    row: int
    col: int
    rows: int
    cols: int
    angle: float = 0.0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"A place holds at least one pixel: {self}.")
        if not 0 <= self.angle < 360:
            raise ValueError(f"A place is turned by 0 to below 360 degrees: {self}.")

    @property
    def is_exact(self) -> bool:
        """Whether chip pixels are grid pixels: unturned, or turned by quarters."""
        return self.angle % _QUARTER == 0

    @property
    def quarters(self) -> int:
        """How many quarters an exact place is turned by: 0 to 3."""
        return round(self.angle / _QUARTER) % 4

    @property
    def to_grid(self) -> Affine:
        """Chip pixel position (col, row) to grid pixel position (col, row); (0, 0) is a pixel's corner.

        For a chip turned by an odd number of quarters whose height and width differ by an odd number the
        centre moves by half a pixel up and left, so that pixels stay whole.
        """
        cos, sin = _cos_sin(self.angle)
        centre_col, centre_row = self.col + self.cols / 2, self.row + self.rows / 2
        if self.is_exact and self.quarters % 2 and (self.rows - self.cols) % 2:
            centre_col, centre_row = centre_col - 0.5, centre_row - 0.5
        half_col, half_row = self.cols / 2, self.rows / 2
        # The columns are the images of the chip's right and down; rows count downwards.
        return Affine(
            cos,
            sin,
            centre_col - cos * half_col - sin * half_row,
            -sin,
            cos,
            centre_row + sin * half_col - cos * half_row,
        )

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """(col, row) on the grid of the chip's corners: upper left, upper right, lower right, lower left."""
        transform = self.to_grid
        return tuple(transform @ corner for corner in self._own_corners())

    @property
    def window(self) -> Window:
        """The smallest window of whole grid pixels around the chip (one pixel more if pixels are blended)."""
        if self.angle in (0.0, 180.0):
            return Window(self.row, self.col, self.rows, self.cols)
        cols, rows = zip(*self.corners, strict=True)
        margin = 0 if self.is_exact else 1
        row, col = math.floor(_tidy(min(rows))) - margin, math.floor(_tidy(min(cols))) - margin
        row_stop, col_stop = math.ceil(_tidy(max(rows))) + margin, math.ceil(_tidy(max(cols))) + margin
        return Window(row, col, row_stop - row, col_stop - col)

    def _own_corners(self) -> tuple[tuple[float, float], ...]:
        return (
            (0.0, 0.0),
            (float(self.cols), 0.0),
            (float(self.cols), float(self.rows)),
            (0.0, float(self.rows)),
        )


def _cos_sin(angle: float) -> tuple[float, float]:
    exact = {0.0: (1.0, 0.0), 90.0: (0.0, 1.0), 180.0: (-1.0, 0.0), 270.0: (0.0, -1.0)}
    if angle in exact:
        return exact[angle]
    return math.cos(math.radians(angle)), math.sin(math.radians(angle))


def _tidy(value: float) -> float:
    """Without the last bits that trigonometry leaves."""
    return round(value, 6)
