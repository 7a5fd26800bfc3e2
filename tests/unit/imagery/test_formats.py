"""Every kind of file that may come: read to the bit, or refused clearly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from tasks.errors import RasterError
from tasks.imagery import GridReader, Pixels, RasterInfo, export_grid, inspect_raster
from tasks.imagery.image_space import in_pixel_space

TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


def pixels_of(dtype: str, bands: int = 3) -> NDArray[Any]:
    values = np.random.default_rng(3).integers(0, 120, (bands, 150, 170))
    return (values * 317 if np.dtype(dtype).itemsize > 1 else values).astype(dtype)


def write(path: Path, values: NDArray[Any], driver: str = "GTiff", **profile: Any) -> str:
    with rasterio.open(
        path,
        "w",
        driver=driver,
        count=values.shape[0],
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        **{"crs": "EPSG:32612", "transform": TRANSFORM, **profile},
    ) as dataset:
        dataset.write(values)
    return str(path)


def read(path: str) -> tuple[RasterInfo, Pixels]:
    info = inspect_raster(path)
    grid = export_grid([info])
    with GridReader([info], grid) as reader:
        return info, reader.read(grid.window)


def read_in_pixel_space(info: RasterInfo) -> Pixels:
    grid = export_grid([info], pixel_space=True)
    with GridReader([in_pixel_space(info)], grid) as reader:
        return reader.read(grid.window)


@pytest.mark.parametrize("name", ["a.jp2", "Größe ☃ 木.jp2"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_jpeg_2000_without_loss(tmp_path: Path, dtype: str, name: str) -> None:
    values = pixels_of(dtype)
    path = write(tmp_path / name, values, "JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    info, pixels = read(path)
    assert (info.dtype, info.crs_wkt is not None, info.transform) == (dtype, True, tuple(TRANSFORM)[:6])
    np.testing.assert_array_equal(pixels.values, values)


def test_jpeg_2000_of_another_program_with_a_world_file(tmp_path: Path) -> None:
    from PIL import Image

    values = pixels_of("uint8")
    path = tmp_path / "a.jp2"
    Image.fromarray(np.moveaxis(values, 0, 2)).save(path, irreversible=False)
    path.with_suffix(".j2w").write_text("0.5\n0\n0\n-0.5\n500000.25\n4999999.75\n")
    info = inspect_raster(str(path))
    assert info.transform == (0.5, 0, 500_000, 0, -0.5, 5_000_000)
    np.testing.assert_array_equal(read_in_pixel_space(info).values, values)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
@pytest.mark.parametrize(
    "layout",
    [
        {"tiled": False, "blockysize": 1, "interleave": "pixel"},
        {"tiled": False, "blockysize": 150, "interleave": "band"},
    ],
)
def test_striped_tiff(tmp_path: Path, dtype: str, layout: dict[str, Any]) -> None:
    values = pixels_of(dtype)
    path = write(tmp_path / "a.tif", values, **layout, compress="lzw")
    info, pixels = read(path)
    assert info.dtype == dtype
    np.testing.assert_array_equal(pixels.values, values)
    assert pixels.valid.all()


def test_floats_with_nan_and_infinities(tmp_path: Path) -> None:
    values = pixels_of("float32")
    values[:, 3:5, 7:9] = np.nan
    values[0, 10, 10] = np.nan  # the other bands hold data there
    values[1, 11, 11] = np.inf
    for name, nodata in (("a.tif", None), ("b.tif", np.nan)):
        _, pixels = read(write(tmp_path / name, values, nodata=nodata))
        np.testing.assert_array_equal(pixels.valid, ~np.isnan(values).all(axis=0))
        np.testing.assert_array_equal(pixels.values[:, pixels.valid], values[:, pixels.valid])


def test_a_picture_with_a_world_file(tmp_path: Path) -> None:
    values = pixels_of("uint16", 1)
    path = write(tmp_path / "ä.png", values, "PNG", crs=None, transform=Affine.identity())
    (tmp_path / "ä.pgw").write_text("0.5\n0\n0\n-0.5\n500000.25\n4999999.75\n")
    info = inspect_raster(path)
    assert info.transform == pytest.approx((0.5, 0, 500_000, 0, -0.5, 5_000_000))
    assert info.crs_wkt is None
    np.testing.assert_array_equal(read_in_pixel_space(info).values, values)
    (tmp_path / "ä.png.aux.xml").write_text("<PAMDataset><SRS>EPSG:32612</SRS></PAMDataset>")
    info, pixels = read(path)
    assert info.crs_wkt is not None
    np.testing.assert_array_equal(pixels.values, values)


def test_virtual_rasters_of_parts(tmp_path: Path) -> None:
    values = pixels_of("int16")
    left = write(tmp_path / "left é.tif", values[:, :, :100])
    right = write(
        tmp_path / "right.tif", values[:, :, 100:], transform=TRANSFORM @ Affine.translation(100, 0)
    )
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{Path(name).name}</SourceFilename>'
        f'<SourceBand>{{band}}</SourceBand><SrcRect xOff="0" yOff="0" xSize="{width}" ySize="150"/>'
        f'<DstRect xOff="{start}" yOff="0" xSize="{width}" ySize="150"/>'
        "</SimpleSource>"
        for name, start, width in ((left, 0, 100), (right, 100, 70))
    )
    bands = "".join(
        f'<VRTRasterBand dataType="Int16" band="{band}">{sources.format(band=band)}</VRTRasterBand>'
        for band in (1, 2, 3)
    )
    path = tmp_path / "all.vrt"
    path.write_text(
        '<VRTDataset rasterXSize="170" rasterYSize="150"><SRS>EPSG:32612</SRS>'
        f"<GeoTransform>500000,0.5,0,5000000,0,-0.5</GeoTransform>{bands}</VRTDataset>"
    )
    _, pixels = read(str(path))
    np.testing.assert_array_equal(pixels.values, values)


@pytest.mark.parametrize(
    ("name", "driver", "profile"),
    [
        ("tiled.tif", "GTiff", {"tiled": True, "blockxsize": 64, "blockysize": 64}),
        ("striped.tif", "GTiff", {"tiled": False, "compress": "deflate"}),
        ("a.jp2", "JP2OpenJPEG", {"QUALITY": 100, "REVERSIBLE": "YES"}),
        ("a.png", "PNG", {}),
        ("a.jpg", "JPEG", {}),
        ("cog.tif", "COG", {"compress": "deflate"}),
    ],
)
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.01])
def test_a_file_that_was_cut_off_is_never_half_an_image(
    tmp_path: Path, name: str, driver: str, profile: dict[str, Any], kept: float
) -> None:
    whole = write(tmp_path / name, pixels_of("uint8"), driver, **profile)
    _, expected = read(whole)
    cut = tmp_path / f"cut-{name}"
    shutil.copy(whole, cut)
    side = Path(whole + ".aux.xml")
    if side.exists():
        shutil.copy(side, str(cut) + ".aux.xml")
    with cut.open("r+b") as file:
        file.truncate(int(cut.stat().st_size * kept))
    try:
        found = read_in_pixel_space(inspect_raster(str(cut)))
    except RasterError as error:
        told = str(error)
    else:  # what was lost held no pixels
        np.testing.assert_array_equal(found.values, expected.values)
        return
    assert f"cut-{name}" in told
    # What GDAL says of such a file is often dark.
    assert "copied" in told or "copy it again" in told
