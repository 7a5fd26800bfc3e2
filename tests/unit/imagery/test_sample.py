"""A look at some windows of a raster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from tasks.imagery import inspect_raster, sample_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write(path: Path, values: np.ndarray, **options: object) -> str:
    bands, rows, cols = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=cols, height=rows, count=bands, dtype=values.dtype, **options
    ) as file:
        file.write(values)
    return str(path)


def test_a_small_raster_is_seen_as_it_is(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(5, 60_000, (2, 40, 50)).astype(np.uint16)
    values[:, :10] = 7
    values[:, 10:20] = 0
    sample = sample_raster(inspect_raster(write(tmp_path / "a.tif", values, nodata=7)))
    seen = values[:, 10:].astype(float).reshape(2, -1)
    assert sample.valid == pytest.approx(0.75)
    assert sample.zero == pytest.approx(1 / 3)
    for band, of_band in zip(sample.bands, seen, strict=True):
        assert (band.low, band.high) == (0, np.percentile(of_band, 99))
        assert (band.mean, band.std) == pytest.approx((of_band.mean(), of_band.std()))


def test_of_a_large_raster_five_windows_are_read(tmp_path: Path) -> None:
    values = np.zeros((1, 1200, 1600), np.float32)
    values[0, 472:728, 672:928] = 1  # the middle
    uri = write(tmp_path / "a.tif", values, tiled=True, blockxsize=256, blockysize=256)
    sample = sample_raster(inspect_raster(uri))
    assert sample.bands[0].mean == pytest.approx(0.2)
    assert sample.zero == pytest.approx(0.8)


def test_a_rotated_raster_and_one_without_data(tmp_path: Path) -> None:
    values = np.full((1, 30, 30), np.nan, np.float32)
    rotated = rasterio.Affine.rotation(30) @ rasterio.Affine.scale(1, -1)
    sample = sample_raster(
        inspect_raster(write(tmp_path / "a.tif", values, transform=rotated, crs="EPSG:32612"))
    )
    assert (sample.bands, sample.valid, sample.zero) == ((), 0, 0)
