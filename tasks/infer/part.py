"""One part of a plan: open the package and the imagery, run the engine over the part's shards."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from rasterio.crs import CRS

from tasks.errors import HostError, NotFoundError, StoreError
from tasks.host import HostProcess
from tasks.imagery import GridReader, Pixels, RasterInfo, Window
from tasks.infer.blending import ScoreOperator
from tasks.infer.change import PairReader
from tasks.infer.crops import CropOperator, ImagesReader
from tasks.infer.describe import description_of
from tasks.infer.engine import Cutter, Operator, Progress, Source, TileCutter, run_shards
from tasks.infer.execution import settle_engine
from tasks.infer.features import crop_cutter, images_reader
from tasks.infer.fit import RescaledReader
from tasks.infer.image_grids import read_as
from tasks.infer.mask import TABLE as MASK_TABLE
from tasks.infer.mask import GridMask, MaskPolygons
from tasks.infer.operators import ObjectOperator, PixelOperator
from tasks.infer.planned import Plan, PlannedGrid
from tasks.infer.scores import ChipHost
from tasks.infer.shards import Shard, ShardStore
from tasks.package import Package
from tasks.settings import settings
from tasks.store import ObjectStore, is_local, join


class PartReport(BaseModel):
    """What computing a part took; goes into the provenance of the result.

    Attributes:
        device: the device that really ran, as the host says.
        containment: what confined the inference function.
        execution: which engine computed in which precision, and why not the one that was asked for
            (``tasks.infer.execution``); empty for functions without a choice.
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
    counters: dict[str, float]
    seconds_starting: float
    seconds: float


def save_plan(store: ObjectStore, plan: Plan) -> str:
    """Put the plan into its folder, which stays invisible without a manifest; its URI.

    The same work cut into another number of parts has the same folder and a plan of its own: a run that is
    under way keeps the parts it was started with. A plan of the same work keeps the time of the first one, so
    that whoever puts the outputs together writes the same bytes.
    """
    uri = join(plan.folder, f"plan-{len(plan.parts)}.json")
    made = plan.made or datetime.now(UTC)
    with suppress(NotFoundError, StoreError):
        made = load_plan(store, uri).made or made
    plan = plan.model_copy(update={"made": made})
    store.put(uri, plan.model_dump_json().encode(), content_type="application/json")
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
    sink = ShardStore(store, settings().root)
    return all(sink.exists(shard) for shard in shards_of(plan, part))


def compute_part(
    store: ObjectStore,
    plan: Plan,
    part: int,
    *,
    package: Package,
    progress: Progress | None = None,
) -> PartReport:
    """Compute the shards of one part that are not in the store yet, and leave a report in the plan's folder.

    Args:
        package: the plan's package, unpacked on this machine.
        progress: called with (shards done, shards in all).

    Raises:
        DeviceError: the plan is for a GPU, and this worker has none.
        HostError: the function failed, or is not the one that was planned with.
        RasterError, StoreError: imagery or store cannot be read or written.
    """
    shards = shards_of(plan, part)
    started = time.monotonic()
    masks = masks_of_plan(store, plan)
    operator = operator_for(plan, masks)
    with (
        HostProcess(
            package, processor_type=plan.processor, arguments=plan.arguments, foreign=plan.package.foreign
        ) as host,
        opened_sources(plan, shards) as sources,
    ):
        if description_of(host, package).model_dump_json() != plan.description.model_dump_json():
            raise HostError(
                f"The function of {package.name} describes itself differently here "
                "than where it was planned.",
                "Its configuration must not depend on the machine or the device; mend the function.",
            )
        execution = settle_engine(store, plan, host, partial(read_window, plan))
        ready = time.monotonic()
        counters = run_shards(
            shards,
            sources,
            host if plan.scoring is None else ChipHost(host, plan.geometry, plan.scoring.layout),
            operator,
            ShardStore(store, settings().root),
            geometry=plan.geometry,
            cutter=cutter_for(store, plan, operator, masks),
            progress=progress,
            # Each reading thread has its own handle with its own cache of blocks: with one, what a halo
            # shares with the next strip is fetched and decoded once. Only a GPU outruns a single thread.
            read_threads=1 if plan.processor == "CPU" else 2,
        )
        report = PartReport(
            part=part,
            device=host.device,
            containment=host.containment,
            execution=execution,
            counters={**asdict(counters), "engine_fallbacks": float(bool(execution.get("fell_back")))},
            seconds_starting=round(ready - started, 3),
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
    return {
        number: mask.on_grid(planned.crs_wkt, planned.transform) for number, planned in enumerate(plan.grids)
    }


def cutter_for(
    store: ObjectStore, plan: Plan, operator: Operator[Any], masks: Mapping[int, GridMask]
) -> Cutter:
    """How the plan's shards become blocks."""
    if plan.crops is not None:
        return crop_cutter(store, plan)
    wanted = (lambda grid, window: masks[grid].inside(window)) if masks else None
    return TileCutter(plan.geometry, operator.needs, wanted)


def operator_for(plan: Plan, masks: Mapping[int, GridMask] | None = None) -> Operator[Any]:
    """The operator of the plan's tool."""
    if plan.crops is not None:
        return CropOperator()
    regions = {number: planned.region for number, planned in enumerate(plan.grids)}
    if plan.pixel_format is None:
        return ObjectOperator(plan.geometry, regions, masks or {})
    if plan.scoring is None:
        return PixelOperator(plan.geometry, plan.pixel_format)
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
                reader = images_reader(plan, planned, infos)
            else:
                reader = before = stack.enter_context(
                    GridReader(read_as(planned, infos), planned.grid, tuple(plan.extract_bands))
                )
            if planned.after:
                later = _touched(plan, planned.after, planned.after_footprints, here)
                after = stack.enter_context(GridReader(later, planned.grid, tuple(plan.after_bands)))
                reader, infos = PairReader(before, after), [*infos, *later]
            if plan.rescaling is not None:
                reader = RescaledReader(reader, plan.rescaling)
            sources[number] = Source(
                grid=planned.grid,
                reader=reader,
                pixel_bytes=reader.band_count * reader.dtype.itemsize + 1,
                remote=not all(is_local(info.uri) for info in infos),
                props=_props(plan, planned),
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
    return join(plan.folder, "reports", f"{part}-of-{len(plan.parts)}.json")
