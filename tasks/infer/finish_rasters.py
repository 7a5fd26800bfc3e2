"""Finish of classified rasters: one COG per grid, and the probabilities beside it where they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.imagery import Window, inspect_raster
from tasks.infer.finish_features import put_layer, write_polygons
from tasks.infer.image_grids import read_as
from tasks.infer.image_rasters import mapped_blocks
from tasks.infer.items import ITEM, MOST_PREVIEWS, label_classes, preview_name, raster_item
from tasks.infer.operators import PixelFormat, read_pixels
from tasks.infer.outputs import Outputs
from tasks.infer.outputs_raster import RasterFiles, RasterFormat, write_raster
from tasks.infer.picture import PREVIEW_BYTES, picture
from tasks.infer.pictures import read_picture
from tasks.infer.planned import Plan, PlannedClass, PlannedGrid
from tasks.infer.results import shard_results
from tasks.infer.scores import Decided
from tasks.infer.seams import decided_blocks
from tasks.infer.series_rasters import RasterSeries, Tally, class_areas
from tasks.infer.shards import Shard
from tasks.infer.stac import COG_TYPE
from tasks.store import ObjectStore


def write_rasters(store: ObjectStore, plan: Plan, outputs: Outputs, folder: Path) -> None:
    """Put the classified rasters of all grids into the result's folder.

    Args:
        store: holds the shards.
        plan: of a tool that makes rasters.
        outputs: takes the files.
        folder: for files on their way.

    Raises:
        StoreError: a shard's result is missing, or the store cannot be written.
    """
    assert plan.pixel_format is not None
    form = raster_format(plan.pixel_format, plan.package.classes)
    shards: list[list[Shard]] = [[] for _ in plan.grids]
    for shard in plan.shards:
        shards[shard.grid].append(shard)
    series = RasterSeries(plan, folder) if plan.finishing.get("series") is not None else None
    for number, planned in enumerate(plan.grids):
        blocks = _classes(store, plan, planned, shards[number], folder)
        computed = write_raster(folder / f"{planned.name}.tif", planned.output_grid, blocks, form)
        shown = number < MOST_PREVIEWS
        if shown:
            # Of a raw image the picture, too, is the image's own; what is a picture itself is shown itself.
            image = picture(
                [inspect_raster(str(computed.cog))]
                if plan.pixel_format.masked
                else read_as(planned, [plan.rasters[index] for index in planned.shown]),
                form.classes,
                classified=str(computed.cog) if form.classes else None,
                grid=planned.output_grid,
                max_bytes=PREVIEW_BYTES,
            )
            outputs.put_bytes(preview_name(planned), image, "image/jpeg")
        kept, place = probability_formats(plan), planned.published
        files = _on_map(plan, planned, computed, form)
        item = raster_item(plan, place, form, preview=shown, kept=kept)
        outputs.put_bytes(f"{planned.name}.stac.json", item, ITEM)
        polygons = None
        if plan.finishing.get("polygons") is not None:
            nodata = None if form.nodata is None else int(form.nodata)
            polygons = write_polygons(plan, place, files.cog, nodata, folder)
        areas = None
        if form.classes and (series is not None or plan.tool == "detect_change"):
            areas = class_areas(files.cog, place.output_grid, form.nodata)
        if series is not None and areas is not None:
            series.take(planned, files.cog, areas)
        _put(outputs, place, planned.name, files, form, areas)
        if polygons is not None:
            put_layer(outputs, f"{planned.name}_polygons", place.crs_wkt, polygons, {})
        for suffix, kept_form in kept.items():
            path = folder / f"{planned.name}_{suffix}.tif"
            values = _kept(store, plan, planned, shards[number], folder, suffix)
            made = write_raster(path, planned.output_grid, values, kept_form)
            _put(outputs, place, path.stem, _on_map(plan, planned, made, kept_form), kept_form)
        if series is not None:
            series.compare(outputs)
    if series is not None:
        series.finish(outputs)


def _on_map(plan: Plan, planned: PlannedGrid, computed: RasterFiles, form: RasterFormat) -> RasterFiles:
    """The raster where it is published: of a raw image put onto the map, with everything beside it."""
    if planned.on_map is None:
        return computed
    raw = computed.cog.rename(computed.cog.with_suffix(".image.tif"))
    try:
        grid = planned.published.output_grid
        fill = 0 if form.nodata is None else form.nodata
        blocks = mapped_blocks(raw, plan.rasters[planned.rasters[0]], grid, fill)
        return write_raster(computed.cog, grid, blocks, form)
    finally:
        raw.unlink()


def raster_format(pixels: PixelFormat, classes: Sequence[PlannedClass]) -> RasterFormat:
    """How a classified raster is written."""
    if pixels.masked:
        return RasterFormat(pixels.dtype, None, count=pixels.bands, overviews="average")
    if pixels.dtype == "float32":
        return RasterFormat(pixels.dtype, pixels.nodata, overviews="average")
    return RasterFormat(pixels.dtype, pixels.nodata, classes=label_classes(classes))


def probability_formats(plan: Plan) -> dict[str, RasterFormat]:
    """The rasters of kept probabilities, by the suffix of their names.

    ``probability`` holds the probabilities by rank, ``alternatives`` the classes from the second rank on;
    those of the first rank are the classified raster itself.
    """
    if plan.scoring is None or not plan.scoring.kept or plan.pixel_format is None:
        return {}
    kept, classes = plan.scoring.kept, label_classes(plan.package.classes)
    names = tuple(f"probability of rank {rank}" for rank in range(1, kept + 1))
    formats = {"probability": RasterFormat("uint8", None, count=kept, band_names=names, overviews="average")}
    if kept > 1:
        formats["alternatives"] = RasterFormat(
            plan.pixel_format.dtype,
            plan.pixel_format.nodata,
            count=kept - 1,
            classes=classes,
            band_names=tuple(f"class of rank {rank}" for rank in range(2, kept + 1)),
        )
    return formats


def _classes(
    store: ObjectStore, plan: Plan, planned: PlannedGrid, shards: Sequence[Shard], folder: Path
) -> Iterator[tuple[Window, NDArray[Any]] | tuple[Window, NDArray[Any], NDArray[np.bool_]]]:
    row, col = planned.region[:2]
    if plan.scoring is None:
        for shard, data in shard_results(store, shards):
            window = shard.target.shift(-row, -col)
            if plan.pixel_format is not None and plan.pixel_format.masked:
                yield window, *read_picture(data)
            else:
                yield window, read_pixels(data)
        return
    for window, made in _decided(store, plan, planned, shards, folder):
        yield window.shift(-row, -col), made.classes


def _kept(
    store: ObjectStore,
    plan: Plan,
    planned: PlannedGrid,
    shards: Sequence[Shard],
    folder: Path,
    suffix: str,
) -> Iterator[tuple[Window, NDArray[Any], NDArray[np.bool_]]]:
    row, col = planned.region[:2]
    for window, made in _decided(store, plan, planned, shards, folder):
        values = made.probability if suffix == "probability" else made.top[1:]
        # Where imagery is, some class has the first rank.
        yield window.shift(-row, -col), values, made.probability[0] > 0


def _decided(
    store: ObjectStore, plan: Plan, planned: PlannedGrid, shards: Sequence[Shard], folder: Path
) -> Iterator[tuple[Window, Decided]]:
    assert plan.scoring is not None
    assert plan.pixel_format is not None
    results = shard_results(store, shards)
    region = Window(*planned.region)
    return decided_blocks(results, shards, region, plan.scoring, plan.pixel_format, folder)


def _put(
    outputs: Outputs,
    planned: PlannedGrid,
    name: str,
    files: RasterFiles,
    form: RasterFormat,
    areas: Tally | None = None,
) -> None:
    outputs.put(files.cog, COG_TYPE)
    for path in files.side_cars:
        outputs.put(path, "application/xml")
    outputs.described.append(
        {
            "name": name,
            "path": files.cog.name,
            "media_type": COG_TYPE,
            "bounds": list(planned.output_grid.bounds),
            "crs_wkt": planned.crs_wkt or None,
            "rows": planned.output_grid.rows,
            "cols": planned.output_grid.cols,
            "bands": form.count,
            "dtype": form.dtype,
            "pixels_per_class": {str(value): count for value, count in files.counts.items()},
            **({} if areas is None else {"area_m2_per_class": _square_metres(files.counts, areas)}),
        }
    )


def _square_metres(counts: Mapping[int, int], areas: Tally) -> dict[str, float]:
    """Area of every class, of those that do not occur, too."""
    return {str(value): round(areas.get(value, (0, 0.0))[1], 6) for value in counts}
