"""Chips as files: lossless where the format is, with their place on the earth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import CRS

from tasks.errors import BadInputError, TrainingDataError
from tasks.training_data import classified_tiles, images

TRANSFORM = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0)
WKT = CRS("EPSG:32612").to_wkt()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_tiff_keeps_every_pixel_and_the_georeference(tmp_path: Path, dtype: str, bands: int) -> None:
    values = np.random.default_rng(0).uniform(0, 200, (bands, 20, 30)).astype(dtype)
    path = tmp_path / "0.tif"
    path.write_bytes(images.encode_image(values, "TIFF", TRANSFORM, WKT))
    np.testing.assert_array_equal(images.decode_image(path), values)
    with rasterio.open(path) as dataset:
        assert tuple(dataset.transform)[:6] == TRANSFORM
        assert dataset.crs.to_epsg() == 32612
        assert dataset.dtypes[0] == dtype


@pytest.mark.parametrize("bands", [1, 3])
def test_png_is_lossless_and_jpeg_close(tmp_path: Path, bands: int) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    values = np.stack([smooth + shift for shift in (0, 40, 90)][:bands])
    for chip_format, tolerance in (("PNG", 0), ("JPEG", 8)):
        path = tmp_path / f"0.{chip_format.lower()}"
        path.write_bytes(images.encode_image(values, chip_format, TRANSFORM, WKT))
        assert np.abs(images.decode_image(path).astype(int) - values).max() <= tolerance


@pytest.mark.parametrize(("bands", "dtype"), [(4, "uint8"), (3, "uint16"), (2, "uint8")])
@pytest.mark.parametrize("chip_format", ["PNG", "JPEG"])
def test_png_and_jpeg_refuse_what_they_cannot_hold(bands: int, dtype: str, chip_format: str) -> None:
    with pytest.raises(BadInputError, match="Set chip_format to TIFF"):
        images.encode_image(np.zeros((bands, 8, 8), dtype), chip_format, TRANSFORM, WKT)


def test_encoding_is_deterministic() -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    for chip_format in ("TIFF", "PNG", "JPEG"):
        assert images.encode_image(values, chip_format, TRANSFORM, WKT) == images.encode_image(
            values, chip_format, TRANSFORM, WKT
        )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_labels_keep_their_values_and_type(tmp_path: Path, dtype: str) -> None:
    mask = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (16, 24)).astype(dtype)
    path = tmp_path / "0.tif"
    path.write_bytes(classified_tiles.encode_label(mask, TRANSFORM, WKT))
    back = classified_tiles.decode_label(path)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, mask)


def test_a_label_of_three_bands_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.tif"
    path.write_bytes(images.encode_image(np.zeros((3, 8, 8), np.uint8), "TIFF", TRANSFORM, WKT))
    with pytest.raises(TrainingDataError, match="3 bands"):
        classified_tiles.decode_label(path)


def test_a_label_with_fractions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.tif"
    path.write_bytes(images.encode_image(np.full((1, 8, 8), 0.5, np.float32), "TIFF", TRANSFORM, WKT))
    with pytest.raises(TrainingDataError, match="not whole numbers"):
        classified_tiles.decode_label(path)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.tif"
    path.write_bytes(b"II*\0 cut off")
    with pytest.raises(TrainingDataError, match="cannot be read"):
        images.decode_image(path)
