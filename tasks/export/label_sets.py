"""Labels made ready for an export: read once, stored beside the chips, opened by every worker.

Vector labels are streamed into one indexed file per coordinate system (or per raw image), so that a worker
looks up those in reach, however many there are. Classified rasters need no preparation.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.export.inputs import ExportItem, Inputs, is_raster
from tasks.export.parameters import ExportParameters
from tasks.export.sources import ItemSources, LabelSource, RasterSource, VectorSource
from tasks.imagery import Bounds, Grid, inspect_raster
from tasks.imagery.image_space import ImageTransform, image_transform
from tasks.labels import ClassSchema
from tasks.labels.mask_polygons import MaskRegion, read_mask_polygons
from tasks.labels.prepared import LabelFacts, PreparedLabels, open_labels, prepare_labels
from tasks.labels.raster import open_raster_labels
from tasks.labels.schema_file import read_schema_file
from tasks.settings import settings
from tasks.store import ObjectStore, join, run_key

_LABELS, _INSTANCES = "labels", "instances"
_KEEP_SECONDS = 7 * 24 * 3600


class LabelSet(BaseModel):
    """Vector labels in the coordinates of one CRS, or of one raw image.

    Attributes:
        role: "labels" or "instances".
        uri: the indexed file.
        facts: what was found in the labels.
    """

    model_config = ConfigDict(frozen=True)

    role: str
    uri: str
    facts: LabelFacts


class LabelSets:
    """The labels of an export: prepared by the plan, opened for each item.

    Args:
        store: where the prepared files lie.
        folder_uri: output folder; each has local copies of its own.
        sets: the prepared vector labels.
        item_labels: per item, the index of its set by role.
        classes: the classes of the labels, as records.
        instance_classes: those of the instance data.
        facts: counts for people.
        notes: warnings for people.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder_uri: str,
        sets: list[LabelSet],
        item_labels: list[dict[str, int]],
        classes: list[dict[str, Any]],
        instance_classes: list[dict[str, Any]],
        facts: dict[str, Any] | None = None,
        notes: list[str] | None = None,
    ) -> None:
        self.store = store
        self.key = run_key(folder_uri)
        self.sets = sets
        self.item_labels = item_labels
        self.classes = classes
        self.instance_classes = instance_classes
        self.facts = facts or {}
        self.notes = notes or []

    @classmethod
    def prepare(cls, store: ObjectStore, parameters: ExportParameters, inputs: Inputs) -> LabelSets:
        """Read all labels.

        Raises:
            LabelError: they cannot be used.
        """
        made = cls(store, inputs.folder_uri, [], [{} for _ in inputs.items], [], [])
        given = read_schema_file(parameters.class_schema) if parameters.class_schema else None
        if parameters.input_class_data:
            made.classes = made._prepare_role(_LABELS, parameters, inputs, given)
        if parameters.input_instance_data:
            made.instance_classes = made._prepare_role(_INSTANCES, parameters, inputs, given)
        return made

    def _prepare_role(
        self, role: str, parameters: ExportParameters, inputs: Inputs, schema: ClassSchema | None
    ) -> list[dict[str, Any]]:
        uri, value_field = _named(parameters, role)
        if is_raster(uri):
            with _open_raster(uri, inputs.items[0], value_field, schema) as labels:
                self._raster_facts(role, uri, parameters)
                records: list[dict[str, Any]] = labels.schema.to_records()
                return records
        by_place: dict[str, int] = {}
        for index, item in enumerate(inputs.items):
            info = item.infos()[0]
            place = str(item.grid["crs_wkt"]) if item.grid["crs_wkt"] else info.uri
            if place not in by_place:
                by_place[place] = len(self.sets)
                self._prepare_set(role, uri, value_field, parameters, item, inputs.folder_uri, schema)
            self.item_labels[index][role] = by_place[place]
        facts = self.sets[self.item_labels[0][role]].facts
        if role == _LABELS:
            self.facts = facts.model_dump(mode="json", exclude={"bounds", "classes"})
        return [dict(record) for record in facts.classes]

    def _prepare_set(
        self,
        role: str,
        uri: str,
        value_field: str | None,
        parameters: ExportParameters,
        item: ExportItem,
        folder_uri: str,
        schema: ClassSchema | None,
    ) -> None:
        name = f"labels-{len(self.sets):05d}.fgb"
        folder = _local_folder(self.key)
        target = join(folder_uri, "plan", name)
        crs_wkt, transform = _target(item)
        # Nobody sees a local copy before it is whole.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            local = Path(scratch) / name
            facts = prepare_labels(
                uri,
                local,
                classvalue_field=value_field,
                target_crs_wkt=crs_wkt,
                buffer_radius=parameters.buffer_radius,
                schema=schema,
                to_image=transform.to_image if transform else None,
            )
            self.store.upload(local, target)
            local.replace(folder / name)
        self.sets.append(LabelSet(role=role, uri=target, facts=facts))

    def _raster_facts(self, role: str, uri: str, parameters: ExportParameters) -> None:
        if role == _LABELS:
            self.facts = {"features": 0, "repaired": 0, "empty": 0, "unprojectable": 0, "raster": uri}
        if parameters.min_polygon_overlap_ratio or parameters.buffer_radius:
            self.notes.append(
                f"The {role} are a raster, for which min_polygon_overlap_ratio and buffer_radius mean nothing"
            )

    @contextmanager
    def open_item(self, parameters: ExportParameters, item: ExportItem, index: int) -> Iterator[ItemSources]:
        """All sources of an item."""
        grid = item.target()
        with contextlib.ExitStack() as stack:
            labels = self._open(stack, _LABELS, parameters, item, index, grid)
            instances = self._open(stack, _INSTANCES, parameters, item, index, grid)
            sources = ItemSources(
                parameters,
                item,
                labels=labels,
                instances=instances,
                region=_region(parameters, item),
            )
            yield stack.enter_context(sources)

    def _open(
        self,
        stack: contextlib.ExitStack,
        role: str,
        parameters: ExportParameters,
        item: ExportItem,
        index: int,
        grid: Grid,
    ) -> LabelSource | None:
        uri, value_field = _named(parameters, role)
        if not uri:
            return None
        if role not in self.item_labels[index]:
            records = self.classes if role == _LABELS else self.instance_classes
            labels = _open_raster(uri, item, value_field, ClassSchema.from_records(records))
            return RasterSource(stack.enter_context(labels))
        return VectorSource(
            self._vectors(self.item_labels[index][role]),
            grid.transform,
            min_overlap=parameters.min_polygon_overlap_ratio,
        )

    def touch_imagery(self, inputs: Inputs) -> bool:
        """Whether labels and any item share an area, by their bounds; classified rasters are taken to."""
        return any(
            _LABELS not in roles or _overlap(self.sets[roles[_LABELS]].facts.bounds, item.target().bounds)
            for item, roles in zip(inputs.items, self.item_labels, strict=True)
        )

    def _vectors(self, index: int) -> PreparedLabels:
        prepared = self.sets[index]
        local = _local_folder(self.key) / Path(prepared.uri).name
        if not local.exists():
            self.store.download(prepared.uri, local)
        return open_labels(local, prepared.facts)

    def where(self, inputs: Inputs) -> str:
        """Where the labels and the first items lie, for an error message."""
        texts = []
        for item, roles in zip(inputs.items[:3], self.item_labels[:3], strict=True):
            bounds = self.sets[roles[_LABELS]].facts.bounds if _LABELS in roles else None
            texts.append(f"labels {_rounded(bounds)}, imagery {_rounded(item.target().bounds)}")
        return "; ".join(texts) + ", as xmin, ymin, xmax, ymax in the imagery's coordinate system"

    def remove(self) -> None:
        """Delete what was prepared: a finished export needs it no more."""
        for prepared in self.sets:
            self.store.delete(prepared.uri)
        shutil.rmtree(_local_folder(self.key), ignore_errors=True)


def _named(parameters: ExportParameters, role: str) -> tuple[str, str | None]:
    if role == _LABELS:
        return parameters.input_class_data or "", parameters.classvalue_field
    return parameters.input_instance_data or "", parameters.instance_class_value_field


def _target(item: ExportItem) -> tuple[str, ImageTransform | None]:
    """The CRS that labels are brought to, and for a raw image the way on to its pixels."""
    crs_wkt = item.grid["crs_wkt"]
    if crs_wkt is not None:
        return str(crs_wkt), None
    transform = _transform_of(item)
    return transform.crs_wkt, transform


def _transform_of(item: ExportItem) -> ImageTransform:
    # The item's own record of the raster is without the map.
    return image_transform(inspect_raster(item.rasters[0]["uri"]))


def _open_raster(uri: str, item: ExportItem, value_field: str | None, schema: ClassSchema | None) -> Any:
    return open_raster_labels([uri], item.target(), classvalue_field=value_field, schema=schema)


def _region(parameters: ExportParameters, item: ExportItem) -> MaskRegion | None:
    if not parameters.input_mask_polygons:
        return None
    crs_wkt, transform = _target(item)
    return read_mask_polygons(
        parameters.input_mask_polygons, crs_wkt, to_image=transform.to_image if transform else None
    )


def _local_folder(key: str) -> Path:
    """Local copies of a run's labels; those of runs that nobody finished go after a week."""
    parent = settings().cache / "export-labels"
    folder = parent / key
    folder.mkdir(parents=True, exist_ok=True)
    for other in parent.iterdir():
        with contextlib.suppress(OSError):  # another process may be removing it
            if other.stat().st_mtime < time.time() - _KEEP_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _overlap(a: Bounds, b: Bounds) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _rounded(bounds: Bounds | None) -> tuple[float, ...]:
    return tuple(round(value, 2) for value in bounds or ())
