"""Places: where the corners and the middle of a turned chip lie."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.imagery.places import Place

POSITIONS = st.integers(-(10**6), 10**6)
SIZES = st.integers(1, 300)
ANY = st.builds(Place, POSITIONS, POSITIONS, SIZES, SIZES, st.floats(0, 359.999))
EXACT = st.builds(Place, POSITIONS, POSITIONS, SIZES, SIZES, st.sampled_from([0.0, 90.0, 180.0, 270.0]))


@given(st.one_of(ANY, EXACT))
@hypothesis_settings(deadline=None)
def test_a_chip_is_turned_about_its_middle_and_lies_in_its_window(place: Place) -> None:
    col, row = place.to_grid @ (place.cols / 2, place.rows / 2)
    moved = 0.5 if place.is_exact and place.quarters % 2 and (place.rows - place.cols) % 2 else 0.0
    assert col == pytest.approx(place.col + place.cols / 2 - moved, abs=1e-6)
    assert row == pytest.approx(place.row + place.rows / 2 - moved, abs=1e-6)
    assert place.to_grid.determinant == pytest.approx(1)
    cols, rows = np.array(place.corners).T
    window = place.window
    slack = 0 if place.is_exact else 1
    for least, most, first, stop in (
        (cols.min(), cols.max(), window.col, window.col_stop),
        (rows.min(), rows.max(), window.row, window.row_stop),
    ):
        assert first <= least - slack + 1e-5
        assert least - slack - 1 - 1e-5 < first
        assert most + slack - 1e-5 <= stop < most + slack + 1 + 1e-5


@given(EXACT)
def test_quarters_use_whole_pixels(place: Place) -> None:
    assert place.is_exact
    assert place.quarters * 90 == place.angle
    assert all(value == int(value) for corner in place.corners for value in corner)
    odd = place.quarters % 2
    assert place.window.shape == ((place.cols, place.rows) if odd else (place.rows, place.cols))


def test_the_frame_turns_counter_clockwise_on_the_screen() -> None:
    place = Place(0, 0, 10, 10, 30.0)
    step = np.array(place.to_grid @ (1, 0)) - np.array(place.to_grid @ (0, 0))
    # One pixel to the right in the chip is to the right and up on the grid, where rows count downwards.
    assert step.tolist() == pytest.approx([math.cos(math.radians(30)), -0.5])
    assert Place(0, 0, 10, 10, 90.0).corners[0] == (0.0, 10.0)  # the chip's upper left is the lower left


def test_nonsense_is_refused() -> None:
    for wrong in ((0, 0, 0, 5, 0.0), (0, 0, 5, 0, 0.0), (0, 0, 5, 5, -1.0), (0, 0, 5, 5, 360.0)):
        with pytest.raises(ValueError, match=r"at least one pixel|degrees"):
            Place(*wrong)
