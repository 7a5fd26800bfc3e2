"""What a run would take, before anything is spent: counts from the plan, times from a few tiles."""

from __future__ import annotations

import resource
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from pydantic import BaseModel, ConfigDict

from tasks.host import HostProcess
from tasks.infer.engine import STRIP_BYTES, WRITES_WAITING, run_shards
from tasks.infer.execution import settle_engine
from tasks.infer.part import opened_sources, operator_for, read_window
from tasks.infer.planned import Plan
from tasks.infer.scores import ChipHost
from tasks.infer.shards import Shard, ShardStore
from tasks.package import Package
from tasks.settings import settings
from tasks.store import ObjectStore, join

CALIBRATION_TILES = 4
CALIBRATION_SECONDS = 60.0
_LOOKS_AT_ONCE = 16
_STRIPS, _IN_FLIGHT = 5, 3


class Estimate(BaseModel):
    """What a run would take.

    Attributes:
        rasters, grids, parts: of the plan.
        shards, shards_found: in all, and those whose results are in the store.
        tiles: calls of the function that are left; those without imagery are not made, so at most.
        pixels: of the output.
        output_mb: of the output rasters, uncompressed; None for objects, whose number is not known.
        results_mb: what the shards' results would take in the store; None without calibration.
        memory_mb: of one worker, the function's process included; without calibration the engine alone.
        device: that the calibration ran on; empty without.
        seconds_starting: until the function is ready, per part; None without calibration.
        seconds_per_tile: None without calibration.
        seconds: of one worker for all that is left, at most; None without calibration.
        remark: why there is no calibration, or no time.
    """

    model_config = ConfigDict(frozen=True)

    rasters: int
    grids: int
    parts: int
    shards: int
    shards_found: int
    tiles: int
    pixels: int
    output_mb: float | None
    results_mb: float | None
    memory_mb: float
    device: str
    seconds_starting: float | None
    seconds_per_tile: float | None
    seconds: float | None
    remark: str


class Calibration(BaseModel):
    """A few tiles, timed on the machine that would compute them.

    Attributes:
        device: as the host says.
        seconds_starting: until the function was ready.
        tiles, seconds: that were counted, the first one only where it was the only one.
        bytes_per_tile: of results in the store.
        child_mb: most memory of the function's process.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    seconds_starting: float
    tiles: int
    seconds: float
    bytes_per_tile: float
    child_mb: float


def why_no_calibration(store: ObjectStore, plan: Plan) -> str:
    """Why no tile can be timed; empty where some can."""
    if not _left(store, plan):
        return "all shards are in the store"
    return "the time of crops depends on the features" if plan.crops is not None else ""


def estimate(store: ObjectStore, plan: Plan, calibration: Calibration | None, remark: str = "") -> Estimate:
    """Count what is left to do, and how long it takes by the times of a few tiles.

    Args:
        store: holds the shards that are done.
        plan: of the dry run.
        calibration: by the pool that would compute; None: nothing is said about time.
        remark: why there is none.

    Raises:
        StoreError: the store cannot be read.
    """
    left = _left(store, plan)
    tiles = sum(shard.tile_rows * shard.tile_cols for shard in left)
    timed = calibration if left else None
    if timed is not None and timed.tiles == 0:
        remark = "the tiles that were looked at hold no imagery"
    per_tile = timed.seconds / timed.tiles if timed is not None and timed.tiles else None
    starting = timed.seconds_starting if timed is not None else None
    seconds = None
    if per_tile is not None and starting is not None:
        keys = {shard.key for shard in left}
        parts = sum(any(shard.key in keys for shard in plan.shards[start:stop]) for start, stop in plan.parts)
        seconds = round(parts * starting + tiles * per_tile, 1)
    elif not left:
        seconds = 0.0
    return Estimate(
        rasters=len(plan.rasters),
        grids=len(plan.grids),
        parts=len(plan.parts),
        shards=len(plan.shards),
        shards_found=len(plan.shards) - len(left),
        tiles=tiles,
        pixels=plan.pixels,
        output_mb=_output_mb(plan),
        results_mb=None if timed is None or not timed.tiles else _mb(timed.bytes_per_tile * tiles),
        memory_mb=_engine_mb(plan) + (0.0 if timed is None else timed.child_mb),
        device="" if timed is None else timed.device,
        seconds_starting=starting,
        seconds_per_tile=None if per_tile is None else round(per_tile, 4),
        seconds=seconds,
        remark=remark,
    )


def _left(store: ObjectStore, plan: Plan) -> list[Shard]:
    sink = ShardStore(store, settings().root)
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        there = list(pool.map(sink.exists, plan.shards))
    return [shard for shard, done in zip(plan.shards, there, strict=True) if not done]


def save_calibration(store: ObjectStore, plan_uri: str, calibration: Calibration) -> None:
    """Put a calibration beside the plan that it is of."""
    data = calibration.model_dump_json().encode()
    store.put(_calibration_uri(plan_uri), data, content_type="application/json")


def load_calibration(store: ObjectStore, plan_uri: str) -> Calibration:
    """The calibration of a plan."""
    return Calibration.model_validate_json(store.get(_calibration_uri(plan_uri)))


def remove_calibration(store: ObjectStore, plan_uri: str) -> None:
    """Remove a dry run's plan and calibration."""
    for uri in (_calibration_uri(plan_uri), plan_uri):
        store.delete(uri)


def _calibration_uri(plan_uri: str) -> str:
    return join(plan_uri.rpartition("/")[0], "calibration.json")


@dataclass
class _Nowhere:
    """Takes results and keeps their size alone."""

    sizes: list[int] = field(default_factory=list)

    def exists(self, shard: Shard) -> bool:  # noqa: ARG002
        return False

    def put(self, shard: Shard, data: bytes) -> bool:  # noqa: ARG002
        self.sizes.append(len(data))
        return True


def calibrate(store: ObjectStore, plan: Plan, package: Package) -> Calibration:
    """Time a few tiles of what is left of a plan, on this machine's device; their results go nowhere.

    Args:
        package: the plan's package, unpacked on this machine.

    Raises:
        DeviceError: the plan is for a GPU, and this machine has none.
        HostError: the function fails on the imagery.
        RasterError, StoreError: imagery or store cannot be read.
    """
    left = _left(store, plan) or plan.shards
    chosen = np.linspace(0, len(left) - 1, CALIBRATION_TILES).round().astype(int).tolist()
    single = [_middle_tile(plan, left[number]) for number in chosen]
    started = time.monotonic()
    with (
        HostProcess(
            package, processor_type=plan.processor, arguments=plan.arguments, foreign=plan.package.foreign
        ) as host,
        opened_sources(plan, single) as sources,
    ):
        settle_engine(store, plan, host, partial(read_window, plan))
        ready = time.monotonic()
        giving = host if plan.scoring is None else ChipHost(host, plan.geometry, plan.scoring.layout)
        tiles, seconds, sink = 0, 0.0, _Nowhere()
        # The first tile warms up and is not counted, unless it takes the time of all.
        for number, shard in enumerate(single):
            begun = time.monotonic()
            counters = run_shards([shard], sources, giving, operator_for(plan), sink, geometry=plan.geometry)
            took = time.monotonic() - begun
            last = time.monotonic() - ready > CALIBRATION_SECONDS or number == len(single) - 1
            if counters.tiles and (number or last):
                tiles, seconds = tiles + counters.tiles, seconds + took
            if last:
                break
        device = host.device
    child_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return Calibration(
        device=device,
        seconds_starting=round(ready - started, 2),
        tiles=tiles,
        seconds=seconds,
        bytes_per_tile=sum(sink.sizes) / len(sink.sizes),
        child_mb=round(child_mb),
    )


def _middle_tile(plan: Plan, shard: Shard) -> Shard:
    """A shard of one tile in the middle of another shard."""
    row, col = shard.tile_row + shard.tile_rows // 2, shard.tile_col + shard.tile_cols // 2
    inner = plan.geometry.inner(row, col).intersection(shard.target)
    if inner.is_empty:  # a tile beyond the region's edge
        row, col = shard.target.row // plan.geometry.rows, shard.target.col // plan.geometry.cols
        inner = plan.geometry.inner(row, col).intersection(shard.target)
    window = (inner.row, inner.col, inner.rows, inner.cols)
    place = {"tile_row": row, "tile_col": col, "tile_rows": 1, "tile_cols": 1, "window": window}
    return shard.model_copy(update={**place, "key": f"calibration-{shard.key}"})


def _output_mb(plan: Plan) -> float | None:
    if plan.pixel_format is None:
        return None
    size = np.dtype(plan.pixel_format.dtype).itemsize * plan.pixel_format.bands
    kept = 0 if plan.scoring is None else plan.scoring.kept
    return _mb(plan.pixels * (size + (kept + (kept - 1) * size if kept else 0)))


def _engine_mb(plan: Plan) -> float:
    """Strips that were read, blocks in flight, and shards that wait to be written."""
    largest = max(shard.target.rows * shard.target.cols for shard in plan.shards)
    form = plan.pixel_format
    state = 1 if form is None else np.dtype(form.dtype).itemsize * (form.bands + form.masked)
    if plan.scoring is not None:
        state += 2 * plan.scoring.kept
    block = (plan.geometry.rows + 2 * plan.geometry.padding) * (
        plan.geometry.cols + 2 * plan.geometry.padding
    )
    scores = 0 if plan.scoring is None else 4 * len(plan.scoring.layout.values)
    bands = len(plan.extract_bands) + len(plan.after_bands)
    in_flight = _IN_FLIGHT * block * (bands * 4 + scores)
    return _mb(_STRIPS * STRIP_BYTES + in_flight + (WRITES_WAITING + 1) * largest * state)


def _mb(size: float) -> float:
    return round(size / 2**20, 1)
