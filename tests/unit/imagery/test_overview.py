from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling

import tasks.imagery.overview
from tasks.errors import RasterError
from tasks.imagery import grid_of_collection, grid_of_raster, inspect_raster
from tasks.imagery.overview import picture_grid, read_overview
from tests.unit.imagery.conftest import Writer


@pytest.fixture
def smooth() -> NDArray[np.uint8]:
    """(2, 400, 600): one band grows to the east, one to the south."""
    rows, cols = np.mgrid[0:400, 0:600]
    return np.stack([cols * 250 / 600, rows * 250 / 400]).astype(np.uint8)


def test_the_picture_covers_the_whole_in_the_size_wanted(write: Writer, smooth: NDArray[np.uint8]) -> None:
    info = inspect_raster(write("a.tif", smooth))
    grid = picture_grid([info], None, max_px=100)
    assert grid.shape == (67, 100)
    assert grid.bounds == pytest.approx(info.bounds)
    assert picture_grid([info], None, max_px=10_000).shape == (400, 600)


def test_pixels_are_averages_of_what_lies_below(write: Writer, smooth: NDArray[np.uint8]) -> None:
    info = inspect_raster(write("a.tif", smooth))
    pixels = read_overview([info], picture_grid([info], None, max_px=60), (1, 0))
    expected = smooth.reshape(2, 40, 10, 60, 10).mean(axis=(2, 4))[::-1]
    assert pixels.valid.all()
    assert np.abs(pixels.values.astype(float) - expected).max() <= 1


def test_a_mosaic_with_gaps_and_another_crs(write: Writer, smooth: NDArray[np.uint8]) -> None:
    infos = [
        inspect_raster(write("1.tif", smooth[:, :200, :300])),
        inspect_raster(write("2.tif", smooth[:, 200:, 300:], corner=(500_150.0, 4_999_900.0))),
    ]
    grid = picture_grid(infos, None, max_px=60)
    for view in (grid, picture_grid(infos, grid_of_collection(infos, out_sr="EPSG:3857"), max_px=60)):
        pixels = read_overview(infos, view, (0,))
        rows, cols = view.shape
        upper, lower = pixels.valid[: rows // 2 - 2], pixels.valid[rows // 2 + 2 :]
        assert upper[:, 2 : cols // 2 - 2].mean() > 0.9
        assert lower[:, cols // 2 + 2 : -2].mean() > 0.9
        assert upper[:, cols // 2 + 2 :].sum() == 0
        assert pixels.values[0, 5, 5] < 40
        assert pixels.values[0, -6, -6] > 210


def test_overviews_are_used_and_the_rest_is_bounded(
    write: Writer, smooth: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.tif", smooth)
    info = inspect_raster(path)
    monkeypatch.setattr(tasks.imagery.overview, "MAX_SOURCE_PIXELS", 400 * 600 // 4)
    centre = picture_grid([info], None, max_px=100)
    assert centre.bounds == pytest.approx((500_075.0, 4_999_850.0, 500_225.0, 4_999_950.0))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    assert picture_grid([info], None, max_px=100).bounds == pytest.approx(info.bounds)


def test_invalid_pixels_stay_invalid(write: Writer) -> None:
    values: NDArray[Any] = np.full((1, 64, 64), 10, np.float32)
    values[:, :32] = np.nan
    info = inspect_raster(write("a.tif", values))
    pixels = read_overview([info], picture_grid([info], None, max_px=16), (0,))
    assert pixels.valid.sum() == 8 * 16
    assert set(np.unique(pixels.values)) == {0, 10}


def test_a_cut_off_file_is_an_error(write: Writer, noise: NDArray[np.uint8]) -> None:
    path = write("a.tif", noise)
    info = inspect_raster(path)
    with open(path, "r+b") as file:  # noqa: PTH123
        file.truncate(30_000)
    with pytest.raises(RasterError, match=r"a\.tif could not be read for a picture"):
        read_overview([info], grid_of_raster(info), (0,))
