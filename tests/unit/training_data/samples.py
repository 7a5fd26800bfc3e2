"""Small samples in memory, and folders of them on disk, for the tests of the formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from tasks.labels.pixels import LabelsInWindow
from tasks.labels.schema import ClassSchema
from tasks.training_data.formats import format_of
from tasks.training_data.layout import map_line, parse_map_line
from tasks.training_data.sample import Boxes, Chip, ChipRecord, Context, Folder, Sample

CELL = 0.5
TRANSFORM = (CELL, 0.0, 500_000.0, 0.0, -CELL, 5_000_000.0)
CLASSES = ClassSchema.from_values({1: "Building", 2: "Tree"})


def labels(boxes: Boxes, geometries: Sequence[Any] | None = None) -> LabelsInWindow:
    """Labels whose parts in the chip are these boxes, or these polygons."""
    edges = np.array([box[1:] for box in boxes], float).reshape(-1, 4)
    parts = shapely.box(*edges.T) if geometries is None else np.array(geometries, dtype=object)
    return LabelsInWindow(
        indices=np.arange(len(boxes)),
        values=np.array([box[0] for box in boxes], np.int64),
        boxes=edges,
        areas=shapely.area(parts).reshape(-1),
        left_out=np.array([], np.intp),
        parts=lambda: parts,
    )


def sample(
    number: int = 0,
    boxes: Boxes = (),
    *,
    size: tuple[int, int] = (128, 128),
    value: int | None = None,
    geometries: Sequence[Any] | None = None,
) -> Sample:
    """A chip of grey noise with objects."""
    image = np.random.default_rng(number).integers(0, 256, (3, *size), dtype=np.uint8)
    return Sample(
        number=number,
        image=image,
        valid=np.ones(size, bool),
        transform=TRANSFORM,
        objects=labels(boxes, geometries),
        value=value,
    )


def context(classes: ClassSchema = CLASSES, chip_format: str = "PNG") -> Context:
    """What the chips of a test share."""
    return Context(chip_format=chip_format, crs_wkt=None, classes=classes)


def write(name: str, samples: Sequence[Sample], into: Path, of: Context | None = None) -> list[ChipRecord]:
    """All files of the samples and map.txt, but none of the side files that every format has."""
    of = of or context()
    found = format_of(name)
    found.check(of)
    scratch = into / "scratch"
    scratch.mkdir(parents=True)
    side = found.side_writer(of, scratch)
    records = []
    for item in samples:
        files, record = found.encode(item, of)
        records.append(record)
        side.add(record)
        for file in files:
            path = into / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.data)
    for target, source in side.close().items():
        source.rename(into / target)
    scratch.rmdir()
    lines = "".join(map_line(*record.paths) + "\r\n" for record in records)
    if found.has_map:
        (into / "map.txt").write_bytes(lines.encode())
    return records


def read(name: str, folder: Path, classes: ClassSchema = CLASSES) -> list[Chip]:
    """The chips of a folder, as the reader asks the format for them."""
    first = (folder / "map.txt").read_text().splitlines()[:1] if (folder / "map.txt").is_file() else []
    columns = parse_map_line(first[0]) if first else ()
    chips, _ = format_of(name).chips(Folder(folder, classes, {}, {}, columns))
    return chips
