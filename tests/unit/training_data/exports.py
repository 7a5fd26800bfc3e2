"""Whole training data folders, written as an export writes them, for the tests of formats and reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyproj import CRS

from tasks.labels.schema import ClassSchema
from tasks.training_data import layout, side_files
from tasks.training_data.formats import format_of
from tasks.training_data.sample import Context, Sample
from tasks.training_data.statistics import BandStatistics, ClassStatistics

WKT = CRS("EPSG:32612").to_wkt()


def export(
    folder: Path,
    name: str,
    samples: Sequence[Sample],
    classes: ClassSchema,
    *,
    chip_format: str = "TIFF",
    instance_classes: ClassSchema | None = None,
) -> side_files.ExportSummary:
    """All files of one side: chips, labels, map.txt and the side files."""
    context = Context(chip_format, WKT, classes, instance_classes)
    chosen = format_of(name)
    chosen.check(context)
    folder.mkdir(parents=True, exist_ok=True)
    contents = ClassStatistics(chosen.all_classes(context).values)
    bands = BandStatistics.empty(samples[0].image.shape[0])
    seconds = [item.image2 for item in samples if item.image2 is not None]
    bands2 = BandStatistics.empty(seconds[0].shape[0]) if seconds else None
    own = chosen.side_writer(context, folder)
    lines = []
    for sample in samples:
        files, record = chosen.encode(sample, context)
        for file in files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.data)
        own.add(record)
        bands = bands.merge(BandStatistics.of(sample.image, sample.valid))
        if bands2 is not None and sample.image2 is not None:
            bands2 = bands2.merge(BandStatistics.of(sample.image2, sample.valid2))
        if chosen.counts == "pixels":
            contents.add_pixels(record.pixels)
        else:
            contents.add_features(record.areas)
        lines.append(layout.map_line(*record.paths) + "\r\n")
    summary = side_files.ExportSummary(
        metadata_format=name,
        tile_size=(samples[0].image.shape[1], samples[0].image.shape[2]),
        classes=classes,
        band_names=side_files.default_band_names(samples[0].image.shape[0]),
        bands=bands,
        contents=contents,
        raster_count=1,
        min_cell_size=(0.5, 0.5),
        max_cell_size=(0.5, 0.5),
        wkid=32612,
        band_names2=() if bands2 is None else side_files.default_band_names(len(bands2.count)),
        bands2=bands2,
        instance_classes=instance_classes,
    )
    for target, source in own.close().items():
        source.rename(folder / target)
    if chosen.has_map:
        (folder / layout.MAP).write_bytes("".join(lines).encode(layout.MAP_ENCODING))
    (folder / layout.STATS).write_bytes(side_files.stats_txt(summary))
    (folder / layout.ACCUMULATED_STATS).write_bytes(side_files.accumulated_stats(summary))
    (folder / layout.DEFINITION).write_bytes(side_files.model_definition(summary))
    return summary
