"""Publishing a layer to draw labels in."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.errors import LabelError
from tasks.imagery import inspect_raster
from tasks.labels.__main__ import describe
from tasks.labels.parameters import LabelLayerParameters
from tasks.labels.schema_file import read_schema_file
from tasks.labels.template import write_label_template
from tasks.store import (
    Manifest,
    ObjectStore,
    Publication,
    check_allowed,
    output_folder,
    read_manifest,
    run_key,
)

KIND = "outputs/create_label_layer"
LAYER_FILE = "labels.gpkg"
# Raised by hand when the layer of an unchanged schema changes.
SEMANTICS = 1


def publish_label_layer(
    store: ObjectStore, parameters: LabelLayerParameters, provenance: dict[str, Any]
) -> tuple[str, str]:
    """The published folder, and the classes as text.

    Raises:
        NotFoundError, LabelError: the schema or the raster cannot be used.
    """
    check_allowed(parameters.class_schema)
    schema = read_schema_file(parameters.class_schema)
    crs = parameters.out_sr or ""
    if parameters.raster is not None:
        check_allowed(parameters.raster)
        found = inspect_raster(parameters.raster).crs_wkt
        if found is None:
            raise LabelError(
                f"The raster {parameters.raster} has no coordinate reference system.", "Give out_sr instead."
            )
        crs = found
    key = run_key(
        {"tool": "create_label_layer", "semantics": SEMANTICS, "classes": schema.to_records(), "crs": crs}
    )
    folder = output_folder(KIND, parameters.output_name, key)
    if read_manifest(store, folder) is None:
        publication = Publication(store, folder)
        with tempfile.TemporaryDirectory(prefix="label-layer-") as scratch:
            path = Path(scratch) / LAYER_FILE
            write_label_template(schema, path, crs)
            record = publication.put_file(LAYER_FILE, path, "application/geopackage+sqlite3")
        part = publication.put_part("layer", [record])
        publication.finish(
            Manifest(
                kind=KIND,
                name=parameters.output_name.rstrip("/").rsplit("/", 1)[-1],
                run_key=key,
                parameters=parameters.model_dump(mode="json"),
                inputs=[{"role": "schema", "uri": parameters.class_schema}],
                versions={"chipline": version("chipline")},
                parts=[part],
                provenance=provenance,
            )
        )
    return folder, describe(schema)
