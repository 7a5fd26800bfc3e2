import json

import pytest
import rasterio.transform
import rasterio.windows
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from tasks.imagery import Grid, Window

GRID = Grid("X", (0.1, 0.0, 528000.0, 0.0, -0.1, 4979000.0), 95, 130)


@given(st.integers(-50, 200), st.integers(-50, 200), st.integers(1, 80), st.integers(1, 80))
def test_geometry_agrees_with_rasterio(row: int, col: int, rows: int, cols: int) -> None:
    window = Window(row, col, rows, cols)
    theirs = rasterio.windows.Window(col, row, cols, rows)
    affine = Affine(*GRID.transform)
    assert GRID.window_bounds(window) == pytest.approx(rasterio.windows.bounds(theirs, affine), abs=1e-6)
    assert GRID.window_transform(window) == pytest.approx(
        tuple(rasterio.windows.transform(theirs, affine))[:6], abs=1e-6
    )
    assert GRID.window_of_bounds(GRID.window_bounds(window)) == window
    assert GRID.to_pixel(*GRID.to_map(col, row)) == pytest.approx((col, row), abs=1e-5)


def test_window_of_bounds_covers_what_it_is_given() -> None:
    assert GRID.window_of_bounds((528000.05, 4978999.75, 528000.31, 4978999.95)) == Window(0, 0, 3, 4)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(-20, 120), st.integers(-20, 120))
def test_tiles_are_anchored_and_cover_each_pixel_once(rows: int, cols: int, row: int, col: int) -> None:
    within = Window(row, col, 40, 50)
    tiles = list(GRID.tiles(rows, cols, within=within))
    assert all(tile.row % rows == 0 and tile.col % cols == 0 for tile in tiles)
    assert tiles == sorted(tiles)
    area = within.intersection(GRID.window)
    assert sum(tile.intersection(area).rows * tile.intersection(area).cols for tile in tiles) == (
        area.rows * area.cols
    )
    assert not any(tile.intersection(area).is_empty for tile in tiles)


@pytest.mark.parametrize(
    ("shift", "cell", "expected"),
    [
        ((3, -7), 0.1, (3, -7)),
        ((3.04, -7.04), 0.1, (3, -7)),
        ((3.2, -7), 0.1, None),
        ((3, -7), 0.1001, None),  # a tenth of a per mille drifts 0.1 px over 100 px
        ((3, -7), 0.100001, (3, -7)),
        ((0, 0), 0.2, None),
    ],
)
def test_alignment(shift: tuple[float, float], cell: float, expected: tuple[int, int] | None) -> None:
    x, y = GRID.to_map(shift[1], shift[0])
    assert GRID.offset_of((cell, 0, x, 0, -cell, y), 100, 100) == expected


def test_it_survives_json() -> None:
    assert Grid.from_dict(json.loads(json.dumps(GRID.to_dict()))) == GRID


@pytest.mark.parametrize("transform", [(1, 0.1, 0, 0, -1, 0), (1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0)])
def test_only_north_up_grids_exist(transform: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="north-up"):
        Grid(None, transform, 2, 2)  # type: ignore[arg-type]
