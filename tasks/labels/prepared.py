"""Vector labels made ready for cutting chips, however many there are.

Labels are streamed once from their source into a FlatGeobuf file: valid polygons in the grid's CRS with a
spatial index over them, the number of the record and the class value. Whoever cuts chips reads from it what
lies near; what comes back depends neither on the window that was asked for nor on the order in the index.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from pydantic import BaseModel, ConfigDict

from tasks.errors import LabelError, NotFoundError
from tasks.imagery.windows import Window
from tasks.labels.pixels import PixelLabels, on_grid
from tasks.labels.records import LabelBatch, LabelStream, ToImage
from tasks.labels.schema import ClassSchema
from tasks.labels.sources import open_source

if TYPE_CHECKING:
    import pyarrow as pa

Bounds = tuple[float, float, float, float]

_INDEX, _VALUE, _GEOMETRY = "index", "value", "geometry"
_PIXEL_CRS = 'LOCAL_CS["pixels of an image",UNIT["pixel",1]]'
# Up to this size labels are kept in memory: asking the file takes a millisecond, asking a tree microseconds.
_KEPT_FEATURES = 50_000
_KEPT_BYTES = 32 * 2**20


class LabelFacts(BaseModel):
    """What there is to know of prepared labels without looking at them, as JSON in a plan.

    Attributes:
        features: labels that can be used.
        repaired: records whose rings were invalid and have been repaired.
        empty: records left out because they have no geometry or no area.
        unprojectable: records left out because they have no place in the grid's CRS or the image.
        class_value_field: the field the class values come from; None if every record is class 1.
        source_crs: the CRS of the source, as a short text.
        bounds: (xmin, ymin, xmax, ymax) of all labels in the grid's CRS; in pixel space x is the column and
            y minus the row.
        classes: as ``ClassSchema.to_records``.
        bytes: size of the prepared file.
    """

    model_config = ConfigDict(frozen=True)

    features: int
    repaired: int
    empty: int
    unprojectable: int
    class_value_field: str | None
    source_crs: str
    bounds: Bounds
    classes: list[dict[str, Any]]
    bytes: int


def prepare_labels(
    uri: str,
    into: Path,
    *,
    classvalue_field: str | None = None,
    target_crs_wkt: str | None = None,
    buffer_radius: float = 0.0,
    schema: ClassSchema | None = None,
    to_image: ToImage | None = None,
) -> LabelFacts:
    """Stream labels into a spatially indexed file; memory does not grow with what a label weighs.

    Args:
        uri: any vector source, as for :func:`tasks.labels.vector.read_vector_labels`.
        into: the FlatGeobuf file to write; its folder must exist.
        classvalue_field: integer field with the class value. None searches ``value``, then ``classvalue``
            (any case); if neither exists every record is class 1. With ``schema`` a field of class names is
            fine too, and ``classname`` is searched as well.
        target_crs_wkt: CRS of the grid; with ``to_image`` the CRS that it takes. None keeps the labels' own.
        buffer_radius: grows every label, in the linear unit of the labels' own CRS; turns points into
            circles and lines into strips.
        schema: names the classes, whatever the file says; a value that it lacks is an error.
        to_image: maps x, y to (column, row) of an image. The labels are then kept in pixel space: the grid
            has no CRS and the transform (1, 0, 0, 0, -1, 0).

    Raises:
        NotFoundError: no such object.
        LabelError: unreadable, no CRS, no features, an unknown field, class values that are no positive
            integers or not in ``schema``, points or lines without a buffer, nothing with an area.
    """
    import pyarrow as pa
    from pyogrio.errors import DataSourceError, FeatureError, GeometryError
    from pyogrio.raw import write_arrow

    with open_source(uri) as source:
        stream = LabelStream(
            source,
            classvalue_field=classvalue_field,
            target_crs_wkt=target_crs_wkt,
            buffer_radius=buffer_radius,
            schema=schema,
            to_image=to_image,
        )
        form = pa.schema(
            [
                (_INDEX, pa.int64()),
                (_VALUE, pa.int64()),
                pa.field(_GEOMETRY, pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"}),
            ]
        )
        gathered = _Gathered()
        try:
            write_arrow(
                pa.RecordBatchReader.from_batches(form, gathered.take(stream, form)),
                into,
                driver="FlatGeobuf",
                geometry_name=_GEOMETRY,
                geometry_type="Unknown",
                crs=stream.crs_wkt if to_image is None else _PIXEL_CRS,
                SPATIAL_INDEX="YES",
            )
        except (
            DataSourceError,
            FeatureError,
            GeometryError,
            pa.ArrowException,
            OSError,
            RuntimeError,
        ) as error:
            into.unlink(missing_ok=True)
            # What went wrong in the stream comes out of GDAL as a text only.
            raise gathered.error or LabelError(
                f"The labels {uri} cannot be prepared: {error}.", "Check the disk space of the worker."
            ) from error
    return LabelFacts(
        features=gathered.features,
        repaired=stream.repaired,
        empty=stream.empty,
        unprojectable=stream.unprojectable,
        class_value_field=stream.class_value_field,
        source_crs=stream.source_crs,
        bounds=gathered.bounds(),
        classes=stream.schema().to_records(),
        bytes=into.stat().st_size,
    )


def open_labels(path: Path, facts: LabelFacts) -> PreparedLabels:
    """Labels that :func:`prepare_labels` has written.

    Raises:
        NotFoundError: no such file.
    """
    if not path.is_file():
        raise NotFoundError(f"There are no prepared labels at {path}.", "Run the export again.")
    return PreparedLabels(path, facts)


@dataclass(frozen=True)
class _Held:
    """The labels that touch a window of a grid."""

    key: tuple[float, ...]
    window: Window
    labels: PixelLabels


@dataclass(frozen=True)
class PreparedLabels:
    """Labels behind a spatial index. Usable from many threads."""

    path: Path
    facts: LabelFacts
    _kept: dict[str, LabelBatch] = field(default_factory=dict, repr=False, compare=False)
    _on_grids: dict[tuple[float, ...], PixelLabels] = field(default_factory=dict, repr=False, compare=False)
    _held: list[_Held] = field(default_factory=list, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @cached_property
    def schema(self) -> ClassSchema:
        """The classes of all labels."""
        return ClassSchema.from_records(self.facts.classes)

    def near(self, grid_transform: Sequence[float], window: Window) -> PixelLabels:
        """The labels that touch a window, in the order of their records, in pixels of the grid.

        Each is the same whatever window was asked for.

        Args:
            grid_transform: (a, b, c, d, e, f) of the grid, pixel to map.
            window: pixels of the grid; it may lie outside.
        """
        frame = shapely.box(window.col, window.row, window.col_stop, window.row_stop)
        held = self._holds(grid_transform, window)
        if held is not None or self._is_small:
            whole = self._on_grid(grid_transform) if held is None else held
            chosen = np.sort(whole.tree.query(frame, predicate="intersects"))
        else:
            whole = self._placed(self._read(_map_bounds(grid_transform, window)), grid_transform)
            shapely.prepare(frame)
            chosen = np.flatnonzero(shapely.intersects(whole.geometries, frame))
        return PixelLabels(
            whole.geometries[chosen], whole.values[chosen], whole.schema, whole.numbers[chosen]
        )

    def reach(self, grid_transform: Sequence[float], window: Window) -> None:
        """Keep the labels that touch a window in memory, if they are few, in place of an earlier window's.

        Args:
            grid_transform: as for :meth:`near`.
            window: all windows that will be asked for lie inside; others are answered all the same.
        """
        key = tuple(float(value) for value in grid_transform)
        if key in self._on_grids or self._holds(key, window) is not None:
            return
        bounds = _map_bounds(grid_transform, window)
        share = _share(self.facts.bounds, bounds)
        if not self._are_few(share):
            self._held.clear()
            return
        placed = self._placed(self._read(bounds), grid_transform)
        _ = placed.tree
        self._held[:] = [_Held(key, window, placed)]

    def _holds(self, grid_transform: Sequence[float], window: Window) -> PixelLabels | None:
        for held in list(self._held):  # it may be replaced meanwhile
            if held.key == tuple(grid_transform) and held.window.contains(window):
                return held.labels
        return None

    def _are_few(self, share: float) -> bool:
        """Whether a share of the labels' area may be expected to hold few of them."""
        # Labels lie unevenly, though a few times as many do no harm.
        return self.facts.features * share <= _KEPT_FEATURES and self.facts.bytes * share <= _KEPT_BYTES

    @property
    def _is_small(self) -> bool:
        return self._are_few(1.0)

    def _all(self) -> LabelBatch:
        with self._lock:
            if "all" not in self._kept:
                self._kept["all"] = self._read(None)
            return self._kept["all"]

    def _on_grid(self, grid_transform: Sequence[float]) -> PixelLabels:
        key = tuple(float(value) for value in grid_transform)
        everything = self._all()
        with self._lock:
            if key not in self._on_grids:
                # The items of a collection have grids of their own, and come one after the other.
                self._on_grids.clear()
                placed = self._placed(everything, grid_transform)
                _ = placed.tree
                self._on_grids[key] = placed
            return self._on_grids[key]

    def _placed(self, batch: LabelBatch, grid_transform: Sequence[float]) -> PixelLabels:
        geometries = on_grid(batch.geometries, grid_transform)
        keep = shapely.area(geometries) > 0
        return PixelLabels(geometries[keep], batch.values[keep], self.schema, batch.records[keep])

    def _read(self, bounds: Bounds | None) -> LabelBatch:
        """What may touch a rectangle, in the order of the records."""
        from pyogrio.errors import DataSourceError, FeatureError
        from pyogrio.raw import read

        try:
            meta, _, geometries, fields = read(self.path, columns=[_INDEX, _VALUE], bbox=bounds)
        except (DataSourceError, FeatureError) as error:
            raise LabelError(f"{self.path} cannot be read: {error}.", "Run the export again.") from error
        if list(meta["fields"]) != [_INDEX, _VALUE]:
            raise LabelError(f"{self.path} holds no prepared labels.", "Run the export again.")
        return _sorted(geometries, *fields)


class _Gathered:
    """What passes through on the way into the file: how much, from where to where, and what stopped it."""

    def __init__(self) -> None:
        self.features = 0
        self.error: Exception | None = None
        self._bounds: list[npt.NDArray[np.float64]] = []

    def take(self, stream: LabelStream, form: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The labels as arrow batches."""
        import pyarrow as pa

        try:
            for batch in stream.batches():
                self.features += len(batch.records)
                self._bounds.append(np.array(shapely.total_bounds(batch.geometries)))
                columns = [
                    pa.array(batch.records),
                    pa.array(batch.values),
                    pa.array(shapely.to_wkb(batch.geometries), type=pa.binary()),
                ]
                yield pa.record_batch(columns, schema=form)
        except Exception as error:
            self.error = error
            raise

    def bounds(self) -> Bounds:
        """Of all labels."""
        edges = np.array(self._bounds)
        xmin, ymin = edges[:, :2].min(axis=0).tolist()
        xmax, ymax = edges[:, 2:].max(axis=0).tolist()
        return xmin, ymin, xmax, ymax


def _sorted(
    wkb: npt.NDArray[np.object_], index: npt.NDArray[np.int64], value: npt.NDArray[np.int64]
) -> LabelBatch:
    order = np.argsort(index, kind="stable")
    geometries = np.asarray(shapely.from_wkb(wkb), dtype=object).reshape(len(index))[order]
    return LabelBatch(index[order].astype(np.int64), value[order].astype(np.int64), geometries)


def _share(whole: Bounds, part: Bounds) -> float:
    """Which share of a rectangle's area lies in another one; 1 where it has none."""
    area = (whole[2] - whole[0]) * (whole[3] - whole[1])
    width = min(whole[2], part[2]) - max(whole[0], part[0])
    height = min(whole[3], part[3]) - max(whole[1], part[1])
    return max(0.0, width) * max(0.0, height) / area if area > 0 else 1.0


def _map_bounds(grid_transform: Sequence[float], window: Window) -> Bounds:
    """A window with a pixel around it, which covers what rounding to the grid moves."""
    wide = window.expand(1)
    transform = Affine(*grid_transform)
    corners = np.array(
        [transform @ (col, row) for col in (wide.col, wide.col_stop) for row in (wide.row, wide.row_stop)]
    )
    xmin, ymin = corners.min(axis=0).tolist()
    xmax, ymax = corners.max(axis=0).tolist()
    return xmin, ymin, xmax, ymax
