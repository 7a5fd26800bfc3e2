"""Finish: results of shards, in (row, col) order, become one raster per grid or one layer of objects.

Everything is written into the run's folder, which stays invisible until its manifest is put last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.errors import StoreError
from tasks.imagery.identity import unsigned
from tasks.infer.batches import batch_counts, found_shards
from tasks.infer.finish_crops import write_labelled
from tasks.infer.finish_features import write_objects
from tasks.infer.finish_rasters import write_rasters
from tasks.infer.items import further_inputs
from tasks.infer.outputs import Outputs
from tasks.infer.part import PartReport, reports
from tasks.infer.planned import Plan, output_name
from tasks.infer.series_objects import write_object_series
from tasks.infer.shards import SEMANTICS_VERSION
from tasks.store import Manifest, ObjectStore, Publication, read_manifest, set_current


@dataclass(frozen=True)
class Finished:
    """The published result.

    Attributes:
        manifest: in force, perhaps an earlier run's.
        already_done: whether it was published before this call.
    """

    manifest: Manifest
    already_done: bool


def published(store: ObjectStore, plan: Plan) -> Manifest | None:
    """The manifest of an earlier run of the very same work, which then need not be done again."""
    return read_manifest(store, plan.folder)


def finish(store: ObjectStore, plan: Plan, provenance: Mapping[str, Any]) -> Finished:
    """Put the outputs together from the shards, publish them and point the output's name at them.

    Args:
        store: holds the shards, takes the outputs.
        plan: whose parts are all done.
        provenance: times and run ids; the only thing in the manifest that may differ between two runs.

    Raises:
        StoreError: a shard's result is missing, or the store cannot be written.
    """
    manifest = published(store, plan)
    already_done = manifest is not None
    if manifest is None:
        try:
            manifest = _put_together(store, plan, provenance)
        except StoreError:
            # Another process may have published the same work meanwhile, and its files stay.
            manifest, already_done = published(store, plan), True
            if manifest is None:
                raise
    if "://" not in plan.output and not plan.output.startswith("/"):
        set_current(store, f"outputs/{plan.tool}", plan.output, plan.folder)
    return Finished(manifest, already_done)


def _put_together(store: ObjectStore, plan: Plan, provenance: Mapping[str, Any]) -> Manifest:
    made = reports(store, plan)
    software = {name: number for report in made for name, number in sorted(report.software.items())}
    known = {"shards": found_shards(store, plan, plan.shards), "software": software}
    plan = plan.model_copy(update=known)
    outputs = Outputs(Publication(store, plan.folder))
    with tempfile.TemporaryDirectory(prefix="chipline-finish-") as folder:
        if plan.pixel_format is not None:
            write_rasters(store, plan, outputs, Path(folder))
        elif plan.crops is not None:
            write_labelled(store, plan, outputs, Path(folder))
        elif plan.finishing.get("series") is not None:
            write_object_series(store, plan, outputs, Path(folder))
        else:
            write_objects(store, plan, outputs, Path(folder))
    part = outputs.publication.put_part("outputs", outputs.records)
    noted = [*plan.remarks, *_batch_remarks(plan), *remarks(outputs.described)]
    return outputs.publication.finish(
        Manifest(
            kind=f"outputs/{plan.tool}",
            name=output_name(plan.output),
            run_key=plan.run_key,
            parameters=plan.parameters,
            inputs=_inputs(plan),
            versions={"chipline": version("chipline"), "semantics": SEMANTICS_VERSION, **software},
            parts=[part],
            details={**_details(plan), "remarks": noted, "outputs": outputs.described},
            provenance={**provenance, **_computing(plan, made)},
        )
    )


def remarks(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a person should know about the outputs."""
    larger = max((int(output.get("objects_larger_than_halo", 0)) for output in outputs), default=0)
    if not larger:
        return []
    return [
        f"{larger} objects reach to the edge of what the function saw at once: they are larger than the halo "
        "and may be cut. Give a larger padding among the model arguments, or a larger cell_size."
    ]


def _batch_remarks(plan: Plan) -> list[str]:
    """Where memory ran out: the last digits of what a network gives may depend on its batch."""
    return [
        f"Memory ran out with the planned batch: {count} of {len(plan.shards)} shards were computed with "
        f"batches of {batch}."
        for batch, count in batch_counts(plan.shards).items()
    ]


def _inputs(plan: Plan) -> list[dict[str, Any]]:
    rasters = [{"uri": unsigned(info.uri), "identity": info.identity} for info in plan.rasters]
    package = {
        "uri": unsigned(plan.package.uri),
        "identity": plan.package.digest,
        "trust": plan.package.trust,
    }
    # Of two dates the second one's rasters stand at the end of the list.
    later = {index for planned in plan.grids for index in planned.after}
    roles = ["after" if n in later else "before" if later else "imagery" for n in range(len(rasters))]
    imagery = [{"role": role, **raster} for role, raster in zip(roles, rasters, strict=True)]
    digests = {"features": plan.finishing.get("features", ""), "mask": plan.mask}
    further = [
        {"role": role, "uri": uri, "identity": str(digests.get(role, ""))}
        for role, uri in further_inputs(plan)
    ]
    return [*imagery, {"role": "package", **package}, *further]


def _details(plan: Plan) -> dict[str, Any]:
    return {
        "package": plan.package.name,
        "classes": [item.model_dump(mode="json") for item in plan.package.classes],
        "arguments": plan.description.scalars,
        "candidates": plan.finishing.get("candidates"),
        "device_class": plan.processor,
        "shards": len(plan.shards),
        "shards_by_smaller_batches": batch_counts(plan.shards),
        "pixels": plan.pixels,
    }


def _computing(plan: Plan, made: Sequence[PartReport]) -> dict[str, Any]:
    """What the parts say about their work; parts whose shards an earlier run computed left no report here."""
    return {
        "devices": sorted({report.device for report in made}) or [f"{plan.processor} (an earlier run)"],
        "parts": [report.model_dump() for report in made],
    }
