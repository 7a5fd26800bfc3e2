import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from tasks.imagery import RasterInfo, grid_of_raster, inspect_raster
from tasks.infer.picture import Outlines, as_jpeg, picture, picture_bands
from tasks.labels import LabelClass
from tasks.settings import settings

CLASSES = (LabelClass(1, "Tree", (255, 0, 0)), LabelClass(2, "Öl & Gas", (0, 0, 255)))


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    settings.cache_clear()
    yield
    settings.cache_clear()


def raster(path: Path, values: NDArray[Any], **profile: Any) -> RasterInfo:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=values.shape[0],
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        crs="EPSG:32612",
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
        **profile,
    ) as dataset:
        dataset.write(values)
    return inspect_raster(str(path))


@pytest.fixture
def grey(tmp_path: Path) -> RasterInfo:
    return raster(tmp_path / "grey.tif", np.full((3, 900, 1000), 120, np.uint8))


def shown(data: bytes) -> NDArray[np.int32]:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return np.asarray(image).astype(np.int32)


def is_near(
    pixels: NDArray[np.int32], colour: tuple[int, int, int], tolerance: int = 60
) -> NDArray[np.bool_]:
    return np.asarray((np.abs(pixels - np.array(colour)) < tolerance).all(axis=-1))


def test_objects_are_outlined_where_they_are(grey: RasterInfo) -> None:
    box = shapely.box(500_100, 4_999_700, 500_200, 4_999_800)  # cols 200-400, rows 400-600
    pixels = shown(picture([grey], CLASSES, outlines=Outlines(np.array([box], dtype=object), ["Tree"])))
    assert pixels.shape == (900, 1000, 3)
    red = is_near(pixels, (255, 0, 0), 110)
    red[700:, :400] = False  # the legend
    rows, cols = np.nonzero(red)
    assert abs(rows.min() - 400) <= 4
    assert abs(rows.max() - 600) <= 4
    assert abs(cols.min() - 200) <= 4
    assert abs(cols.max() - 400) <= 4
    assert is_near(pixels[420:580, 220:380], (120, 120, 120), 12).all()


def test_classes_are_tinted_where_they_are(tmp_path: Path, grey: RasterInfo) -> None:
    values = np.zeros((1, 900, 1000), np.uint8)
    values[0, :450, 500:] = 2
    raster(tmp_path / "classes.tif", values, nodata=0)
    pixels = shown(picture([grey], CLASSES, classified=str(tmp_path / "classes.tif")))
    tinted = is_near(pixels, (66, 66, 181), 15)
    assert tinted[20:430, 520:980].all()
    assert not tinted[470:700].any()
    assert is_near(pixels[20:430, 20:480], (120, 120, 120), 12).all()


def test_it_is_small_in_bytes_and_pixels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 1500, 2600), dtype=np.uint8)
    info = raster(tmp_path / "a.tif", values)
    data = picture([info], (), max_px=800, max_bytes=60_000)
    assert len(data) <= 60_000
    assert max(Image.open(io.BytesIO(data)).size) <= 800
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8))
    assert len(as_jpeg(noise, max_bytes=20_000)) <= 20_000


def test_small_imagery_is_enlarged_and_other_types_are_stretched(tmp_path: Path) -> None:
    values = np.linspace(300, 4000, 100 * 120).reshape(1, 100, 120).astype(np.uint16)
    pixels = shown(picture([raster(tmp_path / "a.tif", values)], ()))
    assert pixels.shape == (300, 360, 3)
    assert pixels[5].mean() < 20
    assert pixels[-5].mean() > 235


def test_one_item_of_many(tmp_path: Path, grey: RasterInfo) -> None:
    dark = raster(tmp_path / "dark.tif", np.zeros((3, 900, 1000), np.uint8))
    assert shown(picture([grey, dark], ())).mean() > 100  # the first one wins
    grid = grid_of_raster(dark)
    assert shown(picture([dark], (), grid=grid)).mean() < 5


def test_bands_by_their_names(tmp_path: Path) -> None:
    stack = np.zeros((4, 8, 8), np.uint8)
    info = raster(tmp_path / "a.tif", stack, photometric="RGB", alpha="YES")
    assert picture_bands(info) == (0, 1, 2)
    assert picture_bands(info.model_copy(update={"colorinterp": ("blue", "green", "red", "nir")})) == (
        2,
        1,
        0,
    )
    assert picture_bands(info.model_copy(update={"colorinterp": ("gray", "alpha")})) == (0,)


def test_no_object_at_all(grey: RasterInfo) -> None:
    data = picture([grey], CLASSES, outlines=Outlines(np.empty(0, dtype=object), []))
    assert is_near(shown(data), (120, 120, 120), 12).all()
