"""COCO_rectangles: pictures in ``images/``, and all labels in one ``labels.json``.

Category ids are class values, picture ids are chip numbers. The file is written and read as a stream, so that
it may hold any number of objects. Format: docs/formats/training-data.md, "COCO_rectangles".
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import shapely

from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.coco_reader import LABELS, CocoLabels, classes_in, read_labels
from tasks.training_data.images import encode_picture
from tasks.training_data.pairing import pictures
from tasks.training_data.rectangles import areas_by_class, known_boxes, objects_of, sample_boxes
from tasks.training_data.sample import (
    Boxes,
    Chip,
    ChipFile,
    ChipRecord,
    Context,
    Folder,
    Format,
    Sample,
    SideWriter,
)
from tasks.training_data.side_files import SOURCE

_DECIMALS = 2


class Coco(Format):
    """Any number of objects per chip, each with its class value, its box and its outline."""

    name = "COCO_rectangles"
    holds = frozenset({"boxes"})
    counts = "features"
    needs = frozenset({"objects"})
    # With it ArcGIS's library takes the folder for ArcGIS's own, forgets to read labels.json, and fails.
    has_map = False

    def encode(self, sample: Sample, context: Context) -> tuple[list[ChipFile], ChipRecord]:
        """``images/``; the objects travel in the record, as JSON that lacks only their numbers."""
        stem = layout.chip_stem(sample.number)
        files, picture = encode_picture(
            sample.image, stem, layout.IMAGES, sample.transform, context, sample.known
        )
        rows, cols = sample.image.shape[-2:]
        found = objects_of(sample)
        objects = [
            _json(
                {
                    "category_id": value,
                    "bbox": _xywh(xmin, ymin, xmax, ymax),
                    "area": round(area, _DECIMALS),
                    "iscrowd": 0,
                    "segmentation": outlines(polygon),
                }
            )
            for (value, xmin, ymin, xmax, ymax), area, polygon in zip(
                sample_boxes(sample), found.areas.tolist(), found.polygons, strict=True
            )
        ]
        record = ChipRecord(
            number=sample.number,
            paths=[picture, LABELS],
            bands=[],
            areas=areas_by_class(sample),
            extra={"file_name": Path(picture).name, "width": cols, "height": rows, "objects": objects},
        )
        return files, record

    def side_writer(self, context: Context, scratch: Path) -> SideWriter:
        """``labels.json``."""
        return _Labels(context.classes, scratch)

    def recognises(self, path: Path) -> bool:
        """By ``labels.json`` in the root."""
        return (path / LABELS).is_file()

    def find_classes(self, folder: Folder) -> ClassSchema | None:
        """The categories; values are numbered from 1 where an id is no positive whole number."""
        return classes_in(folder.path / LABELS)

    def chips(self, folder: Folder) -> tuple[list[Chip], int]:
        """The pictures that ``labels.json`` lists; it may list others, and objects need not be there."""
        label = folder.path / LABELS
        known = _labels(label, folder.classes).files
        found = pictures(folder.path / layout.IMAGES)
        chips = [
            Chip(
                stem=image.stem,
                image=image,
                label=label,
                footprint=None,
                classes=folder.classes,
                metadata_format=self.name,
            )
            for image in found
            if image.name in known
        ]
        return chips, len(found) - len(chips)

    def boxes(self, chip: Chip) -> Boxes:
        """Crowds (``iscrowd``) are no objects."""
        labels = _labels(chip.label_path, chip.classes)
        found = [(str(box[0]), *box[1:]) for box in labels.boxes_of(chip.image.name)]
        return known_boxes(chip, found, chip.label_path)


def _labels(path: Path, classes: ClassSchema) -> CocoLabels:
    facts = path.stat() if path.is_file() else None
    return _labels_as_of(path, classes, facts and facts.st_mtime_ns, facts and facts.st_size)


@functools.lru_cache(maxsize=8)
def _labels_as_of(path: Path, classes: ClassSchema, modified: int | None, size: int | None) -> CocoLabels:  # noqa: ARG001
    """Read once per state of the file: a chip is a name in it, and all chips share it."""
    return read_labels(path, classes)


class _Labels(SideWriter):
    """Writes pictures and objects as they come, each to a file of its own, and joins them at the end."""

    def __init__(self, classes: ClassSchema, scratch: Path) -> None:
        self.classes = classes
        self.path, self.objects_path = scratch / LABELS, scratch / f"{LABELS}.objects"
        self.pictures: IO[str] = self.path.open("w", encoding="utf-8", newline="\n")
        self.objects: IO[str] = self.objects_path.open("w", encoding="utf-8", newline="\n")
        info = _json({"description": f"Written by {SOURCE}"})
        self.pictures.write(f'{{"info": {info},\n"licenses": [],\n"images": [')
        self.picture_count = self.object_count = 0

    def add(self, record: ChipRecord) -> None:
        extra = record.extra or {}
        picture = {key: extra[key] for key in ("file_name", "width", "height")}
        self.pictures.write(f"{',' if self.picture_count else ''}\n{_json({'id': record.number, **picture})}")
        self.picture_count += 1
        for item in extra["objects"]:
            separator = "," if self.object_count else ""
            self.object_count += 1
            numbers = f'"id": {self.object_count}, "image_id": {record.number}'
            self.objects.write(f"{separator}\n{{{numbers}, {item[1:]}")

    def close(self) -> dict[str, Path]:
        self.objects.close()
        with self.pictures as out:
            out.write('\n],\n"annotations": [')
            with self.objects_path.open(encoding="utf-8", newline="\n") as objects:
                shutil.copyfileobj(objects, out)
            categories = ",".join(
                "\n" + _json({"id": item.value, "name": item.name, "supercategory": ""})
                for item in self.classes
            )
            out.write(f'\n],\n"categories": [{categories}\n]\n}}\n')
        self.objects_path.unlink()
        return {LABELS: self.path}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _xywh(xmin: float, ymin: float, xmax: float, ymax: float) -> list[float]:
    """Of rounded corners, so that the far edges are right as well."""
    left, top = round(xmin, _DECIMALS), round(ymin, _DECIMALS)
    width, height = round(xmax, _DECIMALS) - left, round(ymax, _DECIMALS) - top
    return [left, top, round(width, _DECIMALS), round(height, _DECIMALS)]


def outlines(geometry: Any) -> list[list[float]]:
    """The rings of a polygon or multipolygon as COCO writes them: [x1, y1, x2, y2, …], not closed.

    COCO's polygons have no holes, and several of one object are taken together. A polygon with holes is
    therefore cut through its holes into parts without any.
    """
    rings = []
    for part in _without_holes(geometry):
        points: npt.NDArray[np.float64] = (
            np.round(shapely.get_coordinates(part.exterior)[:-1], _DECIMALS) + 0.0
        )
        # Neighbours that rounding made one point are one point.
        points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
        if len(points) >= 3:
            rings.append(points.ravel().tolist())
    return rings


def _without_holes(geometry: Any) -> Iterator[Any]:
    for polygon in shapely.get_parts(geometry):
        if polygon.geom_type != "Polygon":
            continue
        if not polygon.interiors:
            yield polygon
            continue
        xmin, ymin, xmax, ymax = polygon.bounds
        left, _, right, _ = polygon.interiors[0].bounds
        middle = (left + right) / 2
        for half in (shapely.box(xmin, ymin, middle, ymax), shapely.box(middle, ymin, xmax, ymax)):
            cut = shapely.intersection(polygon, half)
            yield from _without_holes(
                cut
                if cut.geom_type != "GeometryCollection"
                else shapely.multipolygons(
                    [part for part in shapely.get_parts(cut) if part.geom_type == "Polygon"]
                )
            )


FORMAT = Coco()
