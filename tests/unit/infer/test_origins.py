"""An object's raster is the first one that the engine finds valid at its pixel, however it is looked up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imagery import Grid, GridReader, RasterInfo, grid_of_collection, inspect_raster
from tasks.imagery.collection import bounds_in
from tasks.infer import origins
from tasks.infer.origins import origins_of
from tasks.infer.planned import PlannedGrid

Write = Callable[..., RasterInfo]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """``write(name, shift, nodata, turn)``: 60 x 70 pixels of half a metre, a slanted collar around them."""
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')

    def made(name: str, shift: tuple[float, float], nodata: float | None = 0, turn: float = 0) -> RasterInfo:
        rows, cols = np.mgrid[:60, :70]
        pixels = np.where((cols - 8 > rows / 6) & (cols < 66) & (rows - 5 > cols / 8), 100, 0)
        pixels[30:34, 30:34] = 0
        place = Affine.translation(500_000 + shift[1], 4_900_000 - shift[0]) @ Affine.rotation(turn)
        profile = {"driver": "GTiff", "height": 60, "width": 70, "count": 2, "dtype": "uint8"}
        profile |= {"crs": "EPSG:32612", "nodata": nodata}
        path = tmp_path / f"{name}.tif"
        with rasterio.open(path, "w", **profile, transform=place @ Affine.scale(0.5, -0.5)) as dataset:
            dataset.write(np.stack([pixels, pixels]).astype(np.uint8))
        return inspect_raster(str(path))

    return made


def looked_up(infos: list[RasterInfo], grid: Grid, points: NDArray[Any]) -> list[str | None]:
    windows = [grid.window_of_bounds(bounds_in(info, grid.crs_wkt)) for info in infos]
    planned = PlannedGrid(
        name="mosaic",
        crs_wkt=grid.crs_wkt or "",
        transform=grid.transform,
        rows=grid.rows,
        cols=grid.cols,
        region=(0, 0, grid.rows, grid.cols),
        rasters=list(range(len(infos))),
        footprints=[(item.row, item.col, item.rows, item.cols) for item in windows],
    )
    plan: Any = SimpleNamespace(rasters=infos, extract_bands=[0, 1])
    return origins_of(plan, planned, points)


def as_read(infos: list[RasterInfo], grid: Grid) -> NDArray[np.object_]:
    """The first raster that is valid at each pixel; None where none is."""
    found = np.full((grid.rows, grid.cols), None, dtype=object)
    for info in reversed(infos):
        with GridReader([info], grid, (0, 1)) as reader:
            found[reader.read(grid.window).valid] = info.uri
    return found


@pytest.mark.parametrize("how", ["aligned", "another zone", "coarser", "turned", "without nodata"])
def test_each_pixel_comes_from_the_first_raster_that_is_valid_there(write: Write, how: str) -> None:
    shifts = [(0.0, 0.0), (4.0, 11.0), (13.0, 6.0)]
    nodata, turn = (None if how == "without nodata" else 0), (20 if how == "turned" else 0)
    infos = [write(f"scene{number}", shift, nodata, turn) for number, shift in enumerate(shifts)]
    zone = "EPSG:32613" if how in ("another zone", "turned", "without nodata") else None
    grid = grid_of_collection(infos, out_sr=zone, cell_size=1.3 if how == "coarser" else None)
    rows, cols = (axis.ravel() for axis in np.mgrid[: grid.rows, : grid.cols])
    found = np.array(looked_up(infos, grid, shapely.points(cols + 0.5, rows + 0.5)), dtype=object)
    wanted = as_read(infos, grid)
    there = wanted != None  # noqa: E711  (element by element)
    assert set(wanted[there]) == {info.uri for info in infos}
    assert (found.reshape(wanted.shape)[there] == wanted[there]).all()


def test_only_the_edges_of_what_is_valid_are_resampled(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [write("first", (0, 0)), write("second", (4, 11))]
    grid = grid_of_collection(infos, out_sr="EPSG:32613")
    opened = []

    class Counted(GridReader):
        def __init__(self, infos: Any, grid: Grid, bands: Any) -> None:
            opened.append(grid.crs_wkt)
            super().__init__(infos, grid, bands)

    monkeypatch.setattr(origins, "GridReader", Counted)
    first = as_read(infos, grid) == infos[0].uri
    rows, cols = np.nonzero(ndimage.binary_erosion(first, np.ones((15, 15))))
    assert len(rows) > 100
    points = np.asarray(shapely.points(cols + 0.5, rows + 0.5))
    assert set(looked_up(infos, grid, points)) == {infos[0].uri}
    assert opened == [None]


def test_beside_all_rasters_there_is_none_and_within_one_no_file_is_opened(
    write: Write, tmp_path: Path
) -> None:
    infos = [write("first", (0, 0)), write("second", (4, 11))]
    grid = grid_of_collection(infos)
    for path in tmp_path.glob("*.tif"):
        path.unlink()
    points = shapely.points(
        [(1.5, 1.5), (grid.cols - 1.5, grid.rows - 1.5), (1.5, grid.rows - 1.5), (-9, -9)]
    )
    assert looked_up(infos, grid, points) == [infos[0].uri, infos[1].uri, None, None]
    assert looked_up(infos, grid, points[:0]) == []
