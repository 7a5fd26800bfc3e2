"""Chips as files: lossless where the format is, with their place on the earth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import CRS

from tasks.errors import BadInputError, TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import classified_tiles, images, layout
from tasks.training_data.sample import ChipFile, Context, Transform

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


@pytest.mark.parametrize(
    ("chip_format", "bands", "dtype", "remedy"),
    [
        ("PNG", 4, "uint8", "TIFF or MRF"),
        ("PNG", 2, "uint8", "TIFF or MRF"),
        ("PNG", 3, "int16", "TIFF or MRF"),
        ("JPEG", 4, "uint8", "TIFF or MRF"),
        ("JPEG", 2, "uint8", "TIFF or MRF"),
        ("JPEG", 3, "uint16", "TIFF or PNG or MRF"),
        ("MRF", 3, "int64", "TIFF"),
    ],
)
def test_a_chip_format_refuses_what_it_cannot_hold(
    chip_format: str, bands: int, dtype: str, remedy: str
) -> None:
    with pytest.raises(BadInputError, match=rf"Set chip_format to {remedy}\."):
        picture(np.zeros((bands, 8, 8), dtype), chip_format, TRANSFORM)


def test_a_type_that_no_chip_holds_is_refused() -> None:
    with pytest.raises(BadInputError, match="Convert the imagery"):
        images.check_chip_format("TIFF", 1, "complex64")


def picture(values: np.ndarray, chip_format: str, transform: Transform) -> list[ChipFile]:
    context = Context(chip_format, WKT, ClassSchema(()))
    return images.encode_picture(values, "000000007", "images", transform, context)[0]


def six(place: Affine) -> Transform:
    return place.a, place.b, place.c, place.d, place.e, place.f


def written(folder: Path, files: list[ChipFile]) -> Path:
    for file in files:
        path = folder / file.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file.data)
    return folder / files[0].path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 2, 7])
def test_mrf_keeps_every_pixel_and_the_georeference(tmp_path: Path, dtype: str, bands: int) -> None:
    values = np.random.default_rng(0).uniform(0, 200, (bands, 20, 30)).astype(dtype)
    transform = (1 / 3, 0.0, 500_000.1, 0.0, -1 / 7, 5_000_000.7)
    path = written(tmp_path, picture(values, "MRF", transform))
    np.testing.assert_array_equal(images.decode_image(path), values)
    with rasterio.open(path) as dataset:
        assert dataset.driver == "MRF"
        assert tuple(dataset.transform)[:6] == pytest.approx(transform, rel=1e-9)
        assert dataset.crs.to_epsg() == 32612
        assert dataset.dtypes[0] == dtype
    assert sorted(item.name for item in path.parent.iterdir()) == [
        f"000000007.{extension}" for extension in ("idx", "mfw", "mrf", "pzp")
    ]


@pytest.mark.parametrize("bands", [1, 3])
def test_png_of_16_bits_is_lossless(tmp_path: Path, bands: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (bands, 20, 30), dtype=np.uint16)
    path = written(tmp_path, picture(values, "PNG", TRANSFORM))
    back = images.decode_image(path)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("chip_format", ["TIFF", "PNG", "JPEG"])
def test_a_turned_chip_lies_where_its_transform_says(tmp_path: Path, chip_format: str) -> None:
    place = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
    path = written(tmp_path, picture(np.zeros((3, 8, 8), np.uint8), chip_format, six(place)))
    with rasterio.open(path) as dataset:
        assert tuple(dataset.transform)[:6] == pytest.approx(six(place), abs=1e-8)


def test_the_place_of_a_turned_mrf_chip_is_in_its_world_file(tmp_path: Path) -> None:
    place = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
    path = written(tmp_path, picture(np.zeros((3, 8, 8), np.uint8), "MRF", six(place)))
    with rasterio.open(path) as dataset:
        assert dataset.transform.is_identity
        assert dataset.crs.to_epsg() == 32612
    world = path.with_suffix(".mfw").read_text()
    assert layout.parse_world_file(world) == pytest.approx(six(place), abs=1e-8)


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
