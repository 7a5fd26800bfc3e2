"""STAC items of a run's outputs, from its plan."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyproj
import rasterio

from tasks.imagery import Bounds, Grid
from tasks.imagery.identity import unsigned
from tasks.infer.image_grids import map_bounds, map_crs
from tasks.infer.outputs_formats import FURTHER_FORMATS
from tasks.infer.outputs_raster import RasterFormat
from tasks.infer.planned import Plan, PlannedClass, PlannedGrid, output_name
from tasks.infer.stac import (
    COG_TYPE,
    GEOPACKAGE_TYPE,
    GEOPARQUET_TYPE,
    Lineage,
    ResultAsset,
    stac_item,
)
from tasks.labels import LabelClass
from tasks.labels.schema import palette_color

ITEM = "application/geo+json"
MOST_PREVIEWS = 4
"""Of many separate items the first ones are shown."""


def label_classes(classes: Sequence[PlannedClass]) -> tuple[LabelClass, ...]:
    """The package's classes with a colour each, ordered by value."""
    return tuple(
        LabelClass(item.value, item.name, item.color or palette_color(index))
        for index, item in enumerate(sorted(classes, key=lambda item: item.value))
    )


def preview_name(planned: PlannedGrid) -> str:
    """File name of the picture of one grid."""
    return f"{planned.name}.preview.jpg"


def raster_item(
    plan: Plan,
    planned: PlannedGrid,
    form: RasterFormat,
    *,
    preview: bool,
    kept: Mapping[str, RasterFormat] | None = None,
) -> bytes:
    """The item of one classified raster, which lies beside it; ``kept``: further rasters by their suffix."""
    polygons = plan.finishing.get("polygons")
    grid = planned.output_grid
    assets = raster_assets("raster", planned.name, "Classified raster", grid, form)
    for suffix, more in (kept or {}).items():
        stem = f"{planned.name}_{suffix}"
        assets |= raster_assets(suffix, stem, f"{suffix.capitalize()} by rank", grid, more)
    if polygons is not None:
        for key, asset in layer_assets(f"{planned.name}_polygons", "Polygons", polygons).items():
            assets[f"polygons_{key}"] = asset
    if preview:
        assets["preview"] = _preview(planned)
    what = "Changed pixels" if plan.tool == "detect_change" else "Classified pixels"
    return _item(plan, planned.name, planned.crs_wkt, [planned], assets, what)


def raster_assets(key: str, stem: str, title: str, grid: Grid, form: RasterFormat) -> dict[str, ResultAsset]:
    """A raster and what lies beside it: the names of its classes with their attributes, and its style."""
    raster = ResultAsset(
        f"./{stem}.tif",
        COG_TYPE,
        title,
        grid=grid,
        dtype=form.dtype,
        nodata=form.nodata,
        classes=form.classes,
    )
    if not form.classes:
        return {key: raster}
    beside = {
        "attributes": (f"./{stem}.tif.aux.xml", "Class names and attribute table"),
        "style": (f"./{stem}.qml", "Style for QGIS"),
    }
    return {
        key: raster,
        **{
            f"{key}_{what}": ResultAsset(href, "application/xml", said, roles=("metadata",))
            for what, (href, said) in beside.items()
        },
    }


def layer_item(plan: Plan, crs_wkt: str, shown: Sequence[PlannedGrid]) -> bytes:
    """The item of a layer of objects, which lies beside it.

    Args:
        plan: whose output is the layer's name.
        crs_wkt: of the layer; empty where it lies on no map.
        shown: grids that have a picture.
    """
    name = output_name(plan.output)
    assets = layer_assets(name, "Objects", plan.finishing.get("layer", {}))
    if plan.finishing.get("candidates") is not None:
        assets["candidates"] = ResultAsset(
            f"./{name}_candidates.parquet", GEOPARQUET_TYPE, "Objects at every confidence"
        )
    for number, planned in enumerate(shown):
        assets[f"preview_{number}" if number else "preview"] = _preview(planned)
    what = "Classified objects" if plan.crops is not None else "Detected objects"
    return _item(plan, name, crs_wkt, plan.grids, assets, what)


def series_item(plan: Plan, assets: Mapping[str, ResultAsset]) -> bytes:
    """The item of what changed between the dates of a series: its tables, and what else is given."""
    crs_wkt = plan.grids[0].crs_wkt
    name = f"{output_name(plan.output)}_series"
    return _item(plan, name, crs_wkt, plan.grids, dict(assets), "Changes over time")


def table_asset(path: str, media_type: str) -> ResultAsset:
    """A table of a series."""
    return ResultAsset(f"./{path}", media_type, f"Table {path}")


def layer_assets(name: str, what: str, layer: Mapping[str, Any]) -> dict[str, ResultAsset]:
    """A layer in all formats that were asked for (``output_formats``), by key."""
    assets = {
        "geoparquet": ResultAsset(f"./{name}.parquet", GEOPARQUET_TYPE, f"{what} as GeoParquet"),
        "geopackage": ResultAsset(f"./{name}.gpkg", GEOPACKAGE_TYPE, f"{what} as GeoPackage"),
    }
    for wanted in layer.get("output_formats", []):
        suffix, media_type = FURTHER_FORMATS[wanted]
        assets[wanted.lower()] = ResultAsset(f"./{name}.{suffix}", media_type, f"{what} as {wanted}")
    return assets


def _preview(planned: PlannedGrid) -> ResultAsset:
    return ResultAsset(f"./{preview_name(planned)}", "image/jpeg", "Result over imagery", roles=("overview",))


def _item(
    plan: Plan,
    name: str,
    crs_wkt: str,
    grids: Sequence[PlannedGrid],
    assets: dict[str, ResultAsset],
    what: str,
) -> bytes:
    indices = dict.fromkeys(index for planned in grids for index in [*planned.rasters, *planned.after])
    item: dict[str, Any] = stac_item(
        f"{name}-{plan.run_key[:12]}",
        # A raw image that says nowhere where it lies has no footprint.
        crs_wkt=crs_wkt or None,
        footprints=_footprints(plan, grids, crs_wkt) if crs_wkt else [],
        created=plan.made or datetime.now(UTC),
        assets=assets,
        lineage=Lineage(
            inputs=[unsigned(plan.rasters[index].uri) for index in indices],
            further=further_inputs(plan),
            package_uri=unsigned(plan.package.uri),
            package_digest=plan.package.digest,
            software={**software(), **plan.software},
            parameters=plan.parameters,
        ),
        acquired=_acquired(plan.rasters[index].acquired for index in indices),
        title=f"{what}: {name}, by {plan.package.name}",
    )
    return (json.dumps(item, indent=1) + "\n").encode()


def software() -> dict[str, str]:
    """Versions of what puts results together."""
    return {
        "chipline": version("chipline"),
        "gdal": rasterio.__gdal_version__,
        "python": platform.python_version(),
    }


def further_inputs(plan: Plan) -> list[tuple[str, str]]:
    """What else than imagery and package the result was made from, as (role, URI without a signature)."""
    names = {"features": "in_features", "mask": "mask", "snap_raster": "snap_raster"}
    return [(role, str(plan.parameters[name])) for role, name in names.items() if plan.parameters.get(name)]


def _acquired(dates: Iterable[str | None]) -> tuple[datetime, datetime] | None:
    """The first and the last time at which imagery was taken; None where one is not known."""
    times = []
    for text in dates:
        if text is None:
            return None
        time = datetime.fromisoformat(text)
        times.append(time if time.tzinfo is not None else time.replace(tzinfo=UTC))
    return (min(times), max(times)) if times else None


def _footprints(plan: Plan, grids: Sequence[PlannedGrid], crs_wkt: str) -> list[Bounds]:
    if plan.crops is not None and plan.crops.whole_images:
        # Their grid is none of the map: each image lies where it lies.
        return [_moved(info.bounds, info.crs_wkt, crs_wkt) for info in plan.rasters if info.crs_wkt]
    return [_moved(map_bounds(plan, planned), map_crs(plan, planned), crs_wkt) for planned in grids]


def _moved(bounds: Bounds, own: str, crs_wkt: str) -> Bounds:
    if own == crs_wkt:
        return bounds
    project = pyproj.Transformer.from_crs(own, crs_wkt, always_xy=True)
    xmin, ymin, xmax, ymax = project.transform_bounds(*bounds, densify_pts=21)
    # Across the antimeridian the box goes on beyond 180 degrees.
    return xmin, ymin, xmax + 360 if xmax < xmin else xmax, ymax
