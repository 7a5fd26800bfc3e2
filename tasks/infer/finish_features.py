"""Finish of layers: detected objects, and the polygons of classified rasters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.windows
import shapely
from numpy.typing import NDArray

from tasks.imagery import Grid, Window
from tasks.imagery.identity import unsigned
from tasks.infer.candidates import above, confidence_scale
from tasks.infer.dates import acquired
from tasks.infer.image_grids import in_picture, read_as
from tasks.infer.items import ITEM, MOST_PREVIEWS, label_classes, layer_item, preview_name
from tasks.infer.layer import Layer, gather_layer, reprojected, taken, to_pixels
from tasks.infer.objects import Objects
from tasks.infer.origins import origins_of
from tasks.infer.outputs import Outputs
from tasks.infer.outputs_features import FeatureFiles, Features, write_features
from tasks.infer.picture import PREVIEW_BYTES, Outlines, picture
from tasks.infer.planned import Plan, PlannedGrid, output_name
from tasks.infer.reconcile import reconciled
from tasks.infer.results import shard_results
from tasks.infer.shaping import shaped
from tasks.infer.shards import Shard
from tasks.infer.stac import GEOPACKAGE_TYPE, GEOPARQUET_TYPE
from tasks.infer.vectorise import polygons_of
from tasks.store import ObjectStore


def write_objects(store: ObjectStore, plan: Plan, outputs: Outputs, folder: Path) -> None:
    """Put the layer of detected objects into the result's folder.

    Args:
        store: holds the shards.
        plan: of a detection.
        outputs: takes the files.
        folder: for files on their way.

    Raises:
        StoreError: a shard's result is missing, or the store cannot be written.
    """
    layer, candidates = layers_of(plan, objects_of_grids(store, plan, range(len(plan.grids))))
    stays, outlines = shaped(layer.features.geometry, layer.crs_wkt, plan.finishing["layer"])
    features = with_origin(plan, replace(taken(layer.features, stays), geometry=outlines))
    write_layer(plan, layer, features, candidates, outputs, folder)


def write_layer(
    plan: Plan,
    layer: Layer,
    features: Features,
    candidates: Layer | None,
    outputs: Outputs,
    folder: Path,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Put one layer with its pictures, its item and its candidates into the result's folder.

    Args:
        plan: whose output names the files; of a series, the plan of one date.
        layer: as it was gathered.
        features: its objects as they are written.
        candidates: objects below the threshold; None where they are not kept.
        outputs: takes the files.
        folder: for files on their way.
        more: what the manifest also says of the layer.
    """
    name = output_name(plan.output)
    wishes = plan.finishing["layer"]
    files = write_features(folder, name, layer.crs_wkt, features, wishes["output_formats"])
    classes = label_classes(plan.package.classes)
    for planned in plan.grids[:MOST_PREVIEWS]:
        shown = picture(
            read_as(planned, [plan.rasters[index] for index in planned.rasters]),
            classes,
            outlines=_outlines(plan, planned, features, layer.crs_wkt),
            grid=planned.output_grid,
            max_bytes=PREVIEW_BYTES,
        )
        outputs.put_bytes(preview_name(planned), shown, "image/jpeg")
    outputs.put_bytes(f"{name}.stac.json", layer_item(plan, layer.crs_wkt, plan.grids[:MOST_PREVIEWS]), ITEM)
    counts = {
        **(more or {}),
        "objects_before_suppression": layer.before_suppression,
        "objects_larger_than_halo": layer.larger_than_halo,
    }
    put_layer(outputs, name, layer.crs_wkt, files, counts)
    if candidates is not None:
        kept = with_origin(plan, candidates.features)
        files = write_features(folder, f"{name}_candidates", candidates.crs_wkt, kept)
        described = {"name": f"{name}_candidates", "objects": files.count, "crs_wkt": candidates.crs_wkt}
        described |= more or {}
        described |= {"path": files.geoparquet.name, "media_type": GEOPARQUET_TYPE, "fields": files.fields}
        outputs.described.append(described)
        outputs.put(files.geoparquet, GEOPARQUET_TYPE)


def _outlines(plan: Plan, planned: PlannedGrid, features: Features, crs_wkt: str) -> Outlines:
    """The objects as the picture of a grid shows them; of raw images each shows its own objects."""
    if planned.crs_wkt:
        return Outlines(reprojected(features.geometry, crs_wkt, planned.crs_wkt), features.class_name)
    uri = unsigned(plan.rasters[planned.rasters[0]].uri)
    mine = np.array([source == uri for source in features.source_raster], np.bool_)
    names = [name for name, here in zip(features.class_name, mine.tolist(), strict=True) if here]
    return Outlines(in_picture(plan, planned, features.geometry[mine], crs_wkt), names)


def write_polygons(
    plan: Plan, planned: PlannedGrid, raster: Path, nodata: int | None, folder: Path
) -> FeatureFiles:
    """Write the polygons of one classified raster.

    Args:
        plan: of a classification.
        planned: the raster's grid.
        raster: the finished COG.
        nodata: value that makes no polygon.
        folder: for the files.
    """
    name, wishes = f"{planned.name}_polygons", plan.finishing["polygons"]
    geometry, values = polygons_of_file(raster, nodata)
    names = {item.value: item.name for item in plan.package.classes}
    features = class_polygons(geometry, values, names, planned.output_grid, wishes)
    middles = shapely.centroid(to_pixels(features.geometry, planned))
    features = with_origin(plan, replace(features, source_raster=origins_of(plan, planned, middles)))
    return write_features(folder, name, planned.crs_wkt, features, wishes["output_formats"])


def polygons_of_file(raster: Path, nodata: int | None) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Polygons of a classified raster's first band in its pixels, and their values."""
    with rasterio.open(raster) as dataset:

        def read(window: Window) -> NDArray[Any]:
            place = rasterio.windows.Window(window.col, window.row, window.cols, window.rows)
            values: NDArray[Any] = dataset.read(1, window=place)
            return values

        parts = list(polygons_of(read, dataset.shape, nodata=nodata))
    return np.concatenate([part.geometry() for part in parts]), np.concatenate([part.value for part in parts])


def class_polygons(
    geometry: NDArray[np.object_],
    values: NDArray[np.int64],
    names: Mapping[int, str],
    grid: Grid,
    wishes: Mapping[str, Any],
    *,
    package: str = "",
    run: str = "",
) -> Features:
    """Polygons of classes as features.

    Args:
        geometry: in pixels of the grid.
        values: class value of each.
        names: of the classes, by value.
        grid: of the raster.
        wishes: see ``tasks.infer.shaping.shaped``.
        package, run: where they come from.
    """
    a, _, c, _, e, f = grid.transform
    scale, origin = np.array([a, e]), np.array([c, f])
    in_map = shapely.transform(geometry, lambda points: origin + points * scale)
    stays, outlines = shaped(in_map, grid.crs_wkt, wishes, covers=True)
    chosen = values[stays].tolist()
    return Features(
        geometry=outlines,
        class_name=[names.get(value, str(value)) for value in chosen],
        class_value=chosen,
        confidence=np.full(len(chosen), np.nan),
        source_raster=[None] * len(chosen),
        package=package,
        run=run,
    )


def with_origin(plan: Plan, features: Features) -> Features:
    """The features with their rasters' dates, the package and the run."""
    dates = dates_of(plan, features.source_raster)
    return replace(
        features,
        source_date=[None if uri is None else dates[uri] for uri in features.source_raster],
        package=origin_of(plan),
        run=plan.run_key,
    )


def origin_of(plan: Plan) -> str:
    """What made the features: name and digest of the package."""
    return f"{plan.package.name} {plan.package.digest[:12]}"


def dates_of(plan: Plan, sources: Iterable[str | None]) -> dict[str | None, str | None]:
    """When the named rasters were taken, ISO 8601, by their URIs without signatures."""
    opened = {unsigned(info.uri): info.uri for info in plan.rasters}
    named = {uri for uri in sources if uri is not None}
    # What the document that listed a raster says goes before what the file says.
    stated = {info.uri: info.acquired for info in plan.rasters if info.acquired is not None}
    asked = {opened[uri] for uri in named} - set(stated)
    dates = {**acquired(asked), **stated}
    return {uri: dates.get(opened[uri]) for uri in named}


def put_layer(
    outputs: Outputs, name: str, crs_wkt: str | None, files: FeatureFiles, more: Mapping[str, Any]
) -> None:
    """Upload a layer in all its formats and describe each; ``more``: what the manifest also says of it."""
    common = {
        "name": name,
        "objects": files.count,
        "objects_per_class": files.counts,
        **more,
        "bounds": None if files.bounds is None else list(files.bounds),
        "crs_wkt": crs_wkt,
        "fields": files.fields,
    }
    both = ((files.geoparquet, GEOPARQUET_TYPE), (files.geopackage, GEOPACKAGE_TYPE))
    for path, media_type in (*both, *files.further):
        outputs.put(path, media_type)
        outputs.described.append({"path": path.name, "media_type": media_type, **common})


def objects_of_grids(store: ObjectStore, plan: Plan, numbers: Iterable[int]) -> list[Objects]:
    """The objects of some of the plan's grids, each once, in pixels of its grid."""
    shards: list[list[Shard]] = [[] for _ in plan.grids]
    for shard in plan.shards:
        shards[shard.grid].append(shard)
    found = []
    for number in numbers:
        rows = _shard_rows(shard_results(store, shards[number]))
        found.append(Objects.joined([table for table in reconciled(rows, plan.geometry) if len(table)]))
    return found


def layers_of(plan: Plan, found: Sequence[Objects]) -> tuple[Layer, Layer | None]:
    """All objects of all grids in one coordinate system; and the candidates, where they are kept.

    The candidates are not suppressed, and hold the objects of the layer, too.

    Args:
        plan: whose order of grids is that of ``found``.
        found: per grid, its objects.
    """
    kept = plan.finishing.get("candidates")
    if kept is None:
        return gather_layer(plan, found), None
    everything = plan.model_copy(update={"finishing": {**plan.finishing, "suppression": None}})
    scale = confidence_scale(np.concatenate([objects.confidence for objects in found]))
    surer = [objects.take(above(objects.confidence, kept["threshold"], scale)) for objects in found]
    return gather_layer(plan, surer), gather_layer(everything, found)


def _shard_rows(results: Iterator[tuple[Shard, bytes]]) -> Iterator[tuple[int, Objects]]:
    def row_of(item: tuple[Shard, bytes]) -> int:
        return item[0].row

    for _, group in groupby(results, key=row_of):
        here = [(shard.tile_row + shard.tile_rows, Objects.from_bytes(data)) for shard, data in group]
        yield max(stop for stop, _ in here), Objects.joined([objects for _, objects in here])
