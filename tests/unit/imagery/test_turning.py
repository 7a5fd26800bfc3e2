"""Turned chips against scipy, GDAL and geometry."""

import math
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject
from scipy import ndimage

from tasks.imagery import Window
from tasks.imagery.places import Place
from tasks.imagery.turning import turned

WHOLE = Window(0, 0, 140, 150)
NOISE = np.random.default_rng(3).integers(1, 256, (3, *WHOLE.shape), dtype=np.uint8)
SMOOTH = ndimage.gaussian_filter(NOISE.astype(np.float64), (0, 2, 2))
ANGLES = st.floats(0, 359.99).filter(lambda angle: angle % 90 > 0.01)
PLACES = st.builds(
    Place, st.integers(45, 55), st.integers(45, 55), st.integers(1, 40), st.integers(1, 40), ANGLES
)


def held(values: NDArray[Any], window: Window) -> NDArray[Any]:
    return values[..., *window.slices_in(WHOLE)]


def by_scipy(values: NDArray[Any], place: Place, order: int) -> NDArray[Any]:
    t = place.to_grid
    col, row = t @ (0.5, 0.5)
    return np.stack(
        [
            ndimage.affine_transform(
                plane.astype(np.float64),
                np.array([[t.e, t.d], [t.b, t.a]]),
                (row - 0.5, col - 0.5),
                output_shape=(place.rows, place.cols),
                order=order,
            )
            for plane in values
        ]
    )


@given(PLACES)
@hypothesis_settings(max_examples=60, deadline=None)
def test_bilinear_is_scipys(place: Place) -> None:
    found = turned(held(SMOOTH, place.window), place, place.window, method="bilinear")
    assert found.shape == (3, place.rows, place.cols)
    np.testing.assert_allclose(found, by_scipy(SMOOTH, place, 1), atol=1e-4)
    whole = turned(NOISE, place, WHOLE, method="bilinear")
    assert whole.dtype == np.uint8
    assert np.abs(whole - by_scipy(NOISE, place, 1)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("angle", [10.0, 45.0, 133.0, 300.0])
def test_bilinear_is_gdals_without_its_blur(angle: float) -> None:
    place = Place(50, 52, 40, 36, angle)
    window = place.window
    expected = np.zeros((3, 40, 36), np.uint8)
    reproject(
        np.ascontiguousarray(held(NOISE, window)),
        expected,
        src_transform=Affine.translation(window.col, window.row),
        dst_transform=place.to_grid,
        src_crs=CRS.from_epsg(3857),
        dst_crs=CRS.from_epsg(3857),
        resampling=Resampling.bilinear,
        # GDAL compares bounding boxes, takes a turned picture for a larger one, and blurs it.
        XSCALE=1,
        YSCALE=1,
    )
    found = turned(held(NOISE, window), place, window, method="bilinear")
    assert np.abs(found.astype(int) - expected).max() <= 1


@given(PLACES)
@hypothesis_settings(max_examples=60, deadline=None)
def test_nearest_takes_the_pixel_under_the_centre(place: Place) -> None:
    index = np.arange(WHOLE.rows * WHOLE.cols, dtype=np.uint32).reshape(1, *WHOLE.shape)
    found = turned(held(index, place.window), place, place.window)
    for row in {0, place.rows // 2, place.rows - 1}:
        for col in {0, place.cols // 2, place.cols - 1}:
            grid_col, grid_row = place.to_grid @ (col + 0.5, row + 0.5)
            apart = [abs(value - round(value)) for value in (grid_col, grid_row)]
            if min(apart) > 1e-6:  # on a border either neighbour will do
                assert found[0, row, col] == index[0, math.floor(grid_row), math.floor(grid_col)]


@given(
    st.builds(
        Place, st.integers(45, 55), st.integers(45, 55), st.integers(1, 40), st.integers(1, 40),
        st.sampled_from([0.0, 90.0, 180.0, 270.0]),
    ),
    st.sampled_from(["nearest", "bilinear"]),
)  # fmt: skip
@hypothesis_settings(max_examples=40, deadline=None)
def test_quarters_move_pixels_and_change_none(place: Place, method: Any) -> None:
    found = turned(NOISE, place, WHOLE, method=method)
    assert found.flags.c_contiguous
    assert found.shape == (3, place.rows, place.cols)
    t = place.to_grid
    for row in {0, place.rows - 1}:
        for col in {0, place.cols - 1}:
            grid_col, grid_row = t @ (col + 0.5, row + 0.5)
            assert (grid_col % 1, grid_row % 1) == (0.5, 0.5)
            np.testing.assert_array_equal(
                found[:, row, col], NOISE[:, math.floor(grid_row), math.floor(grid_col)]
            )


@given(PLACES, st.integers(-30, 30), st.integers(-30, 30))
@hypothesis_settings(max_examples=40, deadline=None)
def test_a_picture_moved_by_whole_pixels_gives_the_same_chip(place: Place, down: int, right: int) -> None:
    far = Place(place.row + 10**6 + down, place.col + 10**7 + right, place.rows, place.cols, place.angle)
    moved = WHOLE.shift(10**6 + down, 10**7 + right)
    for method in ("nearest", "bilinear"):
        np.testing.assert_array_equal(
            turned(SMOOTH, place, WHOLE, method=method),
            turned(SMOOTH, far, moved, method=method),
        )


@given(PLACES)
@hypothesis_settings(max_examples=30, deadline=None)
def test_pixels_without_data_do_not_darken_their_neighbours(place: Place) -> None:
    valid = NOISE[0] > 60
    level = np.full((2, *WHOLE.shape), 200, np.uint8)
    level[:, ~valid] = 7
    found = turned(level, place, WHOLE, method="bilinear", valid=valid)
    shown = turned(valid, place, WHOLE)
    assert shown.dtype == bool
    np.testing.assert_array_equal(found, np.broadcast_to(np.where(shown, 200, 0), found.shape))


@pytest.mark.parametrize("angle", [0.0, 90.0, 30.0])
@pytest.mark.parametrize("method", ["nearest", "bilinear"])
def test_outside_of_the_window_is_nothing(angle: float, method: Any) -> None:
    place = Place(-10, -8, 30, 30, angle)
    level = np.full((1, *WHOLE.shape), 90, np.uint16)
    found = turned(level, place, WHOLE, method=method)
    centres = np.array([[place.to_grid @ (col + 0.5, row + 0.5) for col in range(30)] for row in range(30)])
    inside = (centres > 0).all(axis=-1)
    assert 0 < inside.sum() < 900
    np.testing.assert_array_equal(found[0], np.where(inside, 90, 0))
    far = Place(10_000, 0, 5, 5, angle)
    assert not turned(level, far, WHOLE, method=method).any()


def test_a_single_value_stays_one_where_it_can() -> None:
    valid = np.broadcast_to(np.True_, WHOLE.shape)
    for angle in (90.0, 33.0):
        place = Place(50, 50, 20, 30, angle)
        found = turned(valid, place, WHOLE)
        assert found.shape == (20, 30)
        assert found.strides == (0, 0)
        assert found.all()
        np.testing.assert_array_equal(
            turned(NOISE, place, WHOLE, method="bilinear", valid=valid),
            turned(NOISE, place, WHOLE, method="bilinear"),
        )
        assert not turned(valid, Place(-5, 50, 20, 30, angle), WHOLE).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_the_ends_of_a_type_survive(dtype: str) -> None:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        ends: list[Any] = [-1e30, 1e30]
    else:
        ends = [np.iinfo(kind).min, np.iinfo(kind).max]
    place = Place(50, 50, 30, 30, 20.0)
    for value in ends:
        found = turned(np.full(WHOLE.shape, value, kind), place, WHOLE, method="bilinear")
        assert found.dtype == kind
        assert (found == kind.type(value)).all()


def test_arrays_must_hold_the_window() -> None:
    with pytest.raises(ValueError, match="pixels are needed"):
        turned(NOISE, Place(0, 0, 5, 5), WHOLE.expand(1))
    with pytest.raises(ValueError, match="pixels are needed"):
        turned(NOISE, Place(0, 0, 5, 5), WHOLE, valid=np.ones((3, 3), bool))
