"""The plan of an inference: collection -> target grids -> shards -> keys -> parts. No pixel is read here.

All that can be wrong with the input is found here, before heavy work starts; the plan is one JSON document
that the parts and the finish work from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tasks.errors import BadInputError, DeviceError, PackageError
from tasks.host.devices import visible_gpus
from tasks.imagery import Grid, RasterInfo, Window, grid_of_collection, inspect_raster
from tasks.imagery.collection import bounds_in, check_one_piece, crs_name, list_rasters, same_crs
from tasks.imagery.identity import on_record, unsigned
from tasks.infer.candidates import THRESHOLD
from tasks.infer.change import bands_of_pair, is_for_pairs
from tasks.infer.describe import FunctionDescription, function_arguments
from tasks.infer.execution import chosen_engine
from tasks.infer.features import (
    FeatureInput,
    FeatureLayer,
    features_of_images,
    features_of_layer,
    planned_crops,
)
from tasks.infer.finishing import check_fields, finishing_of
from tasks.infer.fit import Samples, agreed_bands, check_fit, rescaling_for, separately, target_sr
from tasks.infer.image_grids import check_image_space, each_image, image_grid, in_image_space, seen_as
from tasks.infer.image_rasters import map_grid
from tasks.infer.mask import MaskPolygons, misses
from tasks.infer.operators import pixel_format
from tasks.infer.parameters import (
    ClassifyObjectsParameters,
    ClassifyPixelsParameters,
    DetectChangeParameters,
    InferenceTool,
    ProcessorType,
    Tool,
)
from tasks.infer.parts import plan_parts
from tasks.infer.pictures import PICTURE_TYPES, picture_format
from tasks.infer.planned import (
    MapGrid,
    Plan,
    PlannedClass,
    PlannedGrid,
    PlannedPackage,
    Processor,
    output_name,
)
from tasks.infer.score_layout import scoring_for
from tasks.infer.series import by_date, check_series, covered, groups_by_date, name_of_date, series_remarks
from tasks.infer.shards import (
    SEMANTICS_VERSION,
    Footprint,
    Shard,
    plan_shards,
    tiles_per_shard,
)
from tasks.labels.sources import split_layer
from tasks.package import Package
from tasks.package.builtin import function_identity
from tasks.parameters import arguments_as_dict
from tasks.store import check_allowed, output_folder, run_key

LARGEST_OUTPUT_PIXELS = 100_000_000_000
INSPECTED_AT_ONCE = 16
PRECISION = "float32"
CANDIDATES = (1, 2)

PANOPTIC = "PanopticSegmenter"
_PANOPTIC_FUNCTION = "ChiplinePanopticSegmenter.py"
_MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    "classify_pixels": ("ImageClassification", PANOPTIC, *PICTURE_TYPES),
    "detect_objects": ("ObjectDetection", "InstanceDetection", PANOPTIC),
    "detect_change": ("ImageClassification",),
    "classify_objects": ("ObjectClassification",),
}


def check_addresses(parameters: InferenceTool) -> None:
    """Refuse addresses that a caller may not name, before any of them is touched.

    Raises:
        BadInputError: an address outside of the allowed roots.
    """
    for uri in parameters.imagery:
        check_allowed(uri)
    if parameters.mask is not None:
        check_allowed(split_layer(parameters.mask)[0])
    if parameters.snap_raster is not None:
        check_allowed(parameters.snap_raster)
    if isinstance(parameters, ClassifyObjectsParameters) and parameters.in_features is not None:
        check_allowed(split_layer(parameters.in_features)[0])
    if not parameters.model.startswith("models:/"):
        check_allowed(parameters.model)
    # Only for its refusals: the run key is not known yet.
    output_folder(f"outputs/{parameters.tool}", parameters.output, "key")


def inspect_collection(inputs: Sequence[str], *, candidates_only: bool = False) -> list[RasterInfo]:
    """What the rasters are, in the collection's order; many at once, since each is a round trip.

    Args:
        inputs: see :func:`tasks.imagery.expand_rasters`.
        candidates_only: only items whose attribute Candidate is 1 or 2.

    Raises:
        NotFoundError, RasterError, BadInputError: see ``tasks.imagery``.
    """
    listed = list_rasters(inputs)
    if candidates_only:
        listed = [raster for raster in listed if raster.candidate in CANDIDATES]
        if not listed:
            raise BadInputError(
                "No item of the imagery has the attribute Candidate with the value 1 or 2.",
                "Name STAC items or GeoParquet of items that have it, or take another processing_mode.",
            )
    with ThreadPoolExecutor(min(INSPECTED_AT_ONCE, len(listed))) as pool:
        infos = list(pool.map(inspect_raster, [raster.uri for raster in listed]))
    return [
        info if raster.acquired is None else info.model_copy(update={"acquired": raster.acquired})
        for info, raster in zip(infos, listed, strict=True)
    ]


def choose_processor(wanted: ProcessorType, workers_have: ProcessorType = "AUTO") -> Processor:
    """The device class that the parts are planned for.

    Args:
        wanted: the tool's ``processor_type``.
        workers_have: what the workers of pool ``gpu`` have, as the operator says; AUTO: what this
            machine has.

    Raises:
        DeviceError: a GPU is asked for and is not there.
    """
    if wanted == "CPU":
        return "CPU"
    there = workers_have if workers_have != "AUTO" else ("GPU" if visible_gpus() else "CPU")
    if wanted == "GPU" and there != "GPU":
        raise DeviceError(
            "processor_type is GPU, and there is no GPU that this process may use.",
            "Take processor_type AUTO or CPU, or start the workers on a machine with a GPU "
            "(CHIPLINE_WORKER_PROCESSOR=GPU says that they have one where the planning machine has none).",
        )
    return "GPU" if there == "GPU" else "CPU"


def check_package(package: Package, tool: Tool) -> None:
    """Refuse a package that is for another tool.

    Raises:
        PackageError: another model type, or no classes.
    """
    kind = package.definition.model_type
    if kind not in _MODEL_TYPES[tool]:
        fitting = [name for name, kinds in _MODEL_TYPES.items() if kind in kinds]
        remedy = f"Use {fitting[0]} for it." if fitting else "No tool applies packages of this type yet."
        raise PackageError(
            f"The package {package.name} is of type {kind}, which {tool} does not apply.", remedy
        )
    if kind == PANOPTIC and package.definition.inference_function != _PANOPTIC_FUNCTION:
        raise PackageError(
            f"The package {package.name} is of type {kind} and was not made here; no tool applies such "
            "packages yet.",
            "Train a MASK2FORMER on its training data.",
        )
    if tool == "classify_pixels" and is_for_pairs(package):
        raise PackageError(
            f"The package {package.name} compares two dates, and classify_pixels reads one.",
            "Use detect_change for it.",
        )
    if not package.definition.classes and kind not in PICTURE_TYPES:
        raise PackageError(
            f"The package {package.name} lists no classes.", "Add Classes to its model definition (.emd)."
        )


def make_plan(parameters: InferenceTool, **given: Any) -> Plan:
    """The plan alone, see :func:`plan_with_features`."""
    return plan_with_features(parameters, **given)[0]


def plan_with_features(
    parameters: InferenceTool,
    *,
    rasters: Sequence[RasterInfo],
    after: Sequence[RasterInfo] = (),
    package: Package,
    package_uri: str,
    description: FunctionDescription,
    processor: Processor,
    samples: Samples = (),
    asked_threshold: float | None = None,
    layer: FeatureLayer | None = None,
    mask: MaskPolygons | None = None,
    snap: RasterInfo | None = None,
    workers: int = 0,
) -> tuple[Plan, FeatureInput | None]:
    """The plan, from checked parts, and the objects that classify_objects works on.

    Nothing is read from or written to the store.

    Args:
        parameters: the tool's parameters.
        rasters: the imagery, in order; of a change detection the first date's.
        after: the second date's.
        package: what is applied.
        package_uri: where it lies.
        description: of its function.
        processor: device class of the workers.
        samples: a look into the rasters of both dates, see ``tasks.infer.fit``; empty: nothing was read.
        asked_threshold: of the layer, where the function's own is lowered for candidates, which are kept.
        layer: the features of classify_objects; None where each image is one object.
        mask: polygons that results must lie in.
        snap: raster whose cells the output's are aligned to.
        workers: that are there for parts; 0 where nobody knows.

    Raises:
        BadInputError: imagery that does not fit the package or the parameters.
        PackageError: a package that asks for what the engine cannot give.
    """
    tool = parameters.tool
    check_package(package, tool)
    classes = [
        PlannedClass(value=item.value, name=item.name, color=item.color)
        for item in package.definition.classes or []
    ]
    geometry = description.geometry
    after_bands: list[int] = []
    if tool == "detect_change":
        bands, after_bands, fit = bands_of_pair(
            parameters, package, description.extract_bands, rasters, after, samples
        )
    else:
        fit = check_fit(parameters, package.definition, seen_as(parameters, rasters), samples)
        bands = agreed_bands(fit, package, description, rasters)
    rescaling = rescaling_for(description.data_range, [*rasters, *after], bands, samples)
    remarks = [*fit.remarks, *([] if rescaling is None else [rescaling.remark])]
    output_format = None
    if tool in ("classify_pixels", "detect_change"):
        values = [item.value for item in classes]
        output_format = (
            picture_format(description.output_dtype, description.output_bands)
            if package.definition.model_type in PICTURE_TYPES
            else pixel_format(description.output_dtype, values, description.output_nodata)
        )
        check_series(parameters, package.name, output_format, values)
    scoring = None
    if isinstance(parameters, (ClassifyPixelsParameters, DetectChangeParameters)) and output_format:
        if parameters.output_polygons and output_format.of_values:
            raise BadInputError(
                f"The function of {package.name} gives values, not classes, and values make no polygons.",
                "Leave output_polygons off.",
            )
        scoring = scoring_for(
            parameters, description.scores, description.no_scores, geometry, output_format.dtype
        )
    features: FeatureInput | None = None
    if isinstance(parameters, ClassifyObjectsParameters) and layer is None:
        features, grids = features_of_images(
            parameters, rasters, planned_crops(parameters, package, description)
        )
    else:
        grids = _plan_grids(parameters, rasters, after, fit.cell_sizes, mask, snap)
    if isinstance(parameters, ClassifyObjectsParameters) and layer is not None:
        crops = planned_crops(parameters, package, description)
        features = features_of_layer(parameters, layer, grids, crops, mask)
    if features is not None:
        remarks += features.remarks
    remarks += series_remarks(parameters, rasters, grids)
    arguments = function_arguments(package, arguments_as_dict(parameters.model_arguments))
    arguments |= chosen_engine(description)
    if asked_threshold is not None:
        arguments[THRESHOLD] = str(description.scalars[THRESHOLD])
    shards: list[Shard] = []
    for number, planned in enumerate(grids):
        block = rasters[planned.rasters[0]].block_shape
        tiles = (
            tiles_per_shard(geometry.rows, block[0], parameters.shard_size),
            tiles_per_shard(geometry.cols, block[1], parameters.shard_size),
        )
        base_key = run_key(
            {
                "semantics": SEMANTICS_VERSION,
                "tool": tool,
                "package": package.digest,
                **function_identity(package.definition),
                "arguments": description.scalars,
                "grid": planned.grid.to_dict(),
                "region": planned.region,
                "geometry": geometry.model_dump(),
                "tiles": tiles,
                "bands": [bands, after_bands] if after_bands else bands,
                "pixels": None if output_format is None else output_format.identity,
                **({} if scoring is None else {"scores": scoring.model_dump()}),
                **({} if rescaling is None else {"rescaling": rescaling.model_dump()}),
                **({} if features is None else {"crops": features.crops.decides_pixels}),
                # Which features a mask leaves is in the shards themselves.
                **({} if mask is None or features is not None else {"mask": mask.digest}),
                "device": processor,
                "precision": str(description.scalars.get("precision", PRECISION)).lower(),
                "batch": [
                    len(bands) + len(after_bands),
                    geometry.rows + 2 * geometry.padding,
                    geometry.cols + 2 * geometry.padding,
                ],
            }
        )
        everything = [*rasters, *after]
        footprints = [
            Footprint(Window(*window), everything[index].identity)
            for index, window in zip(planned.rasters, planned.footprints, strict=True)
        ]
        after_footprints = [
            Footprint(Window(*window), f"after {everything[index].identity}")
            for index, window in zip(planned.after, planned.after_footprints, strict=True)
        ]
        if features is not None:
            shards += features.shards(number, footprints, base_key, features.per_shard(parameters.shard_size))
            continue
        made = plan_shards(
            grid=number,
            region=Window(*planned.region),
            geometry=geometry,
            tiles=tiles,
            footprints=footprints,
            after=after_footprints if tool == "detect_change" else None,
            base_key=base_key,
            grid_window=planned.grid.window,
            margin=0 if scoring is None else scoring.margin,
        )
        if mask is not None and made:
            touched = mask.on_grid(planned.grid).touches([one.target for one in made])
            made = [one for one, there in zip(made, touched.tolist(), strict=True) if there]
        shards += made
    if not shards and features is None:
        if mask is not None:
            raise misses(mask.uri)
        raise BadInputError(
            "No imagery lies in the extent.", "Give an extent that touches a raster, or leave it empty."
        )
    finishing = finishing_of(parameters)
    if features is not None:
        finishing |= {"features": features.digest, **features.crops.fields}
    if asked_threshold is not None:
        finishing["candidates"] = {"threshold": asked_threshold}
    check_fields(finishing.get("suppression"), description)
    key = run_key(
        {
            "tool": tool,
            "shards": [shard.key for shard in shards],
            "finishing": finishing,
            "items": [grid.name for grid in grids],
            "sources": [unsigned(info.uri) for info in [*rasters, *after]],
        }
    )
    plan = Plan(
        tool=tool,
        output=parameters.output,
        folder=output_folder(f"outputs/{tool}", parameters.output, key),
        run_key=key,
        # A signed address is a credential; what goes on record is the address alone.
        parameters=on_record(parameters.model_dump(mode="json")),
        finishing=finishing,
        rasters=[*rasters, *after],
        package=PlannedPackage(
            uri=package_uri,
            name=package.name,
            digest=package.digest,
            foreign=not package.made_here,
            trust=package.trust.text if package.trust is not None else "",
            classes=classes,
        ),
        arguments=arguments,
        description=description,
        geometry=geometry,
        extract_bands=bands,
        after_bands=after_bands,
        pixel_format=output_format,
        scoring=scoring,
        rescaling=rescaling,
        crops=None if features is None else features.crops,
        mask="" if mask is None else mask.digest,
        processor=processor,
        grids=grids,
        shards=shards,
        parts=plan_parts(
            parameters, shards, geometry, processor=processor, workers=workers, crops=features is not None
        ),
        cut="auto" if parameters.shards_per_part is None else "given",
        remarks=remarks,
    )
    return plan, features


def _plan_grids(
    parameters: InferenceTool,
    rasters: Sequence[RasterInfo],
    after: Sequence[RasterInfo],
    cell_sizes: Sequence[float | None],
    mask: MaskPolygons | None,
    snap: RasterInfo | None,
) -> list[PlannedGrid]:
    apart = separately(parameters)
    code = target_sr(parameters)
    out_sr = None if code is None else f"EPSG:{code}"
    dates = dict(groups_by_date(parameters, rasters)) if by_date(parameters) else {}
    if dates:
        groups = list(dates.items())
    elif not apart:
        groups = [(output_name(parameters.output), list(range(len(rasters))))]
    else:
        names = _distinct_names([PurePosixPath(urlsplit(info.uri).path).stem for info in rasters])
        groups = [(name, [index]) for index, name in enumerate(names)]
    if in_image_space(parameters):
        check_image_space(parameters, rasters, apart=apart)
        return _image_grids(parameters, rasters, [name for name, _ in groups])
    planned, grid = [], None
    for name, indices in groups:
        infos = [rasters[index] for index in indices]
        # Dates are compared cell by cell: all of them lie on the grid of the whole collection.
        if grid is None or not dates:
            own = cell_sizes[0 if dates else indices[0]]
            cell_size = parameters.cell_size if parameters.cell_size is not None else own
            on = rasters if dates else infos
            grid = grid_of_collection(on, out_sr=out_sr, cell_size=cell_size, snap=snap)
        footprints = [grid.window_of_bounds(bounds_in(info, grid.crs_wkt)) for info in infos]
        region = _region(grid, parameters.extent, infos)
        if dates:
            region = region.intersection(covered(footprints))
        places = [_place(info, grid) for info in after]
        if after:
            region = _common_region(grid, region, places)
        if mask is not None and not region.is_empty:
            assert grid.crs_wkt is not None
            region = region.intersection(mask.on_grid(grid).window)
            if region.is_empty and not apart and not dates:
                raise misses(mask.uri)
        if region.is_empty:
            if not apart and not dates:
                raise _extent_misses(grid, parameters.extent)
            continue  # of many items or dates, an extent need not touch each
        _check_size(name, region.rows, region.cols)
        assert grid.crs_wkt is not None  # grid_of_collection refuses rasters without
        _check_one_piece(grid, region, footprints)
        planned.append(
            PlannedGrid(
                name=name_of_date(parameters, name) if dates else name,
                date=name if dates else "",
                crs_wkt=grid.crs_wkt,
                transform=grid.transform,
                rows=grid.rows,
                cols=grid.cols,
                region=(region.row, region.col, region.rows, region.cols),
                rasters=indices,
                footprints=[(item.row, item.col, item.rows, item.cols) for item in footprints],
                after=list(range(len(rasters), len(rasters) + len(after))),
                after_footprints=[(item.row, item.col, item.rows, item.cols) for item in places],
            )
        )
    if not planned:
        raise BadInputError(
            f"The extent {parameters.extent} touches none of the {len(rasters)} rasters.",
            "Give it in the coordinates of the rasters, as xmin, ymin, xmax, ymax, or leave it empty.",
        )
    return planned


def _image_grids(
    parameters: InferenceTool, rasters: Sequence[RasterInfo], names: Sequence[str]
) -> list[PlannedGrid]:
    """A grid per raw image, and where the raster of its classes comes to lie."""
    places: list[MapGrid | None] = [None] * len(rasters)
    if isinstance(parameters, ClassifyPixelsParameters):
        places = each_image(partial(map_grid, out_sr=parameters.out_sr), rasters)
    for info, place in zip(rasters, places, strict=True):
        if place is not None:
            _check_size(info.address, place.rows, place.cols)
        elif isinstance(parameters, ClassifyPixelsParameters) and parameters.output_polygons:
            raise BadInputError(
                f"{info.address} does not say where it lies, and polygons need a map.",
                "Leave output_polygons off, or give a raster with RPCs, control points or a georeference.",
            )
    return [
        image_grid(name, number, info, place)
        for number, (name, info, place) in enumerate(zip(names, rasters, places, strict=True))
    ]


def _check_one_piece(grid: Grid, region: Window, footprints: Sequence[Window]) -> None:
    computed = [footprint.intersection(region) for footprint in footprints]
    assert grid.crs_wkt is not None
    check_one_piece(grid.crs_wkt, [grid.window_bounds(item) for item in computed if not item.is_empty])


def _check_size(name: str, rows: int, cols: int) -> None:
    if rows * cols > LARGEST_OUTPUT_PIXELS:
        raise BadInputError(
            f"The output {name} would have {rows} x {cols} pixels, more than {LARGEST_OUTPUT_PIXELS}.",
            "Give a smaller extent or a larger cell_size, or process the items separately.",
        )


def _place(info: RasterInfo, grid: Grid) -> Window:
    """Where a raster of the second date may lie on the first one's grid; it may lie outside."""
    bounds = bounds_in(info, grid.crs_wkt, within=grid.bounds)
    # A cell more on each side, as for reading: in another reference system edges are curved.
    exact = same_crs(info.crs_wkt, grid.crs_wkt)
    return grid.window_of_bounds(bounds).expand(0 if exact else 1)


def _common_region(grid: Grid, region: Window, places: Sequence[Window]) -> Window:
    """The part of the region within the second date's joint extent.

    Raises:
        BadInputError: the two dates lie apart.
    """
    row, col = min(item.row for item in places), min(item.col for item in places)
    row_stop, col_stop = max(item.row_stop for item in places), max(item.col_stop for item in places)
    whole = Window(row, col, row_stop - row, col_stop - col)
    if not any(not item.intersection(grid.window).is_empty for item in places):
        raise BadInputError(
            "The imagery of from_raster and of to_raster do not overlap: they cover "
            f"{_listed(grid.bounds)} and {_listed(grid.window_bounds(whole))} in {crs_name(grid.crs_wkt)}.",
            "Give imagery of the same ground for both dates, and check their coordinate systems.",
        )
    return region.intersection(whole)


def _region(grid: Grid, extent: Sequence[float] | None, infos: Sequence[RasterInfo]) -> Window:
    if extent is None:
        return grid.window
    if not all(math.isfinite(value) for value in extent):
        raise BadInputError(
            f"The extent {list(extent)} of {len(infos)} rasters is not finite.", "Give four finite numbers."
        )
    xmin, ymin, xmax, ymax = extent
    return grid.window_of_bounds((xmin, ymin, xmax, ymax)).intersection(grid.window)


def _extent_misses(grid: Grid, extent: Sequence[float] | None) -> BadInputError:
    return BadInputError(
        f"The extent {extent} does not touch the imagery, which covers {_listed(grid.bounds)}.",
        "Give it in the coordinates of the target grid, as xmin, ymin, xmax, ymax, or leave it empty.",
    )


def _listed(bounds: Sequence[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in bounds)


def _distinct_names(stems: Sequence[str]) -> list[str]:
    taken: set[str] = set()
    names = []
    for stem in stems:
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names
