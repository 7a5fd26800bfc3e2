"""Finish of object classification: the features as they came, in their order, with their labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray

from tasks.infer.crops import PlannedCrops, read_labels
from tasks.infer.features import CAPTION, GRID, RECORD, table_of_plan
from tasks.infer.finish_features import dates_of, origin_of
from tasks.infer.items import ITEM, MOST_PREVIEWS, label_classes, layer_item, preview_name
from tasks.infer.layer import reprojected
from tasks.infer.mask import geometry_px
from tasks.infer.origins import origins_of
from tasks.infer.outputs import Outputs
from tasks.infer.outputs_features import areas_m2
from tasks.infer.outputs_formats import write_formats
from tasks.infer.outputs_tables import TableFiles, write_table
from tasks.infer.picture import PREVIEW_BYTES, Outlines, picture
from tasks.infer.planned import Plan, PlannedGrid, output_name
from tasks.infer.results import shard_results
from tasks.infer.stac import GEOPACKAGE_TYPE, GEOPARQUET_TYPE
from tasks.store import ObjectStore

# Points and lines are drawn as boxes of this many cells around their middle.
_DRAWN_CELLS = 8


def write_labelled(store: ObjectStore, plan: Plan, outputs: Outputs, folder: Path) -> None:
    """Put the labelled features into the result's folder.

    Args:
        store: holds the shards and the plan's table.
        plan: of an object classification.
        outputs: takes the files.
        folder: for files on their way.

    Raises:
        StoreError: a shard's result or the table is missing, or the store cannot be written.
    """
    crops = plan.crops
    assert crops is not None
    frame = labelled(store, plan)
    name = output_name(plan.output)
    labels = frame[crops.label_field]
    files = _written(folder, name, frame)
    further = write_formats(folder, name, frame, plan.finishing["layer"]["output_formats"])
    shown = [] if crops.whole_images else plan.grids[:MOST_PREVIEWS]
    for planned in shown:
        outputs.put_bytes(preview_name(planned), _preview(plan, planned, frame), "image/jpeg")
    crs_wkt = "" if frame.crs is None else str(frame.crs.to_wkt())
    outputs.put_bytes(f"{name}.stac.json", layer_item(plan, crs_wkt, shown), ITEM)
    counted = labels.dropna().value_counts().sort_index()
    common = {
        "name": name,
        "objects": len(frame),
        "objects_per_class": {str(label): int(count) for label, count in counted.items()},
        **crops.counts,
        "features_without_imagery": int(labels.isna().sum()) - _never_cut(crops),
        "crs_wkt": crs_wkt,
        "fields": {str(column): str(kind) for column, kind in frame.dtypes.items() if column != "geometry"},
    }
    both = ((files.geoparquet, GEOPARQUET_TYPE), (files.geopackage, GEOPACKAGE_TYPE))
    for path, media_type in (*both, *further):
        outputs.put(path, media_type)
        outputs.described.append({"path": path.name, "media_type": media_type, **common})


def labelled(store: ObjectStore, plan: Plan) -> geopandas.GeoDataFrame:
    """All features in the order of the input, with label, confidence, and what they come from.

    Features that were not classified have no label and no confidence. One on several separate images has a
    row for each. Points and lines have no area. The layer is in ``out_sr``, where one was given, else in the
    coordinate system of the features as they came.
    """
    crops = plan.crops
    assert crops is not None
    frame = geopandas.read_parquet(io.BytesIO(table_of_plan(store, plan)))
    labels = np.full(len(frame), None, dtype=object)
    confidence = np.full(len(frame), np.nan)
    several = np.full(len(frame), None, dtype=object)
    captions = np.full(len(frame), None, dtype=object)
    for _, data in shard_results(store, plan.shards):
        table = read_labels(data)
        rows = table["row"].to_numpy()
        labels[rows] = table["label"].to_numpy(zero_copy_only=False)
        confidence[rows] = table["confidence"].to_numpy()
        several[rows] = table["confidences"].to_numpy(zero_copy_only=False)
        if crops.caption_field:
            captions[rows] = [_caption(text) for text in table["attributes"].to_pylist()]
    order = np.lexsort((frame[GRID], frame[RECORD]))
    frame[crops.label_field] = pd.Series(labels, dtype="string")
    frame[crops.confidence_field] = confidence
    # Of several labels each has a confidence of its own.
    if any(value is not None and ";" in value for value in several):
        frame[f"{crops.confidence_field}s"] = pd.Series(several, dtype="string")
    if crops.caption_field:
        frame[crops.caption_field] = pd.Series(captions, dtype="string")
    sources = frame["source_raster"].to_numpy() if crops.whole_images else _sources(plan, frame)
    dates = dates_of(plan, sources)
    there = ~pd.isna(labels)
    origin, run = np.full((2, len(frame)), None, dtype=object)
    origin[there], run[there] = origin_of(plan), plan.run_key
    columns = {
        crops.source_field: sources if crops.source_field else None,
        crops.date_field: [dates.get(uri) for uri in sources],
        crops.package_field: origin,
        crops.run_field: run,
    }
    for name, values in columns.items():
        if name:
            frame[name] = pd.Series(values, dtype="string")
    frame[crops.area_field] = _areas(frame, crops.crs_wkt)
    sorted_frame: geopandas.GeoDataFrame = (
        frame.iloc[order].drop(columns=[RECORD, GRID]).reset_index(drop=True)
    )
    wanted = plan.finishing.get("out_sr")
    if wanted is None:
        return sorted_frame
    crs_wkt = str(pyproj.CRS.from_epsg(wanted).to_wkt())
    shapes = np.asarray(sorted_frame.geometry.array, dtype=object)
    moved: geopandas.GeoDataFrame = sorted_frame.set_geometry(
        reprojected(shapes, crops.crs_wkt, crs_wkt), crs=crs_wkt
    )
    return moved


def _caption(attributes: str) -> str | None:
    """The caption among the function's further attributes."""
    found = {name.lower(): value for name, value in json.loads(attributes).items()}.get(CAPTION.lower())
    return None if found is None else str(found)


def _areas(frame: geopandas.GeoDataFrame, crs_wkt: str) -> NDArray[np.float64]:
    """Square metres of the polygons; NaN for points, lines and what lies on no map."""
    shapes = np.asarray(frame.geometry.array, dtype=object)
    areas = np.full(len(shapes), np.nan)
    flat = np.flatnonzero(shapely.get_dimensions(shapes) == 2)
    if crs_wkt and len(flat):
        areas[flat] = areas_m2(shapes[flat], crs_wkt)
    return areas


def _sources(plan: Plan, frame: geopandas.GeoDataFrame) -> NDArray[np.object_]:
    """Per feature, the raster of its grid that the middle of its envelope is taken from."""
    crops = plan.crops
    assert crops is not None
    found = np.full(len(frame), None, dtype=object)
    shapes = np.asarray(frame.geometry.array, dtype=object)
    grids = frame[GRID].to_numpy()
    for number, planned in enumerate(plan.grids):
        mine = np.flatnonzero(grids == number)
        if not len(mine):
            continue
        bounds = shapely.bounds(geometry_px(shapes[mine], crops.crs_wkt, planned.grid))
        middle = np.asarray(shapely.points((bounds[:, :2] + bounds[:, 2:]) / 2), dtype=object)
        found[mine] = origins_of(plan, planned, middle)
    return found


def _written(folder: Path, name: str, frame: geopandas.GeoDataFrame) -> TableFiles:
    if frame.geometry.isna().all() and frame.crs is None:
        # Images without a place on the map: a plain table.
        return write_table(folder, name, pd.DataFrame(frame.drop(columns="geometry")))
    return write_table(folder, name, frame)


def _never_cut(crops: PlannedCrops) -> int:
    return crops.counts["features_without_geometry"] + crops.counts["features_beside_the_imagery"]


def _preview(plan: Plan, planned: PlannedGrid, frame: geopandas.GeoDataFrame) -> bytes:
    crops = plan.crops
    assert crops is not None
    drawn = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    shapes = np.asarray(drawn["geometry"].array, dtype=object)
    outlines = reprojected(shapes, str(frame.crs.to_wkt()), planned.crs_wkt)
    width, _ = planned.grid.cell_size
    thin = shapely.get_dimensions(outlines) < 2
    outlines[thin] = shapely.buffer(outlines[thin], _DRAWN_CELLS / 2 * width, cap_style="square")
    return picture(
        [plan.rasters[index] for index in planned.rasters],
        label_classes(plan.package.classes),
        outlines=Outlines(outlines, drawn[crops.label_field].fillna("no label").tolist()),
        grid=planned.output_grid,
        max_bytes=PREVIEW_BYTES,
    )
