"""Vector labels: polygons, lines or points with a class value, from a file or an object in the store.

The search order for the class value field is the one of the ArcGIS tool
(docs/formats/training-data.md, "Parameters").
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from tasks.errors import LabelError
from tasks.labels.schema import ClassSchema, Color

if TYPE_CHECKING:
    import geopandas

Bounds = tuple[float, float, float, float]

# ArcGIS looks for these names, in this order, when no class value field is given.
CLASS_VALUE_FIELDS = ("value", "classvalue")
CLASS_NAME_FIELD = "classname"
COLOR_FIELDS = ("red", "green", "blue")
_LAYER_MARK = "|layername="
_POLYGON_TYPES = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


@dataclass(frozen=True)
class VectorLabels:
    """Labels as valid polygons in one CRS, in the order of the file; a later record lies on top.

    Attributes:
        uri: where they come from.
        crs_wkt: the CRS of ``geometries``.
        geometries: (features,) shapely polygons and multipolygons, none empty.
        values: (features,) int64 class value of each.
        schema: the classes that occur in the file.
        class_value_field: the field the values come from; None if every record is class 1.
        repaired: features whose rings were invalid and have been repaired.
        empty: features left out because they have no geometry or no area.
        unprojectable: features left out because they have no place in the target CRS.
    """

    uri: str
    crs_wkt: str
    geometries: npt.NDArray[np.object_]
    values: npt.NDArray[np.int64]
    schema: ClassSchema
    class_value_field: str | None = None
    repaired: int = 0
    empty: int = 0
    unprojectable: int = 0
    source_crs: str = ""

    def __len__(self) -> int:
        return len(self.geometries)

    @cached_property
    def tree(self) -> shapely.STRtree:
        """The spatial index over ``geometries``."""
        return shapely.STRtree(self.geometries)

    @cached_property
    def bounds(self) -> Bounds:
        """(xmin, ymin, xmax, ymax) of all labels, map units."""
        xmin, ymin, xmax, ymax = (float(value) for value in shapely.total_bounds(self.geometries))
        return xmin, ymin, xmax, ymax

    def query(self, bounds: Bounds) -> npt.NDArray[np.intp]:
        """Ascending indices of the labels that touch the rectangle (xmin, ymin, xmax, ymax), map units."""
        return np.sort(self.tree.query(shapely.box(*bounds), predicate="intersects"))


def read_vector_labels(
    uri: str,
    classvalue_field: str | None = None,
    target_crs_wkt: str | None = None,
    *,
    buffer_radius: float = 0.0,
) -> VectorLabels:
    """Read labels and bring them into the raster's CRS.

    Args:
        uri: GeoPackage, GeoJSON, Shapefile (zipped or with its side files), FlatGeobuf or GeoParquet, in
            the store or on disk. ``…|layername=trees`` picks a layer.
        classvalue_field: integer field with the class value. None searches ``value``, then
            ``classvalue`` (any case); if neither exists every record is class 1.
        target_crs_wkt: CRS to reproject to; None keeps the labels' own.
        buffer_radius: grows every label, in the linear unit of the labels' own CRS; turns points into
            circles and lines into strips.

    Raises:
        NotFoundError: no such object.
        LabelError: unreadable, no CRS, no features, an unknown field, class values that are no positive
            integers, points or lines without a buffer.
    """
    frame = read_frame(uri)
    if len(frame) == 0:
        raise LabelError(
            f"The labels {uri} hold no features.", "Name a layer with at least one labelled feature."
        )
    if frame.crs is None:
        raise LabelError(
            f"The labels {uri} have no coordinate reference system.",
            "Assign one, for example with ogr2ogr -a_srs EPSG:32612.",
        )
    fields = [str(name) for name in frame.columns if name != frame.geometry.name]
    value_field = _class_value_field(uri, classvalue_field, fields)
    values = _class_values(uri, value_field, frame)
    geometries = np.asarray(frame.geometry.array, dtype=object)
    missing = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    schema = _schema(uri, values[~missing], _columns(frame, fields), ~missing)

    geometries, values = shapely.force_2d(geometries[~missing]), values[~missing]
    empty = int(missing.sum())
    geometries, repaired = _repair(geometries)
    geometries = _grow(uri, geometries, buffer_radius, geographic=bool(frame.crs.is_geographic))
    geometries, values, lost = _drop_without_area(geometries, values)
    empty += lost
    source_crs = frame.crs.to_wkt()
    unprojectable = 0
    if target_crs_wkt is not None and len(geometries):
        geometries, values, unprojectable = _reproject(geometries, values, source_crs, target_crs_wkt)
    if not len(geometries):
        raise LabelError(
            f"None of the {len(frame)} features of {uri} has an area that can be used "
            f"({empty} empty, {unprojectable} outside the raster's projection).",
            "Check the geometries, the coordinate reference system and, for points or lines, buffer_radius.",
        )
    return VectorLabels(
        uri=uri,
        crs_wkt=target_crs_wkt or source_crs,
        geometries=geometries,
        values=values,
        schema=schema,
        class_value_field=value_field,
        repaired=repaired,
        empty=empty,
        unprojectable=unprojectable,
        source_crs=frame.crs.to_string(),
    )


def split_layer(uri: str) -> tuple[str, str | None]:
    """``a.gpkg|layername=trees`` (QGIS's spelling) as URI and layer."""
    if _LAYER_MARK in uri:
        base, layer = uri.split(_LAYER_MARK, 1)
        return base, layer
    return uri, None


def read_frame(uri: str) -> geopandas.GeoDataFrame:
    """The features of a file as they are, CRS and fields included; formats as in :func:`read_vector_labels`.

    Raises:
        NotFoundError: no such object.
        LabelError: unreadable, several layers to choose from, no geometry.
    """
    import geopandas
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    base, layer = split_layer(uri)
    with _local_copy(base) as path:
        if path.suffix.lower() in {".parquet", ".geoparquet"}:
            try:
                return geopandas.read_parquet(path)
            except (ValueError, OSError) as error:
                raise _unreadable(uri, error) from error
        source = f"/vsizip/{path}" if path.suffix.lower() == ".zip" else str(path)
        try:
            layers = [str(name) for name, kind in pyogrio.list_layers(source) if kind is not None]
        except DataSourceError as error:
            raise _unreadable(uri, error) from error
        if layer is None and len(layers) > 1:
            raise LabelError(
                f"{uri} holds several layers: {', '.join(layers)}.",
                f"Pick one by writing {base}{_LAYER_MARK}{layers[0]}.",
            )
        if layer is not None and layer not in layers:
            raise LabelError(
                f"{base} has no layer {layer!r}.", f"Use one of: {', '.join(layers) or 'none with geometry'}."
            )
        if not layers:
            raise LabelError(f"{uri} holds no layer with geometry.", "Name a file with polygons.")
        try:
            frame = geopandas.read_file(source, layer=layer or layers[0], engine="pyogrio")
        except (DataSourceError, DataLayerError) as error:
            raise _unreadable(uri, error) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise LabelError(f"{uri} holds a table without geometry.", "Name a file with polygons.")
    return frame


def _unreadable(uri: str, error: Exception) -> LabelError:
    return LabelError(
        f"The labels {uri} cannot be read: {error}.",
        "Use a GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet file.",
    )


@contextmanager
def _local_copy(uri: str) -> Iterator[Path]:
    """The file on disk for as long as it is read; a Shapefile comes with its side files."""
    from tasks.store import ObjectStore

    store = ObjectStore()
    store.stat(uri)
    if not uri.startswith("s3://"):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="labels-") as folder:
        name = uri.rsplit("/", 1)[1]
        target = Path(folder) / name
        if name.lower().endswith(".shp"):
            for item in store.list(uri[: -len("shp")]):
                store.download(item.uri, Path(folder) / item.uri.rsplit("/", 1)[1])
        else:
            store.download(uri, target)
        yield target


def _class_value_field(uri: str, wanted: str | None, fields: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in reversed(fields)}
    if wanted:
        if wanted in fields:
            return wanted
        if wanted.lower() in by_lower:
            return by_lower[wanted.lower()]
        raise LabelError(
            f"The labels {uri} have no field {wanted!r}.",
            f"Set classvalue_field to one of the fields there: {', '.join(fields) or '(none)'}.",
        )
    for name in CLASS_VALUE_FIELDS:
        if name in by_lower:
            return by_lower[name]
    return None


def _class_values(uri: str, field_name: str | None, frame: geopandas.GeoDataFrame) -> npt.NDArray[np.int64]:
    if field_name is None:
        return np.ones(len(frame), dtype=np.int64)
    import pandas

    numbers = pandas.to_numeric(frame[field_name], errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~np.isfinite(numbers) | (numbers != np.floor(numbers)) | (numbers < 1)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise LabelError(
            f"The field {field_name!r} of {uri} has {int(wrong.sum())} records without a positive whole "
            f"number (the first: record {first + 1}, {frame[field_name].iloc[first]!r}).",
            "Number the classes from 1 in an integer field and name it in classvalue_field.",
        )
    whole: npt.NDArray[np.int64] = numbers.astype(np.int64)
    return whole


def _columns(frame: geopandas.GeoDataFrame, fields: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    wanted = (CLASS_NAME_FIELD, *COLOR_FIELDS)
    return {name.lower(): frame[name].to_numpy() for name in reversed(fields) if name.lower() in wanted}


def _schema(
    uri: str,
    values: npt.NDArray[np.int64],
    columns: dict[str, npt.NDArray[Any]],
    keep: npt.NDArray[np.bool_],
) -> ClassSchema:
    names: dict[int, str] = {}
    colors: dict[int, Color] = {}
    columns = {name: column[keep] for name, column in columns.items()}
    for value in (int(item) for item in np.unique(values)):
        rows = values == value
        given = []
        if CLASS_NAME_FIELD in columns:
            given = sorted({str(item).strip() for item in columns[CLASS_NAME_FIELD][rows] if _there(item)})
        if len(given) > 1:
            raise LabelError(
                f"The class value {value} of {uri} carries several names: {', '.join(given)}.",
                f"Give all records of a value one name in the field {CLASS_NAME_FIELD!r}.",
            )
        names[value] = given[0] if given else str(value)
        color = _color([columns[name][rows] for name in COLOR_FIELDS if name in columns])
        if color is not None:
            colors[value] = color
    return ClassSchema.from_values(names, colors)


def _there(item: object) -> bool:
    # NaN, which pandas puts where a text is missing, differs from itself.
    return item is not None and item == item and str(item).strip() != ""


def _color(channels: list[npt.NDArray[Any]]) -> Color | None:
    if len(channels) != len(COLOR_FIELDS):
        return None
    first = [channel[0] for channel in channels]
    if not all(_there(item) and 0 <= float(item) <= 255 for item in first):
        return None
    return int(first[0]), int(first[1]), int(first[2])


def _repair(geometries: npt.NDArray[np.object_]) -> tuple[npt.NDArray[np.object_], int]:
    bad = ~shapely.is_valid(geometries)
    if not bad.any():
        return geometries, 0
    repaired = geometries.copy()
    repaired[bad] = shapely.make_valid(geometries[bad], method="structure", keep_collapsed=False)
    return repaired, int(bad.sum())


def _grow(
    uri: str, geometries: npt.NDArray[np.object_], radius: float, *, geographic: bool
) -> npt.NDArray[np.object_]:
    if radius > 0:
        if geographic:
            raise LabelError(
                f"buffer_radius is a length, but the labels {uri} are in degrees.",
                "Project the labels to a CRS in metres or feet.",
            )
        return np.asarray(shapely.buffer(geometries, radius), dtype=object)
    kinds = set(np.unique(shapely.get_dimensions(geometries)).tolist())
    if 2 not in kinds:
        raise LabelError(
            f"The labels {uri} are points or lines, which cover no pixels.",
            "Give a buffer_radius, or name a layer of polygons.",
        )
    return geometries


def _drop_without_area(
    geometries: npt.NDArray[np.object_], values: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int64], int]:
    """Only polygons with an area remain; of a collection its polygons."""
    mixed = np.isin(shapely.get_type_id(geometries), _POLYGON_TYPES, invert=True)
    if mixed.any():
        geometries = geometries.copy()
        for index in np.flatnonzero(mixed):
            parts = shapely.get_parts(geometries[index])
            polygons = [part for part in parts if shapely.get_dimensions(part) == 2]
            geometries[index] = shapely.union_all(polygons) if polygons else shapely.Polygon()
    keep = shapely.area(geometries) > 0
    return geometries[keep], values[keep], int((~keep).sum())


def _reproject(
    geometries: npt.NDArray[np.object_], values: npt.NDArray[np.int64], source: str, target: str
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int64], int]:
    from pyproj import CRS, Transformer

    source_crs, target_crs = CRS.from_wkt(source), CRS.from_wkt(target)
    if source_crs.equals(target_crs, ignore_axis_order=True):
        return geometries, values, 0
    transformer = Transformer.from_crs(source_crs, target_crs, always_xy=True)

    def move(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = transformer.transform(points[:, 0], points[:, 1])
        return np.column_stack([x, y])

    moved = np.asarray(shapely.transform(geometries, move), dtype=object)
    finite = np.isfinite(shapely.bounds(moved)).all(axis=1)
    # A ring may cross itself after the move; this is a matter of the projection, not of the input.
    moved, _ = _repair(moved[finite])
    moved, kept, lost = _drop_without_area(moved, values[finite])
    return moved, kept, int((~finite).sum()) + lost
