"""Oracles: rasterio reading the file back, rio-cogeo's validator, GDAL's own view of the attribute table."""

import ctypes
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rio_cogeo.cogeo import cog_validate

from tasks.errors import RasterError
from tasks.imagery import Grid, Window
from tasks.infer.outputs_raster import RasterFormat, write_raster
from tasks.labels import LabelClass

GRID = Grid(CRS.from_epsg(32612).to_wkt(), (0.1, 0, 528000.0, 0, -0.1, 4979000.0), 1300, 1100)
CLASSES = (LabelClass(0, "Background", (200, 200, 200)), LabelClass(3, "Bäume & <Büsche>", (0, 150, 0)))


def truth(dtype: str = "uint8") -> NDArray[Any]:
    rows, cols = np.mgrid[0:1300, 0:1100]
    return np.where((rows // 70 + cols // 90) % 3 == 0, 3, 0).astype(dtype)


def blocks(values: NDArray[Any], size: int = 600) -> Iterator[tuple[Window, NDArray[Any]]]:
    """Full-size blocks; those at the edges reach outside and hold rubbish there."""
    for window in GRID.tiles(size, size):
        block = np.full((*values.shape[:-2], *window.shape), 77, values.dtype)
        inside = window.intersection(GRID.window)
        here, there = inside.slices_in(window), inside.slices_in(GRID.window)
        block[..., here[0], here[1]] = values[..., there[0], there[1]]
        yield window, block


def gdal_table(path: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """Columns, rows and category names, asked of the GDAL that rasterio carries."""
    folder = Path(rasterio.__file__).parent.parent / "rasterio.libs"
    gdal = ctypes.CDLL(str(next(folder.glob("libgdal*"))))
    for name in ("GDALOpen", "GDALGetRasterBand", "GDALGetDefaultRAT"):
        getattr(gdal, name).restype = ctypes.c_void_p
    for name in ("GDALRATGetValueAsString", "GDALRATGetNameOfCol"):
        getattr(gdal, name).restype = ctypes.c_char_p
    gdal.GDALGetRasterCategoryNames.restype = ctypes.POINTER(ctypes.c_char_p)
    with rasterio.Env():
        dataset = ctypes.c_void_p(gdal.GDALOpen(str(path).encode(), 0))
        band = ctypes.c_void_p(gdal.GDALGetRasterBand(dataset, 1))
        table = ctypes.c_void_p(gdal.GDALGetDefaultRAT(band))
        columns = range(gdal.GDALRATGetColumnCount(table))
        names = [gdal.GDALRATGetNameOfCol(table, column).decode() for column in columns]
        rows = [
            [gdal.GDALRATGetValueAsString(table, row, column).decode() for column in columns]
            for row in range(gdal.GDALRATGetRowCount(table))
        ]
        categories = gdal.GDALGetRasterCategoryNames(band)
        found: list[str] = []
        while categories[len(found)] is not None:
            found.append(categories[len(found)].decode())
        gdal.GDALClose(dataset)
    return names, rows, found


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_the_cog_holds_the_blocks(tmp_path: Path, dtype: str) -> None:
    values = truth(dtype)
    path = tmp_path / "Wälder.tif"
    files = write_raster(path, GRID, blocks(values), RasterFormat(dtype, 0, classes=CLASSES))
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(1), values)
        assert (dataset.nodata, dataset.dtypes, dataset.crs.to_epsg()) == (0, (dtype,), 32612)
        assert tuple(dataset.transform)[:6] == pytest.approx(GRID.transform)
        assert dataset.overviews(1)
        if dtype != "int32":
            assert dataset.colormap(1)[3] == (0, 150, 0, 255)
            assert dataset.colorinterp[0].name == "palette"
    assert files.counts == {0: int((values == 0).sum()), 3: int((values == 3).sum())}
    assert sorted(tmp_path.iterdir()) == sorted([path, *files.side_cars])


def with_a_hole() -> NDArray[Any]:
    values = truth()
    values[100:900, 200:777] = 255
    return values


def test_the_mask_inside_the_file_says_what_nodata_says(tmp_path: Path) -> None:
    values, path = with_a_hole(), tmp_path / "a.tif"
    write_raster(path, GRID, list(blocks(values))[:-1], RasterFormat("uint8", 255, classes=CLASSES))
    assert cog_validate(path, strict=True) == (True, [], [])
    values[1200:, 600:] = 255  # the block that was not written
    for level in (None, 0):
        with rasterio.open(path, **({} if level is None else {"overview_level": level})) as dataset:
            assert dataset.nodata == 255
            assert dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]
            here, mask = dataset.read(1), dataset.dataset_mask()
        # What counts holds a class, and on the raster itself all classes count.
        assert not (mask[here == 255] != 0).any()
        if level is None:
            np.testing.assert_array_equal(mask != 0, values != 255)
    assert not list(tmp_path.glob("*.msk"))


def test_a_full_raster_has_no_mask(tmp_path: Path) -> None:
    for name, at_once in (("a", list(blocks(truth()))), ("b", list(blocks(truth()))[:1])):
        form = RasterFormat("uint8", 255, classes=CLASSES)
        write_raster(tmp_path / f"{name}.tif", GRID, at_once, form)
        with rasterio.open(tmp_path / f"{name}.tif") as dataset:
            flags, mask = dataset.mask_flag_enums[0], dataset.dataset_mask()
        assert flags == ([MaskFlags.nodata] if name == "a" else [MaskFlags.per_dataset])
        assert (mask[:600, :600] == 255).all()
        assert (mask == 255).all() == (name == "a")


def test_a_mask_costs_little(tmp_path: Path) -> None:
    sizes = []
    for masked in (False, True):
        path = tmp_path / f"{masked}.tif"
        form = RasterFormat("uint8", 255, classes=CLASSES, masked=masked)
        write_raster(path, GRID, blocks(with_a_hole()), form)
        sizes.append(path.stat().st_size)
    assert sizes[1] < sizes[0] + 8000


def test_masks_of_values_follow_nan_and_those_that_are_given_go_first(tmp_path: Path) -> None:
    values = np.random.default_rng(1).random((2, 1300, 1100)).astype(np.float32)
    values[0, :40], values[1, 20:60] = math.nan, math.nan
    form = RasterFormat("float32", math.nan, count=2, overviews="average")
    write_raster(tmp_path / "a.tif", GRID, blocks(values), form)
    given = np.arange(1100) % 3 == np.arange(1300)[:, None] % 3
    whole = [(GRID.window, np.ones((1300, 1100), np.uint8), given)]
    write_raster(tmp_path / "b.tif", GRID, whole, RasterFormat("uint8", None, overviews="average"))
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "b.tif") as b:
        np.testing.assert_array_equal(a.dataset_mask() != 0, ~np.isnan(values).all(axis=0))
        np.testing.assert_array_equal(b.dataset_mask() != 0, given)


def test_gdal_reads_classes_and_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    files = write_raster(path, GRID, blocks(truth()), RasterFormat("uint8", None, classes=CLASSES))
    names, rows, categories = gdal_table(path)
    assert names == ["Value", "Class", "Red", "Green", "Blue", "Count"]
    assert rows == [
        ["0", "Background", "200", "200", "200", str(files.counts[0])],
        ["3", "Bäume & <Büsche>", "0", "150", "0", str(files.counts[3])],
    ]
    assert categories == ["Background", "", "", "Bäume & <Büsche>"]


def test_the_qgis_style_paints_by_class(tmp_path: Path) -> None:
    files = write_raster(
        tmp_path / "a.tif", GRID, blocks(truth()), RasterFormat("uint8", None, classes=CLASSES)
    )
    root = ElementTree.fromstring(files.side_cars[1].read_text(encoding="utf-8"))
    renderer = root.find("pipe/rasterrenderer")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    entries = [
        (entry.get("value"), entry.get("color"), entry.get("label"))
        for entry in renderer.iter("paletteEntry")
    ]
    assert entries == [("0", "#c8c8c8", "Background"), ("3", "#009600", "Bäume & <Büsche>")]


def test_what_no_block_covers_is_nodata(tmp_path: Path) -> None:
    block = np.full((600, 600), 3, np.uint8)
    path = tmp_path / "a.tif"
    files = write_raster(
        path, GRID, [(Window(600, 0, 600, 600), block)], RasterFormat("uint8", 255, classes=CLASSES)
    )
    with rasterio.open(path) as dataset:
        values = dataset.read(1)
    assert (values[600:1200, :600] == 3).all()
    assert (values == 3).sum() == 360_000 == files.counts[3]
    assert (values[values != 3] == 255).all()


def test_several_bands_of_values(tmp_path: Path) -> None:
    values = np.random.default_rng(1).random((2, 1300, 1100)).astype(np.float32)
    values[:, :5] = math.nan
    path = tmp_path / "a.tif"
    form = RasterFormat("float32", math.nan, count=2, band_names=("tree", "grass"), overviews="average")
    files = write_raster(path, GRID, blocks(values), form)
    assert (files.side_cars, files.counts) == ((), {})
    assert cog_validate(path, strict=True)[0]
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), values)
        assert dataset.descriptions == ("tree", "grass")
        assert math.isnan(dataset.nodata)


def test_overviews_of_classes_hold_only_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_raster(path, GRID, blocks(truth()), RasterFormat("uint8", None, classes=CLASSES, overviews="mode"))
    with rasterio.open(path, overview_level=0) as dataset:
        assert set(np.unique(dataset.read(1))) == {0, 3}


def test_the_same_blocks_in_other_sizes_give_the_same_file(tmp_path: Path) -> None:
    for size in (300, 1300):
        write_raster(
            tmp_path / f"{size}.tif", GRID, blocks(truth(), size), RasterFormat("uint8", 0, classes=CLASSES)
        )
    assert (tmp_path / "300.tif").read_bytes() == (tmp_path / "1300.tif").read_bytes()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[Window, NDArray[Any]]]:
        yield next(blocks(truth()))
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        write_raster(tmp_path / "a.tif", GRID, broken(), RasterFormat("uint8", 0, classes=CLASSES))
    with pytest.raises(RasterError, match="does not fit"):
        write_raster(tmp_path / "a.tif", GRID, blocks(truth("int16")), RasterFormat("uint8", 0))
    assert list(tmp_path.iterdir()) == []
