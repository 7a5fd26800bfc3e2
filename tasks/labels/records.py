"""From the records of a vector source to labels: class values, classes, valid polygons in the wanted place.

Records come and go in batches; what is kept of the whole file are counts and the classes. Reading labels at
once and streaming them into a spatial index both stand on this module.

The search order for the class value field is the one of the ArcGIS tool
(docs/formats/training-data.md, "Parameters").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from tasks.errors import LabelError
from tasks.labels.schema import ClassSchema, Color
from tasks.labels.sources import VectorSource, open_source

if TYPE_CHECKING:
    from pyproj import CRS

Floats = npt.NDArray[np.float64]
ToImage = Callable[[Floats, Floats], tuple[Floats, Floats]]

# ArcGIS looks for these names, in this order, when no class value field is given.
CLASS_VALUE_FIELDS = ("value", "classvalue")
CLASS_NAME_FIELD = "classname"
COLOR_FIELDS = ("red", "green", "blue")
HEX_COLOR_FIELDS = ("color", "colour")
_POLYGON_TYPES = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
_NAMED_IN_ERRORS = 10


@dataclass(frozen=True)
class LabelBatch:
    """Some labels, in the order of the file.

    Attributes:
        records: (n,) int64, number of the record in the file, from 0; ascending.
        values: (n,) int64 class values.
        geometries: (n,) valid polygons and multipolygons, none empty.
    """

    records: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    geometries: npt.NDArray[np.object_]


class LabelStream:
    """The labels of an open source, as a stream; what concerns the whole file is known at its end.

    Args:
        source: where they come from.
        classvalue_field: integer field with the class value. None searches ``value``, then ``classvalue``
            (any case); if neither exists every record is class 1, unless ``schema`` is given and there is a
            field ``classname``.
        target_crs_wkt: CRS to reproject to; None keeps the labels' own.
        buffer_radius: grows every label, in the linear unit of the labels' own CRS; turns points into
            circles and lines into strips.
        schema: names the classes, whatever the file says; a value that it lacks is an error.
        to_image: maps x, y in the target CRS to column, row of an image; labels then have x = column,
            y = -row.
        with_classes: False where only the polygons matter; every record is then class 1.

    Attributes:
        total: records seen so far.
        repaired: records whose rings were invalid and have been repaired.
        empty: records left out because they have no geometry, no finite coordinates or no area.
        unprojectable: records left out because they have no place in the target CRS or the image.
        class_value_field: the field the values come from; None if every record is class 1.

    Raises:
        LabelError: no CRS, an unknown field, a buffer in degrees.
    """

    def __init__(
        self,
        source: VectorSource,
        *,
        classvalue_field: str | None = None,
        target_crs_wkt: str | None = None,
        buffer_radius: float = 0.0,
        schema: ClassSchema | None = None,
        to_image: ToImage | None = None,
        with_classes: bool = True,
    ) -> None:
        self.source = source
        self.total = self.repaired = self.empty = self.unprojectable = 0
        self._kept = 0
        if source.crs is None:
            raise LabelError(
                f"The labels {source.uri} have no coordinate reference system.",
                "Assign one, for example with ogr2ogr -a_srs EPSG:32612.",
            )
        self.class_value_field = (
            _class_value_field(source, classvalue_field, schema) if with_classes else None
        )
        if buffer_radius > 0 and source.crs.is_geographic:
            raise LabelError(
                f"buffer_radius is a length, but the labels {source.uri} are in degrees.",
                "Project the labels to a CRS in metres or feet.",
            )
        self.source_crs: str = source.crs.to_string()
        self.crs_wkt: str = target_crs_wkt or source.crs.to_wkt()
        self._radius = buffer_radius
        self._move = _mover(source.crs, target_crs_wkt, to_image)
        self._dimensions: set[int] = set()
        self._classes = _Classes(source.uri, self.class_value_field, schema)
        self._roles = self._classes.columns(source.fields) if with_classes else {}

    def batches(self) -> Iterator[LabelBatch]:
        """The labels.

        Raises:
            LabelError: after the last record, if the file as a whole cannot be used: no features, class
                values that are no positive integers or not in the schema, several names for one value,
                only points or lines without a buffer, nothing with an area.
        """
        for batch in self.source.batches(sorted(set(self._roles.values()))):
            records = np.arange(self.total, self.total + len(batch), dtype=np.int64)
            self.total += len(batch)
            missing = shapely.is_missing(batch.geometries) | shapely.is_empty(batch.geometries)
            roles = {role: batch.columns[name] for role, name in self._roles.items()}
            values = self._classes.take(records, roles, ~missing)
            if values is None:
                continue
            self.empty += int(missing.sum())
            label_batch = self._polygons(records[~missing], values[~missing], batch.geometries[~missing])
            self._kept += len(label_batch.records)
            if len(label_batch.records):
                yield label_batch
        self._check()

    def schema(self) -> ClassSchema:
        """The classes, once all batches have been taken."""
        return self._classes.schema()

    def _polygons(
        self,
        records: npt.NDArray[np.int64],
        values: npt.NDArray[np.int64],
        geometries: npt.NDArray[np.object_],
    ) -> LabelBatch:
        geometries = np.asarray(shapely.force_2d(geometries), dtype=object)
        whole = are_finite(geometries)
        geometries, records, values = geometries[whole], records[whole], values[whole]
        geometries, repaired = repair(geometries)
        self.repaired += repaired
        self._dimensions |= set(np.unique(shapely.get_dimensions(geometries)).tolist())
        if self._radius > 0:
            geometries = np.asarray(shapely.buffer(geometries, self._radius), dtype=object)
        geometries = only_polygons(geometries)
        keep = shapely.area(geometries) > 0
        self.empty += int((~whole).sum()) + int((~keep).sum())
        geometries, records, values = geometries[keep], records[keep], values[keep]
        if self._move is not None and len(geometries):
            moved = np.asarray(shapely.transform(geometries, self._move), dtype=object)
            there = are_finite(moved)
            # A ring may cross itself after the move; this is a matter of the projection, not of the input.
            moved[there] = only_polygons(repair(moved[there])[0])
            there[there] = shapely.area(moved[there]) > 0
            self.unprojectable += int((~there).sum())
            geometries, records, values = moved[there], records[there], values[there]
        return LabelBatch(records, values, geometries)

    def _check(self) -> None:
        uri = self.source.uri
        if not self.total:
            raise LabelError(
                f"The labels {uri} hold no features.", "Name a layer with at least one labelled feature."
            )
        self._classes.check()
        self.schema()
        if self._radius <= 0 and self._dimensions and 2 not in self._dimensions:
            raise LabelError(
                f"The labels {uri} are points or lines, which cover no pixels.",
                "Give a buffer_radius, or name a layer of polygons.",
            )
        if not self._kept:
            raise LabelError(
                f"None of the {self.total} features of {uri} has an area that can be used "
                f"({self.empty} empty, {self.unprojectable} outside the raster's projection).",
                "Check the geometries, the coordinate reference system and, for points or lines, "
                "buffer_radius.",
            )


def are_finite(geometries: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Which geometries have only finite coordinates  # (n,)."""
    coordinates, index = shapely.get_coordinates(geometries, return_index=True)
    finite = np.ones(len(geometries), dtype=bool)
    finite[index[~np.isfinite(coordinates).all(axis=1)]] = False
    return finite


def repair(geometries: npt.NDArray[np.object_]) -> tuple[npt.NDArray[np.object_], int]:
    """Valid geometries, and how many were not; rings keep their roles, what collapses goes."""
    bad = ~shapely.is_valid(geometries)
    if not bad.any():
        return geometries, 0
    repaired = geometries.copy()
    repaired[bad] = shapely.make_valid(geometries[bad], method="structure", keep_collapsed=False)
    return repaired, int(bad.sum())


def only_polygons(geometries: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Of a collection its polygons; an empty polygon in place of points and lines."""
    mixed = np.isin(shapely.get_type_id(geometries), _POLYGON_TYPES, invert=True)
    if not mixed.any():
        return geometries
    areal = geometries.copy()
    for index in np.flatnonzero(mixed):
        parts = shapely.get_parts(geometries[index])
        areal[index] = shapely.union_all(only_polygons(parts)) if _is_nested(parts) else _union(parts)
    return areal


def _is_nested(parts: npt.NDArray[np.object_]) -> bool:
    return bool((shapely.get_type_id(parts) == shapely.GeometryType.GEOMETRYCOLLECTION).any())


def _union(parts: npt.NDArray[np.object_]) -> shapely.Geometry:
    polygons = parts[shapely.get_dimensions(parts) == 2]
    return shapely.union_all(polygons) if len(polygons) else shapely.Polygon()


def _mover(
    source: CRS, target_crs_wkt: str | None, to_image: ToImage | None
) -> Callable[[Floats], Floats] | None:
    from pyproj import CRS, Transformer

    transformer = None
    if target_crs_wkt is not None:
        target = CRS.from_wkt(target_crs_wkt)
        if not source.equals(target, ignore_axis_order=True):
            transformer = Transformer.from_crs(source, target, always_xy=True)
    if transformer is None and to_image is None:
        return None

    def move(points: Floats) -> Floats:
        x, y = points[:, 0], points[:, 1]
        if transformer is not None:
            x, y = transformer.transform(x, y)
        if to_image is not None:
            cols, rows = to_image(x, y)
            x, y = cols, -np.asarray(rows)
        moved = np.column_stack([x, y])
        # Infinity is pyproj's word for "no place"; a ring with NaN would not close.
        moved[~np.isfinite(moved)] = np.inf
        return moved

    return move


def _class_value_field(source: VectorSource, wanted: str | None, schema: ClassSchema | None) -> str | None:
    by_lower = {name.lower(): name for name in reversed(source.fields)}
    if wanted:
        if wanted in source.fields:
            return wanted
        if wanted.lower() in by_lower:
            return by_lower[wanted.lower()]
        raise LabelError(
            f"The labels {source.uri} have no field {wanted!r}.",
            f"Set classvalue_field to one of the fields there: {', '.join(source.fields) or '(none)'}.",
        )
    # A schema gives every class name a value, so that names alone are enough.
    searched = CLASS_VALUE_FIELDS if schema is None else (*CLASS_VALUE_FIELDS, CLASS_NAME_FIELD)
    return next((by_lower[name] for name in searched if name in by_lower), None)


@dataclass
class _Classes:
    """Gathers the classes of a file, batch by batch."""

    uri: str
    value_field: str | None
    given: ClassSchema | None
    _wrong: int = 0
    _first_wrong: tuple[int, Any] | None = None
    _unknown: dict[str, None] = field(default_factory=dict)
    _names: dict[int, set[str]] = field(default_factory=dict)
    _colors: dict[int, Color] = field(default_factory=dict)

    def columns(self, fields: Sequence[str]) -> dict[str, str]:
        """The fields that matter, by what they are for."""
        by_lower = {name.lower(): name for name in reversed(fields)}
        roles = {} if self.value_field is None else {"value": self.value_field}
        if self.given is not None:
            return roles
        if CLASS_NAME_FIELD in by_lower:
            roles["name"] = by_lower[CLASS_NAME_FIELD]
        if all(name in by_lower for name in COLOR_FIELDS):
            roles |= {name: by_lower[name] for name in COLOR_FIELDS}
        else:
            hexadecimal = [by_lower[name] for name in HEX_COLOR_FIELDS if name in by_lower]
            if hexadecimal:
                roles["color"] = hexadecimal[0]
        return roles

    def take(
        self,
        records: npt.NDArray[np.int64],
        roles: dict[str, npt.NDArray[Any]],
        keep: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.int64] | None:
        """The class values of a batch; None once the file cannot be used any more.

        Args:
            keep: which records have a geometry; the others name no class.
        """
        values = self._values(records, roles)
        if values is None:
            return None
        if self.given is not None:
            known = np.isin(values, self.given.values)
            for value in np.unique(values[~known]).tolist():
                self._unknown.setdefault(str(value))
            return None if self._unknown else values
        self._describe(values[keep], {role: column[keep] for role, column in roles.items()})
        return values

    def _values(
        self, records: npt.NDArray[np.int64], roles: dict[str, npt.NDArray[Any]]
    ) -> npt.NDArray[np.int64] | None:
        if "value" not in roles:
            return np.ones(len(records), dtype=np.int64)
        import pandas

        column = roles["value"]
        numbers = pandas.to_numeric(pandas.Series(column), errors="coerce").to_numpy(dtype=np.float64)
        if self.given is not None and column.dtype == object:
            numbers = self._by_name(column, numbers.copy())
        wrong = ~np.isfinite(numbers) | (numbers != np.floor(numbers)) | (numbers < 1)
        if wrong.any():
            self._wrong += int(wrong.sum())
            if self._first_wrong is None:
                first = int(np.flatnonzero(wrong)[0])
                self._first_wrong = int(records[first]), column[first : first + 1].tolist()[0]
        if self._wrong:
            return None
        whole: npt.NDArray[np.int64] = numbers.astype(np.int64)
        return whole

    def _by_name(self, column: npt.NDArray[Any], numbers: Floats) -> Floats:
        if self.given is None:
            raise AssertionError("names need a schema")
        texts = np.array([str(item).strip() if _there(item) else "" for item in column], dtype=object)
        for text in dict.fromkeys(texts[np.isnan(numbers)].tolist()):
            if not text:
                continue
            value = self.given.value_of(text)
            if value is None:
                self._unknown.setdefault(text)
            # An unknown name is reported as such, not as a wrong number.
            numbers[(texts == text) & np.isnan(numbers)] = self.given.values[0] if value is None else value
        return numbers

    def _describe(self, values: npt.NDArray[np.int64], roles: dict[str, npt.NDArray[Any]]) -> None:
        for value in np.unique(values).tolist():
            self._names.setdefault(value, set())
        if "name" in roles:
            import pandas

            pairs = pandas.DataFrame({"value": values, "name": roles["name"]}).drop_duplicates()
            for value, name in zip(pairs["value"].tolist(), pairs["name"].tolist(), strict=True):
                if _there(name):
                    self._names[value].add(str(name).strip())
        if "red" not in roles and "color" not in roles:
            return
        for value in np.unique(values).tolist():
            if value in self._colors:
                continue
            row = int(np.flatnonzero(values == value)[0])
            color = _hex_color(roles["color"][row]) if "color" in roles else _rgb(roles, row)
            if color is not None:
                self._colors[value] = color

    def check(self) -> None:
        """Raise what the file is refused for."""
        if self._wrong and self._first_wrong is not None:
            record, found = self._first_wrong
            raise LabelError(
                f"The field {self.value_field!r} of {self.uri} has {self._wrong} records without a positive "
                f"whole number (the first: record {record + 1}, {found!r}).",
                "Number the classes from 1 in an integer field and name it in classvalue_field.",
            )
        if self._unknown and self.given is not None:
            unknown = list(self._unknown)
            more = f" and {len(unknown) - _NAMED_IN_ERRORS} more" if len(unknown) > _NAMED_IN_ERRORS else ""
            known = ", ".join(f"{item.value} {item.name}" for item in self.given.classes[:_NAMED_IN_ERRORS])
            raise LabelError(
                f"The labels {self.uri} hold classes that the class schema does not name: "
                f"{', '.join(unknown[:_NAMED_IN_ERRORS])}{more} (it names {known}).",
                f"Add them to the class schema, or correct the field {self.value_field!r}."
                if self.value_field
                else "Name the field with the classes in classvalue_field.",
            )
        for value in sorted(self._names):
            if len(self._names[value]) > 1:
                raise LabelError(
                    f"The class value {value} of {self.uri} carries several names: "
                    f"{', '.join(sorted(self._names[value]))}.",
                    f"Give all records of a value one name in the field {CLASS_NAME_FIELD!r}.",
                )

    def schema(self) -> ClassSchema:
        """The classes of the records with a geometry, or those that were given."""
        if self.given is not None:
            return self.given
        names = {value: next(iter(found), str(value)) for value, found in self._names.items()}
        return ClassSchema.from_values(names, self._colors)


def _there(item: object) -> bool:
    # NaN, which pandas puts where a text is missing, differs from itself.
    return item is not None and item == item and str(item).strip() != ""


def _rgb(roles: dict[str, npt.NDArray[Any]], row: int) -> Color | None:
    try:
        red, green, blue = (float(roles[name][row]) for name in COLOR_FIELDS)
    except (TypeError, ValueError):
        return None
    if not all(0 <= item <= 255 for item in (red, green, blue)):
        return None
    return int(red), int(green), int(blue)


def _hex_color(item: object) -> Color | None:
    """``#rrggbb``, also with an alpha behind it, which does not count."""
    text = str(item).strip()
    if not text.startswith("#") or len(text) not in (7, 9):
        return None
    try:
        red, green, blue = bytes.fromhex(text[1:7])
    except ValueError:
        return None
    return red, green, blue


def read_all(
    uri: str,
    *,
    classvalue_field: str | None = None,
    target_crs_wkt: str | None = None,
    buffer_radius: float = 0.0,
    to_image: ToImage | None = None,
    with_classes: bool = True,
) -> tuple[LabelBatch, LabelStream]:
    """All labels of a source at once, and the stream that they came from with its counts and classes.

    Raises:
        NotFoundError, LabelError: as :class:`LabelStream` and :func:`tasks.labels.sources.open_source`.
    """
    with open_source(uri) as source:
        stream = LabelStream(
            source,
            classvalue_field=classvalue_field,
            target_crs_wkt=target_crs_wkt,
            buffer_radius=buffer_radius,
            to_image=to_image,
            with_classes=with_classes,
        )
        batches = list(stream.batches())
    joined = LabelBatch(
        np.concatenate([batch.records for batch in batches]),
        np.concatenate([batch.values for batch in batches]),
        np.concatenate([batch.geometries for batch in batches]),
    )
    return joined, stream
