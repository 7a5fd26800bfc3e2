"""Finishing an export: part results, in order, become the side files and the manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.errors import RunError
from tasks.export.cut import ChipRecord, read_result
from tasks.export.plan import KIND, ExportPlan
from tasks.store import Manifest, ObjectStore, PartRecord, Publication, is_local, read_manifest, set_current
from tasks.training_data import layout, side_files
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
    bands = BandStatistics.empty(len(plan.bands))
    contents = ClassStatistics(plan.schema_of_classes.values)
    tiles = plan.parameters.metadata_format == layout.CLASSIFIED_TILES
    parts: list[PartRecord] = []
    image_extension = layout.IMAGE_EXTENSIONS[plan.parameters.chip_format]
    label_extension = layout.LABEL_EXTENSIONS[plan.parameters.metadata_format]
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        lines = Path(folder) / layout.MAP
        # ArcGIS writes this file on Windows: lines end with CRLF.
        with lines.open("w", encoding="ascii", newline="\r\n") as out:
            for chip in _chips(store, plan, parts):
                bands = bands.merge(BandStatistics.from_rows(chip.bands))
                if tiles:
                    contents.add_pixels(chip.pixels)
                else:
                    contents.add_features(chip.areas)
                stem = layout.chip_stem(chip.number)
                line = layout.map_line(
                    f"{layout.IMAGES}/{stem}{image_extension}", f"{layout.LABELS}/{stem}{label_extension}"
                )
                out.write(line + "\n")
        summary = _summary(plan, bands, contents)
        side = [
            publication.put_file(layout.MAP, lines, "text/plain"),
            publication.put_file(layout.STATS, side_files.stats_txt(summary), "text/plain"),
            publication.put_file(
                layout.ACCUMULATED_STATS, side_files.accumulated_stats(summary), "application/json"
            ),
            publication.put_file(layout.DEFINITION, side_files.model_definition(summary), "application/json"),
        ]
    parts.append(publication.put_part("side-files", side))
    manifest = publication.finish(
        Manifest(
            kind=KIND,
            name=plan.name,
            run_key=plan.run_key,
            parameters=plan.parameters.model_dump(mode="json"),
            inputs=_inputs(plan),
            versions={"chipline": version("chipline"), "rasterio": version("rasterio")},
            parts=parts,
            details=_details(plan, contents),
            provenance=provenance,
        )
    )
    _point(store, plan)
    return Published(manifest, already_done=False)


def _chips(store: ObjectStore, plan: ExportPlan, parts: list[PartRecord]) -> Iterator[ChipRecord]:
    """All chips by number; ``parts`` gets the part records on the way."""
    for number in range(len(plan.parts)):
        result = read_result(store, plan.folder_uri, number)
        if result is None:
            raise RunError(
                f"Part {number + 1} of {len(plan.parts)} of the export {plan.name} is not finished.",
                "Start the export again: what is finished is kept.",
            )
        parts.append(result.record)
        yield from result.chips


def _summary(plan: ExportPlan, bands: BandStatistics, contents: ClassStatistics) -> side_files.ExportSummary:
    sizes = [item.target().cell_size for item in plan.items]
    crs_wkt = plan.items[0].target().crs_wkt
    return side_files.ExportSummary(
        metadata_format=plan.parameters.metadata_format,
        tile_size=(plan.parameters.tile_size, plan.parameters.tile_size),
        classes=plan.schema_of_classes,
        band_names=plan.band_names,
        bands=bands,
        contents=contents,
        raster_count=sum(len(item.rasters) for item in plan.items),
        min_cell_size=min(sizes),
        max_cell_size=max(sizes),
        wkid=None if crs_wkt is None else side_files.wkid_of(crs_wkt),
        crs_wkt=crs_wkt,
    )


def _inputs(plan: ExportPlan) -> list[dict[str, Any]]:
    rasters = [
        {"role": "raster", "uri": raster["uri"], "identity": raster["identity"]}
        for item in plan.items
        for raster in item.rasters
    ]
    return [*rasters, {"role": "labels", "uri": plan.labels["uri"], "identity": plan.labels["identity"]}]


def _details(plan: ExportPlan, contents: ClassStatistics) -> dict[str, Any]:
    return {
        "metadata_format": plan.parameters.metadata_format,
        "chips": contents.images,
        "tile_size": plan.parameters.tile_size,
        "bands": list(plan.band_names),
        "labels": {key: value for key, value in plan.labels.items() if key not in ("uri", "identity")},
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
