"""Where chips lie on a grid: pure arithmetic.

Positions are counted row by row from the upper-left corner. A chip that would reach beyond the lower or
right edge is moved inward until it fits, so that every chip is full of pixels; only a grid that is smaller
than a chip gives chips that reach outside (filled with 0). docs/formats/training-data.md, "Choices of ours".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt


def starts(size: int, tile: int, stride: int) -> npt.NDArray[np.int64]:
    """First pixels of the chips along an axis of ``size`` pixels, ascending."""
    if size <= tile:
        return np.zeros(1, dtype=np.int64)
    regular = np.arange(0, size - tile + 1, stride, dtype=np.int64)
    if regular[-1] + tile < size:
        return np.append(regular, size - tile)
    return regular


@dataclass(frozen=True)
class ChipGrid:
    """The chip positions of one item.

    Attributes:
        rows: height of the grid, px.
        cols: width of the grid, px.
        tile: edge of a chip, px.
        stride: distance between chips, px.
    """

    rows: int
    cols: int
    tile: int
    stride: int

    @cached_property
    def row_starts(self) -> npt.NDArray[np.int64]:
        """First pixel row of each row of chips."""
        return starts(self.rows, self.tile, self.stride)

    @cached_property
    def col_starts(self) -> npt.NDArray[np.int64]:
        """First pixel column of each column of chips."""
        return starts(self.cols, self.tile, self.stride)

    @property
    def positions(self) -> int:
        """Number of chip positions."""
        return len(self.row_starts) * len(self.col_starts)

    def windows(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Windows (row, col, rows, cols) of the positions ``first`` to ``stop`` (exclusive)  # (n, 4)."""
        positions = np.arange(first, min(stop, self.positions), dtype=np.int64)
        row, col = np.divmod(positions, len(self.col_starts))
        size = np.full(len(positions), self.tile, dtype=np.int64)
        return np.column_stack([self.row_starts[row], self.col_starts[col], size, size])
