"""Detected objects with another threshold, suppression and outlines, from the published layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd

from tasks.errors import BadInputError
from tasks.infer.candidates import above, confidence_scale
from tasks.infer.finish_features import put_layer
from tasks.infer.items import layer_assets
from tasks.infer.layer import taken
from tasks.infer.outputs import Outputs
from tasks.infer.outputs_features import OWN_FIELDS, Features, write_features
from tasks.infer.parameters_outputs import LayerParameters
from tasks.infer.parameters_refine import RefineParameters
from tasks.infer.planned import output_name
from tasks.infer.refine_pixels import thresholds_of
from tasks.infer.refine_source import Source
from tasks.infer.shaping import shaped
from tasks.infer.suppression import suppress
from tasks.labels.vector import read_frame
from tasks.store import join


def refine_layer(
    source: Source,
    parameters: RefineParameters,
    key: str,
    outputs: Outputs,
    folder: Path,
) -> None:
    """Put a layer of objects with another threshold into the result's folder; of a series, one per date.

    Raises:
        BadInputError: a threshold below that of what was kept; a class that the result does not have.
    """
    layers = [item for item in source.outputs(".parquet") if item.get("content") != "changes"]
    for date in dict.fromkeys(item.get("date", "") for item in layers):
        of_date = [item for item in layers if item.get("date", "") == date]
        name = output_name(parameters.output_name) + (f"_{date}" if date else "")
        _refine_one(source, of_date, parameters, name, key, outputs, folder)


def _refine_one(
    source: Source,
    layers: Sequence[Mapping[str, Any]],
    parameters: RefineParameters,
    name: str,
    key: str,
    outputs: Outputs,
    folder: Path,
) -> None:
    # A layer may have been given a name that ends so itself.
    asked = source.manifest.details.get("candidates")
    ends = [item for item in layers if item["name"].endswith("_candidates")] if asked else []
    candidates = max(ends, key=lambda item: len(item["name"]), default=None)
    chosen = candidates or layers[0]
    features = features_of(read_frame(join(source.folder, chosen["path"])), chosen["fields"])
    numbers = {item.name: number for number, item in enumerate(source.classes)}
    levels = thresholds_of(parameters, numbers)
    _check_floor(source, levels, candidates is not None)
    if candidates is not None and None not in levels:
        levels[None] = _asked(source)
    before = len(features.geometry)
    features = taken(features, np.flatnonzero(_reached(features, levels, numbers)))
    suppressed = source.manifest.parameters
    # A layer that was suppressed stays so, unless other parameters of suppression are given.
    ratio = None
    if parameters.run_nms:
        ratio = parameters.max_overlap_ratio
    elif candidates is not None and suppressed.get("run_nms"):
        ratio = float(suppressed["max_overlap_ratio"])
    if ratio is not None and len(features.geometry):
        stays = suppress(
            features.geometry, features.confidence, list(features.class_name), max_overlap_ratio=ratio
        )
        features = taken(features, np.flatnonzero(stays))
    crs_wkt = chosen["crs_wkt"]
    wishes = parameters.model_dump(mode="json", include=set(LayerParameters.model_fields))
    kept, outlines = shaped(features.geometry, crs_wkt, wishes)
    features = replace(taken(features, kept), geometry=outlines, run=key)
    files = write_features(folder, name, crs_wkt, features, parameters.output_formats)
    put_layer(outputs, name, crs_wkt, files, {"objects_before_refining": before})
    for kind, asset in layer_assets(name, "Objects", wishes).items():
        outputs.assets[f"{name}_{kind}"] = asset


def features_of(frame: geopandas.GeoDataFrame, fields: dict[str, Any]) -> Features:
    """The features of a published layer, with the function's own fields.

    Args:
        frame: the layer.
        fields: types by field, as the manifest states them.
    """
    extra_types = {name: kind for name, kind in fields.items() if name not in OWN_FIELDS}

    def column(name: str) -> list[Any]:
        return [None if pd.isna(value) else value for value in frame[name].tolist()]

    return Features(
        geometry=np.asarray(frame.geometry.array, dtype=object),
        class_name=column("Class"),
        class_value=column("Classvalue"),
        confidence=np.array(column("Confidence"), np.float64),
        source_raster=column("source_raster"),
        extra={name: column(name) for name in extra_types},
        extra_types=extra_types,
        source_date=column("source_date"),
        package=next(iter(column("package")), ""),
    )


def _reached(features: Features, levels: dict[int | None, float], numbers: dict[str, int]) -> Any:
    scale = confidence_scale(features.confidence)
    reached = np.ones(len(features.geometry), np.bool_)
    if None in levels:
        reached = above(features.confidence, levels[None], scale)
    names = np.asarray(features.class_name, dtype=object)
    for name, number in numbers.items():
        if number in levels:
            here = names == name
            reached[here] = above(features.confidence[here], levels[number], scale)
    return reached


def _asked(source: Source) -> float:
    finishing: dict[str, Any] = source.manifest.details.get("candidates") or {}
    return float(finishing["threshold"])


def _check_floor(source: Source, levels: dict[int | None, float], kept: bool) -> None:
    given = source.manifest.parameters
    arguments = source.manifest.details["arguments"]
    floor = given.get("candidate_threshold") if kept else arguments.get("threshold")
    lowest = min(levels.values(), default=None)
    if floor is None or lowest is None or lowest >= float(floor):
        return
    raise BadInputError(
        f"The result holds objects down to a confidence of {float(floor):g}, and {lowest:g} is asked for.",
        "Give a higher threshold, or detect again with keep_candidates and a lower candidate_threshold.",
    )
