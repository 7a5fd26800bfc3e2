"""Rasters of raw images on the map. Oracle: GDAL's warper on the whole array."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.rpc import RPC
from rasterio.vrt import WarpedVRT

from tasks.errors import BadInputError
from tasks.imagery import Grid, RasterInfo, inspect_raster
from tasks.imagery.image_space import in_pixel_space
from tasks.infer import image_rasters
from tasks.infer.image_rasters import map_grid, mapped_blocks
from tasks.infer.outputs_raster import RasterFormat, write_raster
from tests.unit.imagery.test_image_space import rpcs

ROWS, COLS, NODATA = 150, 230, 255
UTM = "EPSG:32612"
CORNER = Affine.translation(500_000, 4_900_000)
LIES = {
    "north-up": CORNER @ Affine.scale(0.5, -0.5),
    "south-up": CORNER @ Affine.scale(0.5, 0.5),
    "mirrored": CORNER @ Affine.scale(-0.5, -0.5),
    "quarter": CORNER @ Affine.rotation(90) @ Affine.scale(0.5, -0.5),
    "rotated": CORNER @ Affine.rotation(31) @ Affine.scale(0.5, -0.4),
    "sheared": CORNER @ Affine(0.5, 0.13, 0, -0.07, -0.5, 0),
}

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def values() -> NDArray[np.uint8]:
    """Two bands of values below 250, with a hole."""
    made = np.random.default_rng(3).integers(0, 250, (2, ROWS, COLS)).astype(np.uint8)
    made[:, 40:60, 70:120] = NODATA
    return made


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., RasterInfo]:
    """``image(**place)``: a raw image of the size of the values."""

    def image(rows: int = ROWS, cols: int = COLS, **place: Any) -> RasterInfo:
        path = tmp_path / "raw.tif"
        profile = {"driver": "GTiff", "height": rows, "width": cols, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", **profile) as dataset:
            for key, value in place.items():
                setattr(dataset, key, value)
        return inspect_raster(str(path))

    return image


def computed(tmp_path: Path, info: RasterInfo, values: NDArray[Any]) -> Path:
    """The raster in image space, as it is computed."""
    grid = Grid(None, in_pixel_space(info).transform, info.height, info.width)
    form = RasterFormat(str(values.dtype), NODATA, count=len(values), overviews="average")
    return write_raster(tmp_path / "computed.tif", grid, [(grid.window, values)], form).cog


def on_map(source: Path, info: RasterInfo, out_sr: int | None = None) -> tuple[Grid, NDArray[Any]]:
    place = map_grid(info, out_sr)
    assert place is not None
    grid = Grid(place.crs_wkt, place.transform, place.rows, place.cols)
    found = np.full((2, *grid.shape), NODATA, np.uint8)
    for window, block, valid in mapped_blocks(source, info, grid, NODATA):
        found[:, *window.slices_in(grid.window)] = block
        np.testing.assert_array_equal(valid, (block != NODATA).any(axis=0))
    return grid, found


def warped(values: NDArray[Any], grid: Grid, lies: Affine) -> NDArray[Any]:
    """What GDAL makes of an image that lies in UTM."""
    bands, rows, cols = values.shape
    profile = {"driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": values.dtype}
    place = {"crs": CRS.from_wkt(grid.crs_wkt), "transform": Affine(*grid.transform)}
    with MemoryFile() as file:
        with file.open(**profile, crs=UTM, transform=lies, nodata=NODATA) as dataset:
            dataset.write(values)
        with (
            file.open() as dataset,
            WarpedVRT(dataset, **place, width=grid.cols, height=grid.rows, tolerance=1e-30) as view,
        ):
            found: NDArray[Any] = view.read()
            return found


def reprojected(values: NDArray[Any], grid: Grid, **source: Any) -> NDArray[Any]:
    """The same of any image, with positions that are true to an eighth of a pixel."""
    expected = np.full((len(values), *grid.shape), NODATA, np.uint8)
    target = {"dst_transform": Affine(*grid.transform), "dst_crs": CRS.from_wkt(grid.crs_wkt)}
    rasterio.warp.reproject(values, expected, **source, **target, src_nodata=NODATA, dst_nodata=NODATA)
    return expected


@pytest.mark.parametrize("name", LIES)
def test_affines_are_gdals(tmp_path: Path, image: Any, values: NDArray[np.uint8], name: str) -> None:
    info = image(crs=UTM, transform=LIES[name])
    grid, found = on_map(computed(tmp_path, info, values), info)
    np.testing.assert_array_equal(found, warped(values, grid, LIES[name]))
    # Nothing of the image is beside the grid, and its pixels keep their size.
    filled = (found != NODATA).any(axis=0).sum() * np.prod(grid.cell_size)
    assert filled == pytest.approx((ROWS * COLS - 1000) * abs(LIES[name].determinant), rel=0.01)
    if name == "north-up":
        assert grid == Grid(info.crs_wkt, info.transform, ROWS, COLS)
    if name in ("north-up", "south-up", "mirrored", "quarter"):
        turned = {"north-up": values, "south-up": values[:, ::-1], "mirrored": values[:, :, ::-1]}
        np.testing.assert_array_equal(found, turned.get(name, np.rot90(values, axes=(1, 2))))


def test_another_reference_system(tmp_path: Path, image: Any, values: NDArray[np.uint8]) -> None:
    lies = CORNER @ Affine.rotation(-20) @ Affine.scale(300, -300)  # so large that lines are curved
    info = image(crs=UTM, transform=lies)
    grid, found = on_map(computed(tmp_path, info, values), info, 4326)
    assert CRS.from_wkt(grid.crs_wkt).to_epsg() == 4326
    expected = warped(values, grid, lies)
    assert (found != expected).mean() < 0.002
    assert (found != NODATA).mean() > 0.3


def points() -> list[GroundControlPoint]:
    lies = LIES["rotated"]
    places = [(row, col) for row in (0, ROWS / 2, ROWS) for col in (0, COLS / 3, COLS)]
    return [GroundControlPoint(row, col, *(lies @ (col, row))) for row, col in places]


def test_control_points_are_gdals(tmp_path: Path, image: Any, values: NDArray[np.uint8]) -> None:
    info = image(gcps=(points(), CRS.from_user_input(UTM)))
    grid, found = on_map(computed(tmp_path, info, values), info)
    assert grid.cell_size == pytest.approx(
        (
            math.hypot(0.5 * math.cos(math.radians(31)), 0.4 * math.sin(math.radians(31))),
            math.hypot(0.5 * math.sin(math.radians(31)), 0.4 * math.cos(math.radians(31))),
        ),
        rel=1e-6,
    )
    expected = reprojected(values, grid, gcps=points(), src_crs=UTM)
    assert (found != expected).mean() < 0.001
    assert (found != NODATA).mean() > 0.3


def test_rpcs_are_gdals(tmp_path: Path, image: Any) -> None:
    made: RPC = rpcs(lean=(0.1, -0.2), bend=0.01)
    info = image(600, 800, rpcs=made)
    values = np.random.default_rng(3).integers(0, 250, (2, 600, 800)).astype(np.uint8)
    grid, found = on_map(computed(tmp_path, info, values), info)
    assert CRS.from_wkt(grid.crs_wkt).to_epsg() == 4326
    expected = reprojected(values, grid, rpcs=made, src_crs="EPSG:4326", RPC_HEIGHT=made.height_off)
    assert (found != expected).mean() < 0.05
    assert (found != NODATA).mean() > 0.7


def test_spread_out_blocks_are_read_in_parts(
    tmp_path: Path, image: Any, values: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = image(crs=UTM, transform=LIES["rotated"])
    source = computed(tmp_path, info, values)
    _, at_once = on_map(source, info)
    monkeypatch.setattr(image_rasters, "_BLOCK", 64)
    monkeypatch.setattr(image_rasters, "_MOST_PIXELS", 900)
    _, in_parts = on_map(source, info)
    np.testing.assert_array_equal(in_parts, at_once)


def test_places_are_interpolated_only_where_that_is_true() -> None:
    asked = []

    def bent(cols: Any, rows: Any, *, by: float) -> Any:
        asked.append(cols.size)
        return cols + by * rows**2, rows - by * cols

    window = Grid(UTM, (1, 0, 0, 0, -1, 0), 200, 100).window
    for by, exactly in ((1e-5, False), (1e-2, True)):
        asked.clear()
        found = image_rasters._interpolated(window, lambda c, r, by=by: bent(c, r, by=by))
        truth = bent(*np.meshgrid(np.arange(100) + 0.5, np.arange(200) + 0.5), by=by)
        assert (20_000 in asked[:-1]) == exactly
        for one, other in zip(found, truth, strict=True):
            assert one.shape == (200, 100)
            np.testing.assert_allclose(one, other, atol=1e-9 if exactly else 1 / 32)


def test_an_image_that_lies_nowhere_stays_where_it_is(image: Any) -> None:
    info = image()
    assert map_grid(info, None) is None
    with pytest.raises(BadInputError, match=r"does not say where it lies.*Leave out_sr out"):
        map_grid(info, 4326)


def test_an_image_across_the_antimeridian(tmp_path: Path, image: Any, values: NDArray[np.uint8]) -> None:
    lies = Affine.translation(180 - 100e-5, -17) @ Affine.rotation(20) @ Affine.scale(1e-5, -1e-5)
    info = image(crs="EPSG:4326", transform=lies)
    grid, found = on_map(computed(tmp_path, info, values), info)
    assert grid.bounds[0] < 180 < grid.bounds[2]
    assert grid.cols < 400
    assert (found != NODATA).mean() > 0.4
    utm = rasterio.warp.transform("EPSG:4326", "EPSG:32701", [180], [-17])
    lies = Affine.translation(utm[0][0] - 40, utm[1][0]) @ Affine.rotation(20) @ Affine.scale(0.5, -0.5)
    with pytest.raises(BadInputError, match="antimeridian"):
        map_grid(image(crs="EPSG:32701", transform=lies), 4326)
