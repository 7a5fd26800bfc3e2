"""Chip positions: whole inside, everything covered, edges moved inward."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.export.chip_grid import ChipGrid, starts, turned_places
from tasks.imagery import Window


def test_the_last_chip_is_moved_inward() -> None:
    assert starts(100, 40, 40).tolist() == [0, 40, 60]
    assert starts(80, 40, 40).tolist() == [0, 40]
    assert starts(30, 40, 20).tolist() == [0]


@settings(deadline=None)
@given(size=st.integers(1, 500), tile=st.integers(1, 120), stride=st.integers(1, 150))
def test_every_chip_lies_inside_and_no_pixel_is_missed(size: int, tile: int, stride: int) -> None:
    found = starts(size, tile, stride)
    assert found[0] == 0
    assert (np.diff(found) > 0).all()
    assert (np.diff(found) <= stride).all()
    if size >= tile:
        assert found[-1] + tile == size
        assert ((found[:-1] % stride) == 0).all()


def test_windows_are_counted_row_by_row() -> None:
    grid = ChipGrid(rows=50, cols=70, tile=(32, 20), stride=(32, 25), tract_px=50)
    assert (grid.positions, grid.lanes, grid.tracts) == (6, 2, 2)
    assert grid.windows(1, 0) == [Window(18, 0, 32, 20), Window(18, 25, 32, 20)]
    assert grid.windows(0, 1) == [Window(0, 50, 32, 20)]


@settings(deadline=None)
@given(
    rows=st.integers(1, 200), cols=st.integers(1, 200), tile=st.integers(1, 60), tract_px=st.integers(1, 250)
)
def test_cells_share_out_the_grid(rows: int, cols: int, tile: int, tract_px: int) -> None:
    grid = ChipGrid(rows, cols, (tile, tile), (tile, tile), tract_px)
    seen = np.zeros((rows, cols), dtype=int)
    positions = 0
    for tract in range(grid.tracts):
        for lane in range(grid.feature_lanes):
            cell = grid.cell(lane, tract)
            seen[cell.row : cell.row_stop, cell.col : cell.col_stop] += 1
        positions += sum(len(grid.windows(lane, tract)) for lane in range(grid.lanes))
    assert (seen == 1).all()
    assert positions == grid.positions


@settings(deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), row=st.integers(-5, 5), quarters=st.integers(0, 3))
def test_a_turned_chip_fills_its_window(rows: int, cols: int, row: int, quarters: int) -> None:
    tile = (rows, cols)
    window = Window(row, 7, *(tile if quarters % 2 == 0 else tile[::-1]))
    (place,) = turned_places(window, tile, [quarters * 90.0])
    assert place.window == window
