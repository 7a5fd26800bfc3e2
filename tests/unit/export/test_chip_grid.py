"""Chip positions: whole inside, everything covered, edges moved inward."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.export.chip_grid import ChipGrid, starts


def test_the_last_chip_is_moved_inward() -> None:
    assert starts(100, 40, 40).tolist() == [0, 40, 60]
    assert starts(80, 40, 40).tolist() == [0, 40]
    assert starts(30, 40, 20).tolist() == [0]


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
    grid = ChipGrid(rows=50, cols=70, tile=32, stride=32)
    assert grid.positions == 6
    assert grid.windows(1, 4).tolist() == [[0, 32, 32, 32], [0, 38, 32, 32], [18, 0, 32, 32]]
    assert len(grid.windows(4, 100)) == 2
