"""The grid that chips are cut on; pixels are checked through the reader."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray

from tasks.errors import BadInputError
from tasks.imagery import GridReader, RasterInfo, export_grid, grid_of_raster, inspect_raster
from tests.unit.imagery.conftest import Writer

PIXELS: NDArray[np.uint8] = np.random.default_rng(5).integers(1, 256, (1, 40, 60), dtype=np.uint8)


def info(write: Writer, name: str, values: NDArray[np.generic] = PIXELS, **how: object) -> RasterInfo:
    return inspect_raster(write(name, values, **how))


@pytest.mark.parametrize("crs", ["EPSG:32612", "EPSG:4326"])
def test_one_north_up_raster_keeps_its_grid_to_the_bit(write: Writer, crs: str) -> None:
    one = info(write, "1.tif", crs=crs, transform=Affine(0.1, 0, 28.3, 0, -0.3, 49.7))
    assert export_grid([one]) == grid_of_raster(one)


def test_a_raster_of_one_pixel(write: Writer) -> None:
    one = info(write, "1.tif", PIXELS[:, :1, :1], corner=(3.0, 7.0), cell=0.1)
    other = info(write, "2.tif", PIXELS[:, :1, :1], crs="EPSG:4326", corner=(-115.0, 45.0), cell=0.1)
    assert export_grid([one]) == grid_of_raster(one)
    mixed = export_grid([other, one])
    assert mixed.crs_wkt == other.crs_wkt


def test_the_first_raster_gives_crs_and_origin_and_the_finest_one_the_cells(write: Writer) -> None:
    coarse = info(write, "1.tif", corner=(500_000.3, 5_000_000.7), cell=1.0)
    fine = info(write, "2.tif", corner=(500_030.0, 5_000_000.0), cell=0.3)
    grid = export_grid([coarse, fine])
    assert grid.cell_size == (0.3, 0.3)
    for corner, edge in ((500_000.3, grid.bounds[0]), (5_000_000.7, grid.bounds[3])):
        assert (edge - corner) / 0.3 == pytest.approx(round((edge - corner) / 0.3))
    assert export_grid([fine, coarse]).offset_of(fine.transform, fine.height, fine.width) is not None


@pytest.mark.parametrize(("cell", "kept"), [(0.48, 0.5), (0.47, 0.47), (0.6, 0.5)])
def test_a_hair_finer_does_not_decide(write: Writer, cell: float, kept: float) -> None:
    infos = [info(write, "1.tif", cell=0.5), info(write, "2.tif", cell=cell)]
    assert export_grid(infos).cell_size == (kept, kept)


def test_the_first_rasters_pixels_are_untouched_beside_another_zone(write: Writer) -> None:
    first = info(write, "1.tif", corner=(739_000.0, 5_000_000.0))
    corner = rasterio.warp.transform("EPSG:32612", "EPSG:32613", [739_010.0], [4_999_995.0])
    other = info(write, "2.tif", 255 - PIXELS, crs="EPSG:32613", corner=(corner[0][0], corner[1][0]))
    grid = export_grid([first, other])
    assert grid.cell_size == (0.5, 0.5)
    window = grid.window_of_bounds(first.bounds)
    with GridReader([first, other], grid) as reader:
        np.testing.assert_array_equal(reader.read(window).values, PIXELS)
        assert reader.read(grid.window).valid.sum() > PIXELS.size * 1.1


def test_mixed_reference_systems_and_dtypes_cover_all(write: Writer) -> None:
    first = info(write, "1.tif", crs="EPSG:4326", transform=Affine(1e-5, 0, -115, 0, -1e-5, 45))
    other = info(write, "2.tif", PIXELS.astype(np.float32), cell=0.25)
    grid = export_grid([first, other])
    assert grid.crs_wkt == first.crs_wkt
    assert grid.cell_size[0] < 1e-5
    assert (grid.bounds[0] + 115) / grid.cell_size[0] == pytest.approx(
        round((grid.bounds[0] + 115) / grid.cell_size[0])
    )
    west, south, east, north = rasterio.warp.transform_bounds(other.crs_wkt, "EPSG:4326", *other.bounds)
    tolerance = grid.cell_size[0] / 1000
    assert grid.bounds[0] <= west + tolerance
    assert grid.bounds[1] <= south + tolerance
    assert grid.bounds[2] >= east - tolerance
    assert grid.bounds[3] >= north - tolerance
    with GridReader([first, other], grid) as reader:
        assert reader.dtype == np.float32


@pytest.mark.parametrize(
    ("transform", "upright"),
    [
        (Affine(0.5, 0, 5e5, 0, 0.5, 5e6), lambda x: x[:, ::-1]),  # south-up
        (Affine(-0.5, 0, 5e5, 0, -0.5, 5e6), lambda x: x[:, :, ::-1]),
        (Affine(0, 0.5, 5e5, 0.5, 0, 5e6), lambda x: np.rot90(x, 1, (1, 2))),  # columns run north
        (Affine(0, 0.25, 5e5, -0.5, 0, 5e6), lambda x: np.swapaxes(x, 1, 2)),  # oblong pixels, columns south
    ],
)
def test_other_orientations_are_turned_without_changing_a_pixel(
    write: Writer, transform: Affine, upright: object
) -> None:
    one = info(write, "1.tif", transform=transform)
    expected = upright(PIXELS)  # type: ignore[operator]
    grid = export_grid([one])
    assert grid.shape == expected.shape[1:]
    assert grid.bounds == pytest.approx(one.bounds)
    with GridReader([one], grid) as reader:
        pixels = reader.read(grid.window)
    assert pixels.valid.all()
    np.testing.assert_array_equal(pixels.values, expected)


def test_a_rotated_raster_keeps_its_cell_size(write: Writer) -> None:
    transform = Affine.translation(5e5, 5e6) * Affine.rotation(30) * Affine.scale(0.5, -0.5)
    one = info(write, "1.tif", transform=transform)
    grid = export_grid([one])
    assert grid.cell_size == pytest.approx((0.5, 0.5))
    assert grid.transform[2] == pytest.approx(one.bounds[0])
    assert grid.transform[5] == pytest.approx(one.bounds[3])
    with GridReader([one], grid) as reader:
        valid = reader.read(grid.window).valid
    assert valid.sum() == pytest.approx(PIXELS.size, rel=0.02)


@pytest.mark.parametrize("crs", ["EPSG:25832", "EPSG:2056", "EPSG:3035"])
def test_a_raster_of_the_whole_world_lies_under_every_extent(write: Writer, crs: str) -> None:
    half = 20_037_508.342789244
    cell = half / 512
    values = np.repeat(np.arange(1024)[:, None] // 4 + 1, 1024, 1)[None].astype(np.uint16)
    world = info(write, "w.tif", values, crs="EPSG:3857", transform=Affine(cell, 0, -half, 0, -cell, half))
    left, bottom, right, top = rasterio.warp.transform_bounds("EPSG:4326", crs, 1.0, 43.0, 17.0, 57.0)
    first = info(write, "1.tif", PIXELS * 0, crs=crs, corner=(right, top), cell=5000.0, nodata=0)
    grid = export_grid([first, world], extent=(left, bottom, right + 1e5, top))
    assert grid.bounds[0] == pytest.approx(left, abs=5000)
    assert grid.bounds[1] == pytest.approx(bottom, abs=5000)
    with GridReader([first, world], grid) as reader:
        pixels = reader.read(grid.window)
    assert pixels.valid.all()
    # Against points of the grid, one by one.
    for row, col in ((0, 0), (grid.rows // 2, grid.cols // 3), (grid.rows - 1, grid.cols - 1)):
        x, y = grid.to_map(col + 0.5, row + 0.5)
        _, (y_world,) = rasterio.warp.transform(crs, "EPSG:3857", [x], [y])
        assert pixels.values[0, row, col] == pytest.approx((half - y_world) / cell // 4 + 1, abs=1)


def test_extent_and_cell_size(write: Writer) -> None:
    one = info(write, "1.tif", cell=0.5)  # 30 x 20 m from (500000, 5000000)
    grid = export_grid([one], extent=(500_001.2, 4_999_900.0, 500_003.4, 4_999_998.9))
    assert grid.bounds == pytest.approx((500_001.0, 4_999_980.0, 500_003.5, 4_999_999.0))
    assert export_grid([one], cell_size=0.75).cell_size == (0.75, 0.75)
    assert export_grid([one], cell_size=0.75, cell_size_y=1.5).cell_size == (0.75, 1.5)
    with pytest.raises(BadInputError, match=r"does not touch the imagery, which covers.*units"):
        export_grid([one], extent=(0, 0, 1, 1))
    with pytest.raises(BadInputError, match="is empty"):
        export_grid([one], extent=(5, 5, 1, 1))
    with pytest.raises(BadInputError, match="without its width"):
        export_grid([one], cell_size_y=1.0)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(BadInputError, match="cell size"):
            export_grid([one], cell_size=wrong)
    with pytest.raises(BadInputError, match="no raster"):
        export_grid([])


class TestPixelSpace:
    def test_the_raw_image_with_or_without_crs(self, write: Writer) -> None:
        turned = info(write, "1.tif", transform=Affine(0.5, 0.1, 5e5, 0.1, -0.5, 5e6))
        bare = info(write, "2.png", crs=None, transform=Affine.identity(), driver="PNG")
        for one in (turned, bare):
            grid = export_grid([one], pixel_space=True)
            assert (grid.crs_wkt, grid.transform, grid.shape) == (None, (1, 0, 0, 0, -1, 0), (40, 60))
        with GridReader([bare], grid) as reader:
            np.testing.assert_array_equal(reader.read(grid.window).values, PIXELS)
        part = export_grid([bare], pixel_space=True, extent=(10, -15.5, 20, 3))
        assert (part.transform[2], part.transform[5], part.shape) == (10, 0, (16, 10))

    def test_no_crs_is_refused_in_map_space(self, write: Writer) -> None:
        bare = info(write, "2.png", crs=None, transform=Affine.identity(), driver="PNG")
        with pytest.raises(BadInputError, match=r"2\.png has no coordinate reference system.*pixel space"):
            export_grid([info(write, "1.tif"), bare])

    def test_several_rasters_and_cell_sizes_are_refused(self, write: Writer) -> None:
        bare = info(write, "2.png", crs=None, transform=Affine.identity(), driver="PNG")
        with pytest.raises(BadInputError, match="2 rasters cannot share one pixel space"):
            export_grid([bare, bare], pixel_space=True)
        with pytest.raises(BadInputError, match="a cell is a pixel"):
            export_grid([bare], pixel_space=True, cell_size=2.0)
        assert export_grid([bare], pixel_space=True, cell_size=1.0).shape == (40, 60)
