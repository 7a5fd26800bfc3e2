"""Order of reading and room for decoded blocks: few blocks are read twice, however wide the raster is."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.env import get_gdal_config

from tasks.imagery import GridReader, RasterInfo, Window, grid_of_raster
from tasks.imagery.raster import CACHE_BYTES, raster_environment
from tasks.infer.reading import LEAST_CACHE_BYTES, fit_cache, in_bands
from tasks.infer.shards import Footprint, Shard, TileGeometry, plan_shards, tiles_per_shard

GEOMETRY = TileGeometry(rows=896, cols=896, padding=64)
BLOCK = 512
CRS_WKT = rasterio.crs.CRS.from_epsg(32612).to_wkt()


def raster(rows: int, cols: int, **more: Any) -> RasterInfo:
    return RasterInfo.model_validate(
        {
            "uri": "/nowhere.tif",
            "width": cols,
            "height": rows,
            "band_count": 3,
            "dtype": "uint8",
            "nodata": None,
            "crs_wkt": CRS_WKT,
            "transform": (1, 0, 500_000, 0, -1, 5_000_000),
            "block_shape": (BLOCK, BLOCK),
            "band_names": ("a", "b", "c"),
            "colorinterp": ("red", "green", "blue"),
            "identity": "i",
            **more,
        }
    )


def shards_of(info: RasterInfo, geometry: TileGeometry = GEOMETRY) -> list[Shard]:
    whole = Window(0, 0, info.height, info.width)
    tiles = tiles_per_shard(geometry.rows, BLOCK, 2048)
    return plan_shards(
        grid=0,
        region=whole,
        geometry=geometry,
        tiles=(tiles, tiles),
        footprints=[Footprint(whole, info.identity)],
        base_key="k",
    )


def decoded(shards: Sequence[Shard], info: RasterInfo, cache_bytes: int) -> float:
    """Blocks decoded over blocks there are, with a cache that drops what was not used for longest."""
    room = cache_bytes // (BLOCK * BLOCK * info.band_count)
    kept: OrderedDict[tuple[int, int], None] = OrderedDict()
    count = 0
    rows, cols = -(-info.height // BLOCK), -(-info.width // BLOCK)
    for shard in shards:
        reach = shard.target.expand(GEOMETRY.padding)
        for row in range(max(0, reach.row // BLOCK), min(rows, (reach.row_stop - 1) // BLOCK + 1)):
            for col in range(max(0, reach.col // BLOCK), min(cols, (reach.col_stop - 1) // BLOCK + 1)):
                count += (row, col) not in kept
                kept[row, col] = None
                kept.move_to_end((row, col))
                if len(kept) > room:
                    kept.popitem(last=False)
    return count / (rows * cols)


@pytest.mark.parametrize("size", [8192, 40000])
@pytest.mark.parametrize(("step", "most_mib"), [(896, 90), (768, 100)])  # shards of 3.5 and of 3 blocks
def test_few_blocks_are_decoded_twice_at_the_same_memory(size: int, step: int, most_mib: int) -> None:
    info, geometry = raster(size, size), TileGeometry(rows=step, cols=step, padding=64)
    shards = shards_of(info, geometry)
    reader = GridReader([info], grid_of_raster(info))
    band = fit_cache([reader], shards, geometry)
    assert LEAST_CACHE_BYTES < reader.cache_bytes < most_mib * 2**20
    ordered = in_bands(shards, {0: band})
    assert sorted(ordered, key=lambda shard: (shard.row, shard.col)) == shards
    assert decoded(ordered, info, reader.cache_bytes) <= 1.1


def test_rows_of_a_wide_raster_would_not_do() -> None:
    info = raster(8192, 40000)
    shards = shards_of(info)
    assert decoded(in_bands(shards, {0: 0}), info, 80 * 2**20) > 1.2


def test_deep_pixels_get_narrower_bands_and_no_more_than_there_may_be() -> None:
    info = raster(30000, 30000, band_count=8, dtype="uint16")
    reader = GridReader([info], grid_of_raster(info), (0, 1, 2))
    assert fit_cache([reader], shards_of(info), GEOMETRY) == 2
    assert CACHE_BYTES / 2 < reader.cache_bytes <= CACHE_BYTES
    before, after = (GridReader([info], grid_of_raster(info)) for _ in range(2))
    assert fit_cache([before, after], shards_of(info), GEOMETRY) == 1
    assert before.cache_bytes == after.cache_bytes <= CACHE_BYTES


@pytest.mark.parametrize(
    "more",
    [
        {"block_shape": (16, 20000)},  # stripes
        {"block_shape": (128, 128)},  # a VRT
        {"transform": (1, 0, 500_000.4, 0, -1, 5_000_000)},  # resampled
    ],
)
def test_what_a_window_does_not_bound_keeps_its_cache_and_its_order(more: dict[str, Any]) -> None:
    plain, other = raster(20000, 20000), raster(20000, 20000, **more)
    reader = GridReader([plain, other], grid_of_raster(plain))
    shards = shards_of(plain)
    random.Random(1).shuffle(shards)
    band = fit_cache([reader], shards, GEOMETRY)
    assert (band, reader.cache_bytes) == (0, CACHE_BYTES)
    assert in_bands(shards, {0: band}) == shards


def test_the_cache_is_no_larger_while_a_reader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_scene: Callable[[Path], RasterInfo]
) -> None:
    info = write_scene(tmp_path / "a.tif")
    reader = GridReader([info], grid_of_raster(info))
    reader.cache_bytes = 12 * 2**20
    seen = []
    inside = reader._borrowed

    def noted(index: int) -> Any:
        seen.append(get_gdal_config("GDAL_CACHEMAX"))
        return inside(index)

    monkeypatch.setattr(reader, "_borrowed", noted)
    with reader:
        reader.read(Window(0, 0, 10, 10))
    assert seen == [12 * 2**20]
    with raster_environment(info.uri):
        assert get_gdal_config("GDAL_CACHEMAX") == CACHE_BYTES


@pytest.fixture
def write_scene() -> Callable[[Path], RasterInfo]:
    """A small raster."""
    from tasks.imagery import inspect_raster

    def write(path: Path) -> RasterInfo:
        profile = {"driver": "GTiff", "count": 1, "height": 20, "width": 30, "dtype": "uint8"}
        placed = {"crs": "EPSG:32612", "transform": Affine(1, 0, 0, 0, -1, 20)}
        with rasterio.open(path, "w", **profile, **placed) as dataset:
            dataset.write(np.ones((1, 20, 30), np.uint8))
        return inspect_raster(str(path))

    return write
