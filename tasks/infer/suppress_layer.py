"""Non Maximum Suppression of a published or brought layer: read, thin out, publish."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.assess.inputs import vector_files
from tasks.errors import BadInputError
from tasks.imagery.identity import identity_of_files, on_record, unsigned
from tasks.infer.items import ITEM
from tasks.infer.outputs_formats import write_formats
from tasks.infer.outputs_tables import field_named, write_table
from tasks.infer.parameters_suppression import SuppressionParameters
from tasks.infer.planned import output_name
from tasks.infer.stac import GEOPACKAGE_TYPE, GEOPARQUET_TYPE, Lineage, ResultAsset, stac_item
from tasks.infer.suppression import suppress
from tasks.labels.sources import source_files
from tasks.labels.vector import read_frame, split_layer
from tasks.store import (
    Manifest,
    ObjectStore,
    Publication,
    check_allowed,
    output_folder,
    read_manifest,
    run_key,
    set_current,
)

KIND = "outputs/non_maximum_suppression"
CLASS_FIELDS = ("classvalue", "value")
# Raised by hand when the result of an unchanged layer changes.
SEMANTICS = 2


@dataclass(frozen=True)
class Suppressed:
    """The published layer: its folder, what is in it, and whether an earlier run had published it."""

    folder: str
    details: dict[str, Any]
    already_done: bool


def suppress_layer(
    store: ObjectStore, parameters: SuppressionParameters, provenance: Mapping[str, Any] | None = None
) -> Suppressed:
    """Suppress and publish; the same layer and parameters are done once.

    Features without geometry overlap nothing: they stay and are counted.

    Raises:
        NotFoundError, LabelError: the layer cannot be read.
        BadInputError: a field that it does not have, or confidences that are no numbers.
    """
    check_allowed(split_layer(parameters.in_features)[0])
    files = vector_files(store, parameters.in_features)
    if len(files) > 1:
        raise BadInputError(
            f"{parameters.in_features} holds several layers: {', '.join(files)}.", "Name one of them."
        )
    identity = identity_of_files(source_files(files[0]), store)
    key = run_key(
        {
            "tool": "non_maximum_suppression",
            "semantics": SEMANTICS,
            "parameters": parameters.model_dump(mode="json", exclude={"in_features", "out_features"}),
            "layer": [split_layer(files[0])[1], identity],
            "name": output_name(parameters.out_features),
        }
    )
    folder = output_folder(KIND, parameters.out_features, key)
    manifest = read_manifest(store, folder)
    already_done = manifest is not None
    if manifest is None:
        manifest = _published(store, parameters, files[0], identity, folder, dict(provenance or {}))
    if "/" not in parameters.out_features:
        set_current(store, KIND, parameters.out_features, folder)
    return Suppressed(folder, manifest.details, already_done)


def _published(
    store: ObjectStore,
    parameters: SuppressionParameters,
    uri: str,
    identity: str,
    folder: str,
    provenance: dict[str, Any],
) -> Manifest:
    frame = read_frame(uri)
    stays = suppressed(frame, parameters)
    name = output_name(parameters.out_features)
    publication = Publication(store, folder)
    with tempfile.TemporaryDirectory(prefix="chipline-nms-") as scratch:
        left = frame[stays].reset_index(drop=True)
        files = write_table(Path(scratch), name, left)
        written = [
            (files.geoparquet, GEOPARQUET_TYPE),
            (files.geopackage, GEOPACKAGE_TYPE),
            *write_formats(Path(scratch), name, left, parameters.output_formats),
        ]
        records = [publication.put_file(path.name, path, kind) for path, kind in written]
        outputs = [{"path": path.name, "media_type": kind} for path, kind in written]
        records.append(publication.put_file(f"{name}.stac.json", _item(left, parameters, uri, outputs), ITEM))
    missing = frame.geometry.isna() | frame.geometry.is_empty
    details = {
        "objects_before_suppression": len(frame),
        "objects": int(stays.sum()),
        "without_geometry": int(missing.sum()),
        "outputs": outputs,
    }
    return publication.finish(
        Manifest(
            kind=KIND,
            name=name,
            run_key=publication.folder_uri.rsplit("/", 1)[-1],
            parameters=on_record(parameters.model_dump(mode="json")),
            inputs=[{"role": "layer", "uri": unsigned(uri), "identity": identity}],
            versions={"chipline": version("chipline"), "semantics": SEMANTICS},
            parts=[publication.put_part("outputs", records)],
            details=details,
            provenance=provenance,
        )
    )


def _item(
    frame: geopandas.GeoDataFrame,
    parameters: SuppressionParameters,
    uri: str,
    outputs: Sequence[Mapping[str, str]],
) -> bytes:
    name = output_name(parameters.out_features)
    xmin, ymin, xmax, ymax = frame.total_bounds.tolist()
    # A single point covers nothing, and nothing has no bounds: neither has a footprint.
    placed = frame.crs is not None and xmin < xmax and ymin < ymax
    made = stac_item(
        name,
        crs_wkt=str(frame.crs.to_wkt()) if placed else None,
        footprints=[(xmin, ymin, xmax, ymax)] if placed else [],
        created=datetime.now(UTC),
        assets={
            item["path"]: ResultAsset(f"./{item['path']}", item["media_type"], item["path"])
            for item in outputs
        },
        lineage=Lineage(
            inputs=[unsigned(uri)],
            package_uri="",
            package_digest="",
            software={"chipline": version("chipline")},
            parameters=on_record(parameters.model_dump(mode="json")),
            kind="layer",
        ),
        title=f"Without what overlaps: {name}",
    )
    return (json.dumps(made, indent=1) + "\n").encode()


def suppressed(frame: geopandas.GeoDataFrame, parameters: SuppressionParameters) -> NDArray[np.bool_]:
    """Which rows of the layer stay.  # (rows,), bool

    Raises:
        BadInputError: a field that it does not have, or confidences that are no numbers.
    """
    names = [str(column) for column in frame.columns if column != frame.geometry.name]
    confidence = field_named(names, parameters.confidence_score_field)
    if confidence is None:
        raise _no_field(parameters.confidence_score_field, "confidence_score_field", names)
    kind = None
    if parameters.class_value_field is not None:
        kind = field_named(names, parameters.class_value_field)
        if kind is None:
            raise _no_field(parameters.class_value_field, "class_value_field", names)
    else:
        kind = next((found for one in CLASS_FIELDS if (found := field_named(names, one))), None)
    try:
        scores = pd.to_numeric(frame[confidence]).to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise BadInputError(
            f"The field {confidence} holds values that are no numbers ({error}).",
            "Name the field with the confidence in confidence_score_field.",
        ) from error
    return suppress(
        np.asarray(frame.geometry.array, dtype=object),
        scores,
        None if kind is None else frame[kind].astype(str).to_numpy(),
        max_overlap_ratio=parameters.max_overlap_ratio,
    )


def _no_field(name: str, parameter: str, names: list[str]) -> BadInputError:
    return BadInputError(
        f"The layer has no field {name!r} ({parameter}).", f"Use one of {', '.join(names) or 'none'}."
    )
