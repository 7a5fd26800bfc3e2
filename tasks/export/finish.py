"""Finishing an export: part results, in order, become the side files and the manifest."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from tasks.errors import RunError
from tasks.export.addresses import remove_access, taken_out
from tasks.export.cut import PartResult, read_result
from tasks.export.cutter import label_sets
from tasks.export.inputs import KIND, ExportItem
from tasks.export.plan import ExportPlan
from tasks.store import (
    FileRecord,
    Manifest,
    ObjectStore,
    PartRecord,
    Publication,
    is_local,
    read_manifest,
    set_current,
)
from tasks.training_data import layout, side_files
from tasks.training_data.formats import format_of
from tasks.training_data.sample import ChipRecord, Context
from tasks.training_data.statistics import BandStatistics, ClassStatistics


@dataclass(frozen=True)
class Published:
    """A published export.

    Attributes:
        manifest: its root manifest.
        already_done: whether it had been published before.
    """

    manifest: Manifest
    already_done: bool


def published(store: ObjectStore, folder_uri: str) -> Manifest | None:
    """The manifest of a finished export; None while there is none."""
    return read_manifest(store, folder_uri)


def finish(store: ObjectStore, plan: ExportPlan, provenance: dict[str, Any]) -> Published:
    """Write the side files and make the training data visible.

    Args:
        provenance: times and run ids, the only part of the manifest that two equal runs may not share.

    Raises:
        RunError: a part is not finished.
    """
    existing = published(store, plan.folder_uri)
    if existing is not None:
        _point(store, plan)
        return Published(existing, already_done=True)
    publication = Publication(store, plan.folder_uri)
    parts: list[PartRecord] = []
    side: list[FileRecord] = []
    totals: list[_Totals] = []
    for name in plan.sides:
        total = _Totals(plan, name)
        with tempfile.TemporaryDirectory(prefix="export-") as scratch:
            for path, file in _side_files(store, plan, name, total, parts, Path(scratch)).items():
                side.append(publication.put_file(f"{name}/{path}" if name else path, file))
        totals.append(total)
    parts.append(publication.put_part("side-files", side))
    manifest = publication.finish(
        Manifest(
            kind=KIND,
            name=plan.name,
            run_key=plan.run_key,
            parameters=taken_out(plan.parameters.model_dump(mode="json"), {}),
            inputs=taken_out(_inputs(plan), {}),
            versions={"chipline": version("chipline"), "rasterio": version("rasterio")},
            parts=parts,
            details=taken_out(_details(plan, totals), {}),
            provenance=provenance,
        )
    )
    _point(store, plan)
    label_sets(store, plan).remove()
    remove_access(store, plan.folder_uri)
    return Published(manifest, already_done=False)


class _Totals:
    """Statistics over all chips of a side, added in the order of their numbers."""

    def __init__(self, plan: ExportPlan, side: str) -> None:
        self.items = [item for item in plan.items if item.side == side]
        chosen = format_of(plan.parameters.metadata_format)
        self.counts = chosen.counts
        self.bands = BandStatistics.empty(len(self.items[0].bands.indices))
        self.bands2 = BandStatistics.empty(len(self.items[0].bands2.indices))
        self.contents = ClassStatistics(chosen.all_classes(_context(plan, self.items[0])).values)
        self.chips = 0

    def add(self, chip: ChipRecord) -> None:
        """Take the next chip."""
        self.chips += 1
        self.bands = self.bands.merge(BandStatistics.from_rows(chip.bands)) if chip.bands else self.bands
        if chip.bands2:
            self.bands2 = self.bands2.merge(BandStatistics.from_rows(chip.bands2))
        if self.counts == "pixels":
            self.contents.add_pixels(chip.pixels)
        else:
            self.contents.add_features(chip.areas)


def _context(plan: ExportPlan, item: ExportItem) -> Context:
    return Context(
        plan.parameters.chip_format, item.target().crs_wkt, plan.schema_of_classes, plan.schema_of_instances
    )


def _side_files(
    store: ObjectStore, plan: ExportPlan, side: str, total: _Totals, parts: list[PartRecord], scratch: Path
) -> dict[str, bytes | Path]:
    """The side files of one side by their path in it; ``parts`` gets the part records on the way."""
    chosen = format_of(plan.parameters.metadata_format)
    own = chosen.side_writer(_context(plan, total.items[0]), scratch)
    lines = scratch / layout.MAP
    # ArcGIS writes this file on Windows: lines end with CRLF.
    with lines.open("w", encoding="utf-8", newline="\r\n") as out:
        for chip in _chips(store, plan, side, parts):
            total.add(chip)
            own.add(chip)
            out.write(layout.map_line(*chip.paths) + "\n")
    summary = _summary(plan, total)
    return {
        **({layout.MAP: lines} if chosen.has_map else {}),
        layout.STATS: side_files.stats_txt(summary),
        layout.ACCUMULATED_STATS: side_files.accumulated_stats(summary),
        layout.DEFINITION: side_files.model_definition(summary),
        **own.close(),
    }


def _chips(store: ObjectStore, plan: ExportPlan, side: str, parts: list[PartRecord]) -> Iterator[ChipRecord]:
    """All chips of a side by number; ``parts`` gets the part records on the way."""
    mine = [
        (part.item, part.lane, number)
        for number, part in enumerate(plan.parts)
        if plan.items[part.item].side == side
    ]
    # Tracts side by side share their lanes, and their chips' numbers take turns.
    for _, group in groupby(mine, key=lambda entry: entry[:2]):
        results = [_result(store, plan, number) for *_, number in group]
        parts.extend(result.record for result in results)
        yield from heapq.merge(*(result.chips for result in results), key=attrgetter("number"))


def _result(store: ObjectStore, plan: ExportPlan, number: int) -> PartResult:
    result = read_result(store, plan.folder_uri, number)
    if result is None:
        raise RunError(
            f"Part {number + 1} of {len(plan.parts)} of the export {plan.name} is not finished.",
            "Start the export again: what is finished is kept.",
        )
    return result


def _summary(plan: ExportPlan, total: _Totals) -> side_files.ExportSummary:
    items = total.items
    sizes = [item.target().cell_size for item in items]
    crs_wkt = items[0].target().crs_wkt
    chosen = plan.parameters
    return side_files.ExportSummary(
        metadata_format=chosen.metadata_format,
        tile_size=chosen.tile,
        classes=plan.schema_of_classes,
        band_names=items[0].bands.names,
        bands=total.bands,
        contents=total.contents,
        raster_count=sum(len(item.rasters) for item in items),
        min_cell_size=min(sizes),
        max_cell_size=max(sizes),
        wkid=None if crs_wkt is None else side_files.wkid_of(crs_wkt),
        crs_wkt=crs_wkt,
        band_names2=items[0].bands2.names,
        bands2=total.bands2 if items[0].bands2.names else None,
        image_space=chosen.reference_system,
        blacken_around_feature=chosen.blacken_around_feature,
        fixed_size=chosen.fix_chip_size,
        instance_classes=plan.schema_of_instances,
    )


def _inputs(plan: ExportPlan) -> list[dict[str, Any]]:
    rasters = [
        {"role": role, "uri": raster["uri"], "identity": raster["identity"]}
        for item in plan.items
        for role, group in (("raster", item.rasters), ("second raster", item.rasters2))
        for raster in group
    ]
    unique = {(entry["role"], entry["uri"]): entry for entry in rasters}
    chosen = plan.parameters
    named = {
        "labels": chosen.input_class_data,
        "mask": chosen.input_mask_polygons,
        "instances": chosen.input_instance_data,
        "schema": chosen.class_schema,
    }
    labels = [
        {"role": role, "uri": named[role], "identity": identity}
        for role, identity in plan.label_identities.items()
    ]
    return [*unique.values(), *labels]


def _details(plan: ExportPlan, totals: list[_Totals]) -> dict[str, Any]:
    contents = totals[0].contents
    return {
        "metadata_format": plan.parameters.metadata_format,
        "counts": totals[0].counts,
        "chips": sum(total.chips for total in totals),
        "tile_size": plan.parameters.tile_size,
        "bands": list(plan.items[0].bands.names),
        "labels": plan.labels,
        "notes": plan.notes,
        "classes": [
            {
                "value": item.value,
                "name": item.name,
                "color": list(item.color),
                "chips": contents.images_per_class[item.value],
                "count": contents.count_per_class[item.value],
                "mean_size": contents.size_per_class[item.value].mean,
            }
            for item in plan.schema_of_classes
        ],
    }


def _point(store: ObjectStore, plan: ExportPlan) -> None:
    """``current.json`` of the name; an output that was given as a folder has no name in our root."""
    location = plan.parameters.output_location
    if "://" not in location and is_local(location) and not location.startswith("/"):
        set_current(store, KIND, location, plan.folder_uri)
