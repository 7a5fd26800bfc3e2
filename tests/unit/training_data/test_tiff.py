"""GeoTIFFs of our own making are what GDAL would have written, and any reader opens them."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from PIL import Image
from pyproj import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from tasks.training_data.tiff import encode_tiff

WKT = CRS("EPSG:32612").to_wkt()
NORTH_UP = (0.5, 0.0, 500_000.0, 0.0, -0.25, 5_000_000.0)
TURNED = (0.4, 0.3, 500_000.0, 0.3, -0.4, 5_000_000.0)
PLACES = {
    "north up": NORTH_UP,
    "turned": TURNED,
    "south up": (0.5, 0.0, 7.0, 0.0, 0.5, 3.0),
    "pixels": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "identity": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
}
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


def _pixels(dtype: str, bands: int, rows: int = 19, cols: int = 31) -> npt.NDArray[Any]:
    random = np.random.default_rng(5)
    if np.dtype(dtype).kind == "f":
        values = random.normal(0, 1e6, (bands, rows, cols)).astype(dtype)
        values[0, 0, :3] = np.nan, np.inf, -0.0
        return values
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, (bands, rows, cols), dtype=dtype, endpoint=True)


def _facts(data: bytes) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile(data) as memory, memory.open() as dataset:
            return {
                "transform": tuple(dataset.transform)[:6],
                "crs": dataset.crs,
                "dtypes": dataset.dtypes,
                "interpretation": dataset.colorinterp,
                "masks": dataset.mask_flag_enums,
                "nodata": dataset.nodata,
                "tags": dataset.tags(),
                "structure": dataset.tags(ns="IMAGE_STRUCTURE"),
                "bytes": dataset.read().tobytes(),
            }


def _written_by_gdal(values: npt.NDArray[Any], place: tuple[float, ...], wkt: str | None) -> bytes:
    profile: dict[str, Any] = {
        "photometric": "RGB" if len(values) == 3 and values.dtype == np.uint8 else "MINISBLACK",
        "predictor": 3 if values.dtype.kind == "f" else 2,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff",
                count=len(values),
                height=values.shape[1],
                width=values.shape[2],
                dtype=values.dtype.name,
                crs=wkt,
                transform=Affine(*place),
                compress="deflate",
                interleave="pixel",
                **profile,
            ) as dataset:
                dataset.write(values)
            return bytes(memory.read())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5])
def test_the_file_says_what_gdals_own_says(dtype: str, bands: int) -> None:
    values = _pixels(dtype, bands)
    assert _facts(encode_tiff(values, NORTH_UP, WKT)) == _facts(_written_by_gdal(values, NORTH_UP, WKT))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wkt", [WKT, CRS("EPSG:4326").to_wkt(), CRS("EPSG:3857").to_wkt(), None])
def test_every_place_is_kept(place: str, wkt: str | None) -> None:
    values = _pixels("uint8", 3)
    ours = _facts(encode_tiff(values, PLACES[place], wkt))
    theirs = _facts(_written_by_gdal(values, PLACES[place], wkt))
    assert ours.pop("transform") == pytest.approx(PLACES[place], rel=1e-15)
    assert theirs.pop("transform") == pytest.approx(PLACES[place], rel=1e-15)
    assert ours == theirs


def test_chips_of_one_kind_share_nothing_but_the_kind() -> None:
    first, second = _pixels("uint8", 3), np.zeros((3, 19, 31), np.uint8)
    moved = (0.5, 0.0, 600_000.0, 0.0, -0.25, 4_000_000.0)
    files = [encode_tiff(first, NORTH_UP, WKT), encode_tiff(second, moved, WKT)]
    assert [_facts(file)["transform"][2] for file in files] == [500_000.0, 600_000.0]
    assert encode_tiff(first, NORTH_UP, WKT) == files[0]
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: encode_tiff(first, NORTH_UP, WKT), range(16))) == {files[0]}


@pytest.mark.slow
def test_equal_chips_are_equal_files_whatever_else_the_process_does() -> None:
    random = np.random.default_rng(3)
    chips = []
    for size in (64, 100, 256):
        for _ in range(20):
            mask = np.zeros((1, size, size), np.uint8)
            for row, col, side in random.integers(0, size, (12, 3)).tolist():
                mask[0, row : row + side // 3, col : col + side // 4] = random.integers(1, 4)
            chips.append(mask)
    expected = [encode_tiff(chip, NORTH_UP, WKT) for chip in chips]

    def encode(number: int) -> bytes:
        # Memory that deflate is given comes back with all sorts of leftovers in it.
        for kib in (16, 64, 160, 320, 512):
            np.frombuffer(random.bytes(1024) * kib, np.uint8).copy()
        return encode_tiff(chips[number % len(chips)].copy(), NORTH_UP, WKT)

    with ThreadPoolExecutor(16) as pool:
        for number, found in enumerate(pool.map(encode, range(10 * len(chips)))):
            assert found == expected[number % len(chips)]


@pytest.mark.parametrize(("bands", "mode"), [(1, "L"), (3, "RGB")])
def test_pillow_reads_it(bands: int, mode: str) -> None:
    values = _pixels("uint8", bands)
    with Image.open(io.BytesIO(encode_tiff(values, TURNED, WKT))) as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1), values)


def test_views_are_encoded_like_copies() -> None:
    turned = np.rot90(_pixels("uint16", 3, 40, 40), 1, axes=(1, 2))[:, 5:30, 7:20]
    assert encode_tiff(turned, NORTH_UP, WKT) == encode_tiff(np.ascontiguousarray(turned), NORTH_UP, WKT)
    swapped = turned.astype(">u2")
    assert _facts(encode_tiff(swapped, NORTH_UP, WKT))["bytes"] == turned.tobytes()


def test_masks_are_small(tmp_path: Any) -> None:
    mask = np.zeros((1, 256, 256), np.uint8)
    mask[:, 30:90, 40:200] = 3
    file = encode_tiff(mask, NORTH_UP, WKT)
    assert len(file) < 1500
    (tmp_path / "0.tif").write_bytes(file)
    with rasterio.open(tmp_path / "0.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), mask)
