"""Doubles for the engine: a host in this process, a sink in memory, and imagery written as files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from tasks.imagery import Grid, GridReader, RasterInfo, Window, grid_of_collection, inspect_raster
from tasks.infer.engine import Counters, Operator, Source, run_shards
from tasks.infer.shards import Footprint, Shard, TileGeometry, plan_shards

Function = Callable[[NDArray[Any], NDArray[Any]], Any]


@dataclass
class FakeHost:
    """Calls ``function(pixels, mask)`` for each block, when its result is asked for, not before."""

    function: Function
    slots: int = 3
    calls: int = 0
    most_in_flight: int = 0
    waiting: deque[tuple[int, NDArray[Any], NDArray[Any]]] = field(default_factory=deque)

    def submit(
        self,
        operation: str,
        pixels: NDArray[Any],
        mask: NDArray[Any],
        *,
        tlc: tuple[float, float],
        shape: tuple[int, int],
        props: Mapping[str, Any],
    ) -> int:
        assert operation in ("updatePixels", "vectorize")
        assert len(tlc) == len(shape) == 2
        assert "extent" in props
        assert len(self.waiting) < self.slots, "the ring is full: the real host would block for ever"
        self.calls += 1
        self.waiting.append((self.calls, pixels.copy(), mask.copy()))
        self.most_in_flight = max(self.most_in_flight, len(self.waiting))
        return self.calls

    def result(self, ticket: int) -> Any:
        number, pixels, mask = self.waiting.popleft()
        assert number == ticket, "results are asked for in order"
        return self.function(pixels, mask)


@dataclass
class MemorySink:
    """Results by shard key; counts what was put twice."""

    results: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)

    def exists(self, shard: Shard) -> bool:
        return shard.key in self.results

    def put(self, shard: Shard, data: bytes) -> bool:
        self.puts.append(shard.key)
        return self.results.setdefault(shard.key, data) is data


@dataclass
class Scene:
    """Imagery on disk, on one grid, and the engine over it."""

    infos: list[RasterInfo]
    grid: Grid

    def shards(
        self, geometry: TileGeometry, tiles: tuple[int, int], region: Window | None = None
    ) -> list[Shard]:
        footprints = [
            Footprint(self.grid.window_of_bounds(info.bounds), info.identity) for info in self.infos
        ]
        return plan_shards(
            grid=0,
            region=region or self.grid.window,
            geometry=geometry,
            tiles=tiles,
            footprints=footprints,
            base_key="test",
        )

    def run(
        self,
        shards: Sequence[Shard],
        host: FakeHost,
        operator: Operator[Any],
        sink: MemorySink,
        geometry: TileGeometry,
        **options: Any,
    ) -> Counters:
        with GridReader(self.infos, self.grid) as reader:
            source = Source(
                self.grid, reader, pixel_bytes=options.pop("pixel_bytes", 4), remote=False, props={}
            )
            return run_shards(shards, {0: source}, host, operator, sink, geometry=geometry, **options)


@pytest.fixture
def make_scene(tmp_path: Path) -> Callable[..., Scene]:
    """``make_scene(array, cuts=1, nodata=None)``: the array as one file, or cut into cuts x cuts files."""
    made = 0

    def make(array: NDArray[Any], cuts: int = 1, nodata: float | None = None) -> Scene:
        nonlocal made
        bands, rows, cols = array.shape
        uris = []
        for row in range(cuts):
            for col in range(cuts):
                top, bottom = rows * row // cuts, rows * (row + 1) // cuts
                left, right = cols * col // cuts, cols * (col + 1) // cuts
                made += 1
                path = tmp_path / f"scene_{made}.tif"
                profile = {
                    "driver": "GTiff",
                    "height": bottom - top,
                    "width": right - left,
                    "count": bands,
                    "dtype": array.dtype.name,
                    "crs": "EPSG:32612",
                    "transform": Affine(0.5, 0, 500000 + left * 0.5, 0, -0.5, 4_900_000 - top * 0.5),
                    "nodata": nodata,
                }
                with rasterio.open(path, "w", **profile) as dataset:
                    dataset.write(array[:, top:bottom, left:right])
                uris.append(str(path))
        infos = [inspect_raster(uri) for uri in uris]
        return Scene(infos, grid_of_collection(infos))

    return make


@pytest.fixture
def fake_host() -> type[FakeHost]:
    return FakeHost


@pytest.fixture
def memory_sink() -> type[MemorySink]:
    return MemorySink


@pytest.fixture
def noise() -> NDArray[np.uint8]:
    """Smooth noise with structure at several scales, (2, 210, 170)."""
    from scipy import ndimage

    random = np.random.default_rng(7)
    rough = random.random((2, 210, 170))
    smooth = ndimage.gaussian_filter(rough, (0, 4, 4)) + 0.1 * rough
    smooth -= smooth.min()
    scaled: NDArray[np.uint8] = (1 + 254 * smooth / smooth.max()).astype(np.uint8)
    return scaled
