"""A published result with other thresholds, suppression and outlines; the model does not run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.imagery import Bounds
from tasks.imagery.identity import on_record
from tasks.infer.items import ITEM, software
from tasks.infer.outputs import Outputs
from tasks.infer.parameters_refine import RefineParameters
from tasks.infer.planned import output_name
from tasks.infer.refine_objects import refine_layer
from tasks.infer.refine_pixels import refine_raster
from tasks.infer.refine_source import Source, source_of
from tasks.infer.stac import Lineage, stac_item
from tasks.store import (
    Manifest,
    ObjectStore,
    Publication,
    output_folder,
    read_manifest,
    run_key,
    set_current,
)

KIND = "outputs/refine_results"
# Raised by hand when the result of an unchanged input changes.
SEMANTICS = 2


@dataclass(frozen=True)
class Refined:
    """The published result: its folder, its manifest's details, whether an earlier run had published it."""

    folder: str
    details: dict[str, Any]
    already_done: bool


def refine(
    store: ObjectStore, parameters: RefineParameters, provenance: Mapping[str, Any] | None = None
) -> Refined:
    """Refine and publish; the same result and parameters are refined once.

    Raises:
        NotFoundError: there is no such result.
        BadInputError: what was not kept in the result is asked for.
    """
    source = source_of(store, parameters.input_result)
    key = run_key(
        {
            "tool": "refine_results",
            "semantics": SEMANTICS,
            "parameters": parameters.model_dump(mode="json", exclude={"input_result", "output_name"}),
            "source": [source.manifest.kind, source.manifest.run_key],
            "name": output_name(parameters.output_name),
        }
    )
    folder = output_folder(KIND, parameters.output_name, key)
    manifest = read_manifest(store, folder)
    already_done = manifest is not None
    if manifest is None:
        outputs = Outputs(Publication(store, folder))
        with tempfile.TemporaryDirectory(prefix="chipline-refine-") as scratch:
            if source.manifest.kind == "outputs/detect_objects":
                refine_layer(source, parameters, key, outputs, Path(scratch))
            else:
                for raster in _classified(source):
                    refine_raster(store, source, raster, parameters, key, outputs, Path(scratch))
        item = _item(store, source, parameters, key, outputs)
        outputs.put_bytes(f"{output_name(parameters.output_name)}.stac.json", item, ITEM)
        manifest = outputs.publication.finish(
            Manifest(
                kind=KIND,
                name=output_name(parameters.output_name),
                run_key=key,
                parameters=on_record(parameters.model_dump(mode="json")),
                inputs=[{"role": "result", "uri": source.folder, "identity": source.manifest.run_key}],
                versions={"chipline": version("chipline"), "semantics": SEMANTICS},
                parts=[outputs.publication.put_part("outputs", outputs.records)],
                details={
                    "package": source.manifest.details["package"],
                    "classes": source.manifest.details["classes"],
                    "remarks": outputs.remarks,
                    "outputs": outputs.described,
                },
                provenance=dict(provenance or {}),
            )
        )
    if "/" not in parameters.output_name:
        set_current(store, KIND, parameters.output_name, folder)
    return Refined(folder, manifest.details, already_done)


def _classified(source: Source) -> Sequence[dict[str, Any]]:
    kept = ("_probability", "_alternatives")
    rasters = [item for item in source.outputs(".tif") if item.get("content") != "changes"]
    names = {item["name"] for item in rasters}
    # A raster whose own name ends like that has no raster of the name before it.
    return [
        item
        for item in rasters
        if not any(item["name"].endswith(end) and item["name"].removesuffix(end) in names for end in kept)
    ]


def _item(
    store: ObjectStore, source: Source, parameters: RefineParameters, key: str, outputs: Outputs
) -> bytes:
    name = output_name(parameters.output_name)
    package = next(item for item in source.manifest.inputs if item["role"] == "package")
    bounds: list[Bounds] = []
    crs_wkt = next((item["crs_wkt"] for item in outputs.described), None)
    for item in outputs.described:
        if item.get("bounds") is not None and item["crs_wkt"] == crs_wkt:
            xmin, ymin, xmax, ymax = item["bounds"]
            bounds.append((xmin, ymin, xmax, ymax))
    made = stac_item(
        f"{name}-{key[:12]}",
        crs_wkt=crs_wkt,
        footprints=bounds,
        created=datetime.now(UTC),
        assets=outputs.assets,
        lineage=Lineage(
            inputs=[source.folder],
            package_uri=str(package["uri"]),
            package_digest=str(package["identity"]),
            software=software(),
            parameters=on_record(parameters.model_dump(mode="json")),
            kind="result",
        ),
        acquired=_acquired(store, source),
        title=f"Refined: {name}",
    )
    return (json.dumps(made, indent=1) + "\n").encode()


def _acquired(store: ObjectStore, source: Source) -> tuple[datetime, datetime] | None:
    """When the imagery was taken, as the items of the result say; None where one of them does not know."""
    times = []
    for found in store.list(source.folder + "/"):
        if not found.uri.endswith(".stac.json") or found.uri.removeprefix(source.folder + "/").count("/"):
            continue
        properties = json.loads(store.get(found.uri))["properties"]
        stated = [properties.get(key) for key in ("start_datetime", "end_datetime", "datetime")]
        if properties.get("datetime") == properties["created"]:
            return None
        times += [datetime.fromisoformat(text) for text in stated if text is not None]
    return (min(times), max(times)) if times else None
