"""From a tool's parameters to its plan: addresses, imagery, package, device, function; in this order."""

from __future__ import annotations

from tasks.imagery import inspect_raster
from tasks.infer.candidates import THRESHOLD, asked_threshold
from tasks.infer.dates import dated
from tasks.infer.describe import describe, function_arguments
from tasks.infer.execution import engine_arguments
from tasks.infer.features import read_layer
from tasks.infer.fit import check_fit, sample_collection
from tasks.infer.image_grids import seen_as
from tasks.infer.mask import TABLE as MASK_TABLE
from tasks.infer.mask import read_mask
from tasks.infer.parameters import (
    ClassifyObjectsParameters,
    DetectChangeParameters,
    DetectObjectsParameters,
    InferenceTool,
)
from tasks.infer.plan import (
    check_addresses,
    check_package,
    choose_processor,
    inspect_collection,
    plan_with_features,
)
from tasks.infer.planned import Plan
from tasks.infer.series import asks_for_dates
from tasks.package.fetch import fetch_package
from tasks.parameters import arguments_as_dict
from tasks.settings import settings
from tasks.store import ObjectStore, join


def prepare(parameters: InferenceTool, store: ObjectStore, *, workers: int = 0) -> Plan:
    """The plan of a tool's run. Cheap checks come first; only the last step may start a process.

    Args:
        parameters: the tool's parameters.
        store: where packages lie, and plans go.
        workers: that are there for parts; 0 where nobody knows.

    Raises:
        BadInputError, NotFoundError, RasterError, PackageError, DeviceError: bad input, in one message.
    """
    check_addresses(parameters)
    if isinstance(parameters, DetectChangeParameters):
        rasters = inspect_collection(parameters.from_raster)
        after = inspect_collection(parameters.to_raster)
    else:
        candidates_only = parameters.processing_mode == "PROCESS_CANDIDATE_ITEMS_ONLY"
        rasters, after = inspect_collection(parameters.input_raster, candidates_only=candidates_only), []
    if asks_for_dates(parameters):
        rasters = dated(rasters, getattr(parameters, "date_in_name", None))
    uri = package_uri(parameters.model)
    package = fetch_package(uri, store)
    check_package(package, parameters.tool)
    samples = sample_collection([*rasters, *after])
    if not after:
        check_fit(
            parameters, package.definition, seen_as(parameters, rasters), samples
        )  # refused before any function starts
    processor = choose_processor(parameters.processor_type, settings().worker_processor)
    arguments = function_arguments(package, arguments_as_dict(parameters.model_arguments))
    arguments |= engine_arguments(
        package,
        arguments,
        engine=parameters.execution_engine,
        precision=parameters.precision,
        processor=processor,
        pixels=sum(info.width * info.height for info in rasters),
    )
    asked = None
    if isinstance(parameters, DetectObjectsParameters) and parameters.keep_candidates:
        first = describe(package, arguments, store, foreign=not package.made_here)
        asked = asked_threshold(first, parameters.candidate_threshold)
        arguments[THRESHOLD] = str(parameters.candidate_threshold)
    mask = None if parameters.mask is None else read_mask(parameters.mask)
    snap = None if parameters.snap_raster is None else inspect_raster(parameters.snap_raster)
    layer = None
    if isinstance(parameters, ClassifyObjectsParameters) and parameters.in_features is not None:
        layer = read_layer(store, parameters.in_features)
    plan, features = plan_with_features(
        parameters,
        rasters=rasters,
        after=after,
        package=package,
        package_uri=uri,
        description=describe(package, arguments, store, foreign=not package.made_here),
        processor=processor,
        samples=samples,
        asked_threshold=asked,
        layer=layer,
        mask=mask,
        snap=snap,
        workers=workers,
    )
    if mask is not None:
        store.put(join(plan.folder, MASK_TABLE), mask.to_bytes())
    if features is not None and plan.crops is not None:
        store.put(join(plan.folder, plan.crops.table), features.table)
    return plan


def package_uri(model: str) -> str:
    """The package's URI; a registered model's is asked of the registry."""
    if not model.startswith("models:/"):
        return model
    # MLflow is loaded only where a registered model is named.
    from tasks.tracking import resolve_model

    return resolve_model(model)
