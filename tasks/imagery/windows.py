"""Windows: rectangles of whole pixels in (row, col) order, pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A rectangle of pixels; it may reach outside of the grid it is used on.

    Attributes:
        row: first row, px, counted downwards from the grid's top edge.
        col: first column, px, counted from the grid's left edge.
        rows: height, px.
        cols: width, px.
    """

    row: int
    col: int
    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 0 or self.cols < 0:
            raise ValueError(f"A window cannot have a negative size: {self}.")

    @property
    def row_stop(self) -> int:
        """The row after the last one."""
        return self.row + self.rows

    @property
    def col_stop(self) -> int:
        """The column after the last one."""
        return self.col + self.cols

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return (self.rows, self.cols)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.rows == 0 or self.cols == 0

    def intersection(self, other: Window) -> Window:
        """The pixels in both; an empty window where there are none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        rows = max(0, min(self.row_stop, other.row_stop) - row)
        cols = max(0, min(self.col_stop, other.col_stop) - col)
        return Window(row, col, rows, cols) if rows and cols else Window(row, col, 0, 0)

    def contains(self, other: Window) -> bool:
        """Whether every pixel of ``other`` lies inside."""
        return other.is_empty or self.intersection(other) == other

    def expand(self, halo_px: int) -> Window:
        """The window with ``halo_px`` more pixels on each of its four sides."""
        return Window(
            self.row - halo_px, self.col - halo_px, self.rows + 2 * halo_px, self.cols + 2 * halo_px
        )

    def shift(self, rows: int, cols: int) -> Window:
        """The window moved down by ``rows`` and right by ``cols``."""
        return Window(self.row + rows, self.col + cols, self.rows, self.cols)

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Where this window lies in an array that holds ``outer``: (row slice, col slice).

        Raises:
            ValueError: it does not lie inside ``outer``.
        """
        if not outer.contains(self):
            raise ValueError(f"{self} does not lie inside {outer}.")
        row, col = self.row - outer.row, self.col - outer.col
        return (slice(row, row + self.rows), slice(col, col + self.cols))
