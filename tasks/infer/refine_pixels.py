"""A classified raster with other thresholds, from its kept probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.windows
import shapely
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from tasks.errors import BadInputError, NotFoundError, RasterError
from tasks.imagery import Grid, Window, inspect_raster
from tasks.imagery.raster import open_raster, raster_environment
from tasks.infer.finish_features import class_polygons, dates_of, polygons_of_file, put_layer
from tasks.infer.items import label_classes, layer_assets, raster_assets
from tasks.infer.layer import to_pixels
from tasks.infer.origins import origins_of
from tasks.infer.outputs import Outputs
from tasks.infer.outputs_features import Features, write_features
from tasks.infer.outputs_raster import RasterFormat, write_raster
from tasks.infer.parameters_outputs import LayerParameters
from tasks.infer.parameters_refine import RefineParameters
from tasks.infer.planned import output_name
from tasks.infer.refine_source import Source, plan_of
from tasks.infer.stac import COG_TYPE
from tasks.store import ObjectStore, join

BLOCK = 2048


def refine_raster(
    store: ObjectStore,
    source: Source,
    raster: Mapping[str, Any],
    parameters: RefineParameters,
    key: str,
    outputs: Outputs,
    folder: Path,
) -> None:
    """Put one classified raster with other thresholds, and its polygons, into the result's folder.

    Args:
        store: holds the result's plan, which says what its polygons come from.
        source: the published result.
        raster: what its manifest says of the raster.
        parameters: of the tool.
        key: of this run.
        outputs: takes the files.
        folder: for files on their way.

    Raises:
        BadInputError: thresholds, and the result kept no probabilities; a class that it does not have.
    """
    levels = thresholds_of(parameters, {item.name: item.value for item in source.classes})
    info = inspect_raster(join(source.folder, raster["path"]))
    if info.dtype == "float32" or not source.classes:
        raise BadInputError(
            f"{info.uri} holds values, not classes.", "Name a result whose package gives classes."
        )
    grid = Grid(info.crs_wkt, info.transform, info.height, info.width)
    nodata = None if info.nodata is None else int(info.nodata)
    only = len([item for item in source.outputs(".tif") if item["name"] == raster["name"]]) == 1
    name = output_name(parameters.output_name)
    name = name if only and raster["name"] == source.manifest.name else f"{name}_{raster['name']}"
    form = RasterFormat(info.dtype, info.nodata, classes=label_classes(source.classes))
    stem = join(source.folder, raster["name"])
    names = {item["name"] for item in source.outputs(".tif")}
    uris = {"classes": info.uri}
    if levels:
        if f"{raster['name']}_probability" not in names:
            raise BadInputError(
                f"The result {source.folder} kept no probabilities, so no threshold can be set.",
                f"Run {source.manifest.kind.removeprefix('outputs/')} with keep_probabilities, or leave the "
                "thresholds empty.",
            )
        uris["probability"] = f"{stem}_probability.tif"
        if f"{raster['name']}_alternatives" in names:
            uris["alternatives"] = f"{stem}_alternatives.tif"
    blocks = _blocks(uris, grid, levels, 0 if nodata is None else nodata)
    files = write_raster(folder / f"{name}.tif", grid, blocks, form)
    made = None
    if parameters.output_polygons:
        wishes = parameters.model_dump(mode="json", include=set(LayerParameters.model_fields))
        class_names = {item.value: item.name for item in source.classes}
        geometry, values = polygons_of_file(files.cog, nodata)
        package = next(item for item in source.manifest.inputs if item["role"] == "package")
        features = class_polygons(
            geometry,
            values,
            class_names,
            grid,
            wishes,
            package=f"{source.manifest.details['package']} {package['identity'][:12]}",
            run=key,
        )
        features = _with_sources(store, source, str(raster["name"]), features, outputs)
        made = write_features(folder, f"{name}_polygons", grid.crs_wkt, features, parameters.output_formats)
    outputs.put(files.cog, COG_TYPE)
    for path in files.side_cars:
        outputs.put(path, "application/xml")
    outputs.described.append(
        {
            "name": name,
            "path": files.cog.name,
            "media_type": COG_TYPE,
            "bounds": list(grid.bounds),
            "crs_wkt": grid.crs_wkt,
            "rows": grid.rows,
            "cols": grid.cols,
            "dtype": info.dtype,
            "pixels_per_class": {str(value): count for value, count in files.counts.items()},
        }
    )
    outputs.assets |= raster_assets(name, name, "Refined raster", grid, form)
    if made is not None:
        put_layer(outputs, f"{name}_polygons", grid.crs_wkt, made, {})
        for kind, asset in layer_assets(f"{name}_polygons", "Polygons", wishes).items():
            outputs.assets[f"{name}_polygons_{kind}"] = asset


def _with_sources(
    store: ObjectStore, source: Source, name: str, features: Features, outputs: Outputs
) -> Features:
    """The polygons with the rasters that they come from and their dates, as far as both can still be told."""
    plan = plan_of(store, source)
    planned = next((grid for grid in plan.grids if grid.name == name), None) if plan is not None else None
    if plan is None or planned is None:
        outputs.remarks.append(f"source_raster of the polygons of {name} is empty: the plan is gone.")
        return features
    place = planned.published
    middles = shapely.centroid(to_pixels(features.geometry, place))
    try:
        origins = origins_of(plan, place, middles)
        dates = dates_of(plan, origins)
    except (RasterError, NotFoundError) as error:
        outputs.remarks.append(f"source_raster of the polygons of {name} is empty: {error}")
        return features
    return replace(
        features, source_raster=origins, source_date=[None if uri is None else dates[uri] for uri in origins]
    )


def thresholds_of(parameters: RefineParameters, classes: Mapping[str, int]) -> dict[int | None, float]:
    """Lowest confidence by class value, that of all others under None; empty where there is none.

    Raises:
        BadInputError: a class that there is not.
    """
    levels: dict[int | None, float] = {}
    if parameters.threshold is not None:
        levels[None] = parameters.threshold
    for item in parameters.class_thresholds:
        if item.name not in classes:
            raise BadInputError(
                f"The result has no class {item.name!r}.", f"Use one of {', '.join(sorted(classes))}."
            )
        levels[classes[item.name]] = item.threshold
    return levels


def reclassified(
    classes: NDArray[Any],
    probability: NDArray[np.uint8],
    levels: Mapping[int | None, float],
    nodata: int,
) -> NDArray[Any]:
    """The first class by rank that reaches its threshold; nodata where none does.

    Args:
        classes: (ranks, rows, cols), class values.
        probability: (ranks, rows, cols), 255 is certain; 0 in the first rank says that no imagery is there.
        levels: see :func:`thresholds_of`.
        nodata: the output's.
    """
    result = np.full(classes.shape[1:], nodata, classes.dtype)
    decided = probability[0] == 0
    for values, shares in zip(classes, probability, strict=True):
        needed = np.full(values.shape, levels.get(None, 0.0) * 255)
        for value, level in levels.items():
            if value is not None:
                needed[values == value] = level * 255
        # Half a step: the probabilities were rounded.
        reached = ~decided & (shares + 0.5 >= needed)
        result[reached] = values[reached]
        decided |= reached
    return result


def _blocks(
    uris: Mapping[str, str], grid: Grid, levels: Mapping[int | None, float], nodata: int
) -> Iterator[tuple[Window, NDArray[Any]]]:
    with ExitStack() as stack:
        stack.enter_context(raster_environment(uris["classes"]))
        opened = {name: stack.enter_context(open_raster(uri)) for name, uri in uris.items()}
        for top in range(0, grid.rows, BLOCK):
            for left in range(0, grid.cols, BLOCK):
                window = Window(top, left, min(BLOCK, grid.rows - top), min(BLOCK, grid.cols - left))
                classes = _read(opened["classes"], window)
                if levels:
                    if "alternatives" in opened:
                        classes = np.concatenate([classes, _read(opened["alternatives"], window)])
                    yield window, reclassified(classes, _read(opened["probability"], window), levels, nodata)
                else:
                    yield window, classes[0]


def _read(dataset: DatasetReader, window: Window) -> NDArray[Any]:
    place = rasterio.windows.Window(window.col, window.row, window.cols, window.rows)
    values: NDArray[Any] = dataset.read(window=place)
    return values
