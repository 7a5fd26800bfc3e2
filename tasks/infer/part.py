"""One part of a plan: open the package and the imagery, run the engine over the part's shards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from rasterio.crs import CRS

from tasks.errors import NotFoundError, PreconditionFailedError, StoreError
from tasks.host import FunctionFailure
from tasks.imagery import GridReader, Pixels, RasterInfo, Window
from tasks.infer.batches import (
    found_shards,
    is_out_of_memory,
    note_batch,
    noted_batches,
    smaller_batch,
    started,
)
from tasks.infer.blending import ScoreOperator
from tasks.infer.change import PairReader
from tasks.infer.crops import CropOperator, ImagesReader
from tasks.infer.engine import Counters, Cutter, Operator, Progress, Source, TileCutter, run_shards
from tasks.infer.execution import settle_engine, software_of
from tasks.infer.fit import RescaledReader
from tasks.infer.image_grids import read_as
from tasks.infer.mask import TABLE as MASK_TABLE
from tasks.infer.mask import GridMask, MaskPolygons
from tasks.infer.operators import ObjectOperator, PixelOperator
from tasks.infer.pictures import PictureOperator
from tasks.infer.planned import Plan, PlannedGrid
from tasks.infer.reading import fit_cache
from tasks.infer.shards import Shard, ShardStore
from tasks.package import Package
from tasks.settings import settings
from tasks.store import ObjectStore, is_local, join

# Threads that read for a GPU: a compressed raster is decoded at some hundred MB/s by each.
MOST_READERS = 6


class PartReport(BaseModel):
    """What computing a part took; goes into the provenance of the result.

    Attributes:
        device: the device that really ran, as the host says.
        containment: what confined the inference function.
        execution: which engine computed in which precision, and why not the one that was asked for
            (``tasks.infer.execution``); empty for functions without a choice.
        software: versions of what computed, by name.
        batch: ``planned`` and ``used`` tiles per call of the network, and the ``reasons`` for a smaller one
            (``tasks.infer.batches``).
        counters: see ``tasks.infer.engine.Counters``; ``engine_fallbacks`` is 1 where another engine than
            the one asked for computed.
        seconds_starting: until the function was ready.
        seconds: of the engine.
    """

    model_config = ConfigDict(frozen=True)

    part: int
    device: str
    containment: dict[str, Any]
    execution: dict[str, Any] = {}
    software: dict[str, str] = {}
    batch: dict[str, Any] = {}
    counters: dict[str, float]
    seconds_starting: float
    seconds: float


def save_plan(store: ObjectStore, plan: Plan) -> str:
    """Put the plan into its folder, which stays invisible without a manifest; its URI.

    The same work cut into another number of parts has the same folder and a plan of its own: a run that is
    under way keeps the parts it was started with. Where the parts were chosen by the workers that were there,
    the first choice stays, so that a run that is started again goes on with the parts that are under way. A
    plan of the same work keeps the time of the first one, so that whoever puts the outputs together writes
    the same bytes.
    """
    uri = join(plan.folder, f"plan-{plan.cut_name}.json")
    earlier, is_first = None, False
    try:
        earlier = load_plan(store, uri)
    except NotFoundError:
        is_first = True
    except StoreError:  # of another version, or damaged: written anew
        pass
    kept: dict[str, Any] = {"made": (earlier and earlier.made) or plan.made or datetime.now(UTC)}
    if earlier is not None and plan.cut == "auto":
        kept["parts"] = earlier.parts
    data = plan.model_copy(update=kept).model_dump_json().encode()
    try:
        store.put(uri, data, content_type="application/json", if_none_match=is_first)
    except PreconditionFailedError:  # another run has planned the same work meanwhile
        return save_plan(store, plan)
    return uri


def load_plan(store: ObjectStore, uri: str) -> Plan:
    """The plan at ``uri``.

    Raises:
        StoreError: it was written by another version of Chipline, or is damaged.
    """
    try:
        return Plan.model_validate_json(store.get(uri))
    except ValidationError as error:
        raise StoreError(
            f"{uri} is no plan of an inference.", "Start the run again, which plans anew."
        ) from error


def shards_of(plan: Plan, part: int) -> list[Shard]:
    """The shards of one part."""
    start, stop = plan.parts[part]
    return plan.shards[start:stop]


def is_done(store: ObjectStore, plan: Plan, part: int) -> bool:
    """Whether all results of a part are in the store."""
    sink, shards = ShardStore(store, settings().root), shards_of(plan, part)
    if all(sink.exists(shard) for shard in shards):
        return True
    found = found_shards(store, plan, shards)
    return found != shards and all(sink.exists(shard) for shard in found)


def compute_part(
    store: ObjectStore,
    plan: Plan,
    part: int,
    *,
    package: Package,
    progress: Progress | None = None,
) -> PartReport:
    """Compute the shards of one part that are not in the store yet, and leave a report in the plan's folder.

    Where the function runs out of memory, the part goes on with smaller batches (``tasks.infer.batches``).

    Args:
        package: the plan's package, unpacked on this machine.
        progress: called with (shards done, shards in all).

    Raises:
        DeviceError: the plan is for a GPU, and this worker has none.
        HostError: the function failed, or is not the one that was planned with.
        RasterError, StoreError: imagery or store cannot be read or written.
    """
    begun = time.monotonic()
    masks = masks_of_plan(store, plan)
    # Each reading thread has its own handle with its own cache of blocks: with one, what a halo shares with
    # the next strip is fetched and decoded once. Only a GPU outruns a single thread.
    readers = 1 if plan.processor == "CPU" else min(len(os.sched_getaffinity(0)), MOST_READERS)
    counters, reasons = Counters(), []
    batch = min(noted_batches(store, plan), default=None)
    if batch is not None:
        reasons.append(f"another part of this work ran out of memory, and went on with batches of {batch}")
    with opened_sources(plan, shards_of(plan, part)) as sources:
        while True:
            shards = found_shards(store, plan, shards_of(plan, part), missing=batch)
            with started(plan, package, batch) as running:
                counters.shards_found = -counters.shards  # those of an earlier attempt are found again
                taken = plan.model_copy(update={"geometry": running.geometry})
                operator = operator_for(taken, masks, running.first_tile(plan))
                size = {"width": taken.geometry.cols, "height": taken.geometry.rows}
                try:
                    execution = settle_engine(store, plan, running.host, partial(read_window, plan))
                    ready = time.monotonic()
                    run_shards(
                        running.in_its_blocks(plan, shards),
                        {key: replace(one, props={**one.props, **size}) for key, one in sources.items()},
                        running.given,
                        operator,
                        ShardStore(store, settings().root),
                        geometry=taken.geometry,
                        cutter=cutter_for(store, taken, operator, masks),
                        progress=progress,
                        read_threads=readers,
                        strips_ahead=max(3, readers + 1),
                        counters=counters,
                    )
                    break
                except FunctionFailure as failure:
                    if not is_out_of_memory(failure):
                        raise
                    batch = smaller_batch(failure, plan, running)
                    reasons.append(
                        f"with batches of {running.batch}: {failure.problem.splitlines()[0][:300]}"
                    )
                    counters.batch_reductions += 1
            note_batch(store, plan, batch, running.planned, reasons[-1])
    report = PartReport(
        part=part,
        device=running.host.device,
        containment=running.host.containment,
        execution=execution,
        software=software_of(running.host, execution),
        batch={"planned": running.planned, "used": running.batch, "reasons": reasons},
        counters={**asdict(counters), "engine_fallbacks": float(bool(execution.get("fell_back")))},
        seconds_starting=round(ready - begun, 3),
        seconds=round(time.monotonic() - ready, 3),
    )
    store.put(_report_uri(plan, part), report.model_dump_json().encode(), content_type="application/json")
    return report


def read_window(plan: Plan, shard: Shard, window: Window) -> Pixels:
    """Pixels of a window near a shard, as the function gets them."""
    with opened_sources(plan, [shard]) as sources:
        return sources[shard.grid].reader.read(window)


def reports(store: ObjectStore, plan: Plan) -> list[PartReport]:
    """Reports of the parts that were computed for this plan; none for parts found in the store."""
    return [
        PartReport.model_validate_json(store.get(_report_uri(plan, part)))
        for part in range(len(plan.parts))
        if store.exists(_report_uri(plan, part))
    ]


def masks_of_plan(store: ObjectStore, plan: Plan) -> dict[int, GridMask]:
    """The plan's mask on each of its grids; none where there is no mask, or where crops are cut."""
    if not plan.mask or plan.crops is not None:
        return {}
    mask = MaskPolygons.from_bytes(store.get(join(plan.folder, MASK_TABLE)))
    return {number: mask.on_grid(planned.grid) for number, planned in enumerate(plan.grids)}


def cutter_for(
    store: ObjectStore, plan: Plan, operator: Operator[Any], masks: Mapping[int, GridMask]
) -> Cutter:
    """How the plan's shards become blocks."""
    if plan.crops is not None:
        from tasks.infer.features import crop_cutter  # with geopandas, which tiles do not need

        return crop_cutter(store, plan)
    wanted = (lambda grid, window: masks[grid].inside(window)) if masks else None
    return TileCutter(plan.geometry, operator.needs, wanted)


def operator_for(
    plan: Plan, masks: Mapping[int, GridMask] | None = None, first_tile: int = 0
) -> Operator[Any]:
    """The operator of the plan's tool; ``first_tile``: see ``tasks.infer.operators.ObjectOperator``."""
    if plan.crops is not None:
        return CropOperator()
    regions = {number: planned.region for number, planned in enumerate(plan.grids)}
    if plan.pixel_format is None:
        return ObjectOperator(plan.geometry, regions, masks or {}, first_tile)
    if plan.scoring is None:
        kind = PictureOperator if plan.pixel_format.masked else PixelOperator
        return kind(plan.geometry, plan.pixel_format)
    return ScoreOperator(plan.geometry, plan.pixel_format, plan.scoring, regions)


@contextmanager
def opened_sources(plan: Plan, shards: Sequence[Shard]) -> Iterator[dict[int, Source]]:
    """Readers for the shards' grids, over the rasters that the shards touch."""
    with ExitStack() as stack:
        sources = {}
        for number in sorted({shard.grid for shard in shards}):
            planned = plan.grids[number]
            here = [shard for shard in shards if shard.grid == number]
            infos = _touched(plan, planned.rasters, planned.footprints, here)
            reader: GridReader | PairReader | RescaledReader | ImagesReader
            if plan.crops is not None and plan.crops.whole_images:
                from tasks.infer.features import images_reader

                reader = images_reader(plan, planned, infos)
                opened = []
            else:
                reader = before = stack.enter_context(
                    GridReader(read_as(planned, infos), planned.grid, tuple(plan.extract_bands))
                )
                opened = [before]
            if planned.after:
                later = _touched(plan, planned.after, planned.after_footprints, here)
                after = stack.enter_context(GridReader(later, planned.grid, tuple(plan.after_bands)))
                reader, infos = PairReader(before, after), [*infos, *later]
                opened.append(after)
            if plan.rescaling is not None:
                reader = RescaledReader(reader, plan.rescaling)
            sources[number] = Source(
                grid=planned.grid,
                reader=reader,
                pixel_bytes=reader.band_count * reader.dtype.itemsize + 1,
                remote=not all(is_local(info.uri) for info in infos),
                props=_props(plan, planned),
                band=0 if plan.crops is not None else fit_cache(opened, here, plan.geometry),
            )
        yield sources


def _touched(
    plan: Plan,
    rasters: Sequence[int],
    footprints: Sequence[tuple[int, int, int, int]],
    shards: Sequence[Shard],
) -> list[RasterInfo]:
    windows = np.array([shard.window for shard in shards])
    geometry = plan.geometry
    # Tiles reach beyond a shard's window by up to a step, and then by the halo.
    reach_rows, reach_cols = geometry.rows + geometry.padding, geometry.cols + geometry.padding
    top, left = windows[:, 0].min() - reach_rows, windows[:, 1].min() - reach_cols
    bottom = (windows[:, 0] + windows[:, 2]).max() + reach_rows
    right = (windows[:, 1] + windows[:, 3]).max() + reach_cols
    area = Window(int(top), int(left), int(bottom - top), int(right - left))
    return [
        plan.rasters[index]
        for index, place in zip(rasters, footprints, strict=True)
        if not Window(*place).expand(1).intersection(area).is_empty
    ]


def _props(plan: Plan, planned: PlannedGrid) -> dict[str, Any]:
    width, height = planned.grid.cell_size
    code = CRS.from_wkt(planned.crs_wkt).to_epsg() if planned.crs_wkt else None
    return {
        "cellSize": (width, height),
        "spatialReference": code or 0,
        "width": plan.geometry.cols,
        "height": plan.geometry.rows,
    }


def _report_uri(plan: Plan, part: int) -> str:
    return join(plan.folder, "reports", f"{part}-of-{plan.cut_name}.json")
