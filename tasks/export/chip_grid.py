"""Where chips lie on a grid: pure arithmetic.

Positions are counted row by row from the upper-left corner. A chip that would reach beyond the lower or
right edge is moved inward until it fits, so that every chip is full of pixels; only a grid that is smaller
than a chip gives chips that reach outside (filled with 0). docs/formats/training-data.md, "Choices of ours".

For work to be cut and still be numbered from the upper left to the lower right, positions are looked at in
cells: a *lane* is a row of chips, a *tract* a strip of columns that is narrow enough to be streamed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tasks.imagery import Window
from tasks.imagery.places import Place


def starts(size: int, tile: int, stride: int) -> npt.NDArray[np.int64]:
    """First pixels of the chips along an axis of ``size`` pixels, ascending."""
    if size <= tile:
        return np.zeros(1, dtype=np.int64)
    regular = np.arange(0, size - tile + 1, stride, dtype=np.int64)
    if regular[-1] + tile < size:
        return np.append(regular, size - tile)
    return regular


def inward(start: int, tile: int, size: int) -> int:
    """The start of a chip moved inward until it fits; 0 where the axis is shorter than the chip."""
    return max(0, min(start, size - tile))


@dataclass(frozen=True)
class ChipGrid:
    """The chip positions of one item.

    Attributes:
        rows: height of the grid, px.
        cols: width of the grid, px.
        tile: (rows, cols) of a chip as it lies on the grid, px.
        stride: (rows, cols) from one chip to the next, px.
        tract_px: width of a tract, px.
    """

    rows: int
    cols: int
    tile: tuple[int, int]
    stride: tuple[int, int]
    tract_px: int

    @cached_property
    def row_starts(self) -> npt.NDArray[np.int64]:
        """First pixel row of each row of chips."""
        return starts(self.rows, self.tile[0], self.stride[0])

    @cached_property
    def col_starts(self) -> npt.NDArray[np.int64]:
        """First pixel column of each column of chips."""
        return starts(self.cols, self.tile[1], self.stride[1])

    @property
    def positions(self) -> int:
        """Number of chip positions."""
        return len(self.row_starts) * len(self.col_starts)

    @property
    def lanes(self) -> int:
        """Number of rows of chips."""
        return len(self.row_starts)

    @property
    def tracts(self) -> int:
        """Number of strips of columns."""
        return math.ceil(self.cols / self.tract_px)

    def windows(self, lane: int, tract: int) -> list[Window]:
        """Where the chips of a cell lie: those that start in the tract, from left to right."""
        row = int(self.row_starts[lane])
        first, stop = np.searchsorted(self.col_starts, (tract * self.tract_px, (tract + 1) * self.tract_px))
        return [Window(row, col, *self.tile) for col in self.col_starts[first:stop].tolist()]

    def cell(self, lane: int, tract: int) -> Window:
        """The part of the grid that belongs to a cell when features, not positions, are sorted into cells."""
        row, col = lane * self.tile[0], tract * self.tract_px
        return Window(row, col, min(self.tile[0], self.rows - row), min(self.tract_px, self.cols - col))

    @property
    def feature_lanes(self) -> int:
        """Number of lanes of :meth:`cell`."""
        return math.ceil(self.rows / self.tile[0])


def turned_places(window: Window, tile: tuple[int, int], angles: Sequence[float]) -> list[Place]:
    """A chip at each angle, all about the window's centre.

    Args:
        window: where the chip lies at the first angle; its height and width are swapped against ``tile``
            where that angle is an odd number of quarters.
        tile: (rows, cols) of the chip itself.
        angles: degrees, the first one a multiple of 90.
    """
    rows, cols = tile
    # Chips with an odd difference of height and width turn about a centre half a pixel off; see Place.
    row = window.row + math.ceil((window.rows - rows) / 2)
    col = window.col + math.ceil((window.cols - cols) / 2)
    return [Place(row, col, rows, cols, angle) for angle in angles]
