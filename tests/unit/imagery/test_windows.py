import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.imagery import Window

windows = st.builds(Window, st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 12), st.integers(0, 12))


def pixels(window: Window) -> set[tuple[int, int]]:
    return {
        (row, col) for row in range(window.row, window.row_stop) for col in range(window.col, window.col_stop)
    }


@given(windows, windows)
def test_intersection_and_containment_are_those_of_pixel_sets(first: Window, second: Window) -> None:
    both = first.intersection(second)
    assert pixels(both) == pixels(first) & pixels(second)
    assert both.is_empty == (not pixels(both))
    assert first.contains(second) == (pixels(second) <= pixels(first))


@given(windows, st.integers(0, 5))
def test_expand_adds_the_halo_on_every_side(window: Window, halo: int) -> None:
    wide = window.expand(halo)
    assert (wide.row, wide.col) == (window.row - halo, window.col - halo)
    assert wide.shape == (window.rows + 2 * halo, window.cols + 2 * halo)
    assert window.slices_in(wide) == (slice(halo, halo + window.rows), slice(halo, halo + window.cols))


def test_a_window_outside_has_no_slices() -> None:
    with pytest.raises(ValueError, match="does not lie inside"):
        Window(0, 0, 5, 5).slices_in(Window(1, 0, 9, 9))
    with pytest.raises(ValueError, match="negative"):
        Window(0, 0, -1, 5)
