"""The whole of ``compute_accuracy``: inputs, scores, published folder. Plain Python, no server needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

from tasks.assess.areas import Area, area_of
from tasks.assess.inputs import Classes, read_detections, vector_files
from tasks.assess.object_accuracy import ObjectAccuracy, assess_objects
from tasks.assess.parameters import AccuracyParameters
from tasks.assess.pdf import to_pdf
from tasks.assess.pixel_accuracy import PixelAccuracy, assess_pixels
from tasks.assess.report import Row, details_of, object_rows, pixel_rows, to_html, to_json
from tasks.assess.tables import to_csv
from tasks.errors import BadInputError
from tasks.imagery import RasterInfo, expand_rasters, inspect_raster
from tasks.imagery.identity import identity_of_files, on_record
from tasks.labels.vector import VectorLabels, read_vector_labels, split_layer
from tasks.store import (
    Manifest,
    ObjectStore,
    Publication,
    check_allowed,
    join,
    output_folder,
    read_manifest,
    resolve_folder,
    run_key,
    set_current,
)

KIND = "outputs/compute_accuracy"
TABLE, DATA, REPORT, PDF = "accuracy.csv", "accuracy.json", "report.html", "report.pdf"
# Bumped by hand when the same inputs would give other numbers.
SEMANTICS = 2


@dataclass(frozen=True)
class AccuracyResult:
    """A published accuracy table.

    Attributes:
        folder_uri: where it lies.
        rows: one per class, and one for all, of objects and of pixels.
        details: what ``accuracy.json`` holds besides the rows.
        already_done: whether an earlier run had published it.
        objects: for pictures; None without detected objects or where it was done already.
        extents: the rasters of the areas, for pictures.
    """

    folder_uri: str
    rows: list[Row]
    details: dict[str, Any]
    already_done: bool
    objects: ObjectAccuracy | None
    extents: list[RasterInfo]


@dataclass(frozen=True)
class _Inputs:
    detections: list[str]
    rasters: list[RasterInfo]
    extents: list[RasterInfo]
    identities: list[dict[str, Any]]


def compute(
    store: ObjectStore, parameters: AccuracyParameters, provenance: Mapping[str, Any] | None = None
) -> AccuracyResult:
    """Score the results and publish the tables; the same inputs and parameters are scored once.

    Raises:
        NotFoundError: an input does not exist.
        BadInputError: inputs that cannot be scored, with the reason.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    inputs = _inspect(store, parameters)
    key = run_key(
        {
            "semantics": SEMANTICS,
            "parameters": parameters.model_dump(mode="json", exclude={"out_accuracy_table"}),
            "inputs": inputs.identities,
        }
    )
    name = parameters.out_accuracy_table
    folder = output_folder(KIND, name, key)
    if read_manifest(store, folder) is not None:
        content = json.loads(store.get(join(folder, DATA)))
        _point(store, name, folder)
        return AccuracyResult(folder, content.pop("rows"), content, True, None, inputs.extents)

    truth = read_vector_labels(parameters.ground_truth_features, parameters.ground_truth_class_value_field)
    classes = Classes(truth.schema)
    objects = _objects(parameters, inputs, truth, classes) if inputs.detections else None
    pixels = _pixels(parameters, inputs, truth) if inputs.rasters else None
    rows = (object_rows(objects, classes.names, parameters.min_iou) if objects else []) + (
        pixel_rows(pixels, classes.names) if pixels else []
    )
    details = details_of(objects, pixels, classes.names)
    shown = on_record(parameters.model_dump(mode="json"))

    publication = Publication(store, folder)
    page = to_html(rows, details, shown, objects, classes.names)
    files = [
        publication.put_file(TABLE, to_csv(rows), "text/csv"),
        publication.put_file(DATA, to_json(rows, details), "application/json"),
        publication.put_file(REPORT, page.encode(), "text/html"),
    ]
    if parameters.out_accuracy_report == "HTML_AND_PDF":
        pages = to_pdf(rows, details, shown, objects, classes.names)
        files.append(publication.put_file(PDF, pages, "application/pdf"))
    publication.finish(
        Manifest(
            kind=KIND,
            name=_short_name(name),
            run_key=key,
            parameters=shown,
            inputs=inputs.identities,
            versions={"chipline": version("chipline"), "semantics": SEMANTICS},
            parts=[publication.put_part("all", files)],
            details=details,
            provenance={
                "started": started,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                **(provenance or {}),
            },
        )
    )
    _point(store, name, folder)
    return AccuracyResult(folder, rows, details, False, objects, inputs.extents)


def _inspect(store: ObjectStore, parameters: AccuracyParameters) -> _Inputs:
    """Check what the parameters name before any heavy work."""
    vectors = [parameters.ground_truth_features, *parameters.detected_features]
    if parameters.mask_features:
        vectors.append(parameters.mask_features)
    for uri in vectors:
        check_allowed(split_layer(uri)[0])
    for uri in (*parameters.classified_raster, *parameters.extent_rasters):
        check_allowed(uri)
    detections = [file for uri in parameters.detected_features for file in vector_files(store, uri)]
    rasters = _rasters(store, parameters.classified_raster)
    extents = _rasters(store, parameters.extent_rasters)
    for info in (*rasters, *extents):
        # What a folder or a pattern expands to is bounded too.
        check_allowed(info.uri)
    files = [parameters.ground_truth_features, *detections]
    files += [parameters.mask_features] if parameters.mask_features else []
    identities: list[dict[str, Any]] = [
        {"uri": uri, "identity": identity_of_files([split_layer(uri)[0]], store)} for uri in files
    ]
    identities += [{"uri": info.uri, "identity": info.identity} for info in (*rasters, *extents)]
    return _Inputs(detections, rasters, extents, identities)


def _rasters(store: ObjectStore, named: list[str]) -> list[RasterInfo]:
    if not named:
        return []
    return [inspect_raster(uri) for uri in expand_rasters([folder_or_raster(store, uri) for uri in named])]


def folder_or_raster(store: ObjectStore, uri: str) -> str:
    """A folder with the slash that marks it, also where it is named without, or a name stands for it."""
    if "*" in uri or not (uri.endswith("/") or not PurePosixPath(uri).suffix):
        return uri
    return resolve_folder(store, uri) + "/"


def _objects(
    parameters: AccuracyParameters, inputs: _Inputs, truth: VectorLabels, classes: Classes
) -> ObjectAccuracy:
    layers = read_detections(inputs.detections, parameters.detected_class_value_field, classes)
    areas = [area_of(info) for info in inputs.extents] or [Area("everything", truth.crs_wkt, None)]
    result = assess_objects(
        layers,
        truth,
        areas,
        min_iou=parameters.min_iou,
        block_size=parameters.block_size,
        replicates=parameters.bootstrap_replicates,
        level=parameters.confidence_level,
        seed=parameters.seed,
        mask=_mask(parameters),
        mask_rule=parameters.mask_rule,
        further_iou=[iou for iou in dict.fromkeys(parameters.further_iou) if iou != parameters.min_iou],
    )
    if not any(part.matches.truth_counted.any() or part.matches.counted.any() for part in result.areas):
        raise BadInputError(
            "Neither a true nor a detected object lies in the rasters that bound the assessment.",
            "Check extent_rasters and mask_features against the truth's place and coordinate system.",
        )
    return result


def _pixels(parameters: AccuracyParameters, inputs: _Inputs, truth: VectorLabels) -> PixelAccuracy:
    return assess_pixels(
        inputs.rasters,
        truth,
        inputs.extents,
        block_size=parameters.block_size,
        replicates=parameters.bootstrap_replicates,
        level=parameters.confidence_level,
        seed=parameters.seed,
        mask=_mask(parameters),
    )


def _mask(parameters: AccuracyParameters) -> VectorLabels | None:
    return read_vector_labels(parameters.mask_features) if parameters.mask_features else None


def _is_name(name: str) -> bool:
    return "/" not in name


def _short_name(name: str) -> str:
    return name if _is_name(name) else PurePosixPath(name).name


def _point(store: ObjectStore, name: str, folder: str) -> None:
    """Let the name point at its newest table; an address of the caller's own has no name."""
    if _is_name(name):
        set_current(store, KIND, name, folder)
