"""Raster labels: class values as pixels, read on the grid of the imagery; objects found in a mask."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tasks.errors import ChiplineError, LabelError
from tasks.imagery.collection import expand_rasters
from tasks.imagery.grid import Grid
from tasks.imagery.identity import identity_of_files
from tasks.imagery.items import RASTER_SUFFIXES
from tasks.imagery.prefetch import prefetch
from tasks.imagery.raster import RasterInfo, inspect_raster, open_raster, raster_environment
from tasks.imagery.reader import GridReader, Pixels
from tasks.imagery.windows import Window
from tasks.labels.attribute_table import (
    ClassNaming,
    naming_of_categories,
    naming_of_table,
    read_attribute_table,
    read_category_names,
    read_color_table,
    side_table_uri,
)
from tasks.labels.mask_objects import ObjectsOfMask, objects_of_mask
from tasks.labels.schema import ClassSchema, Color
from tasks.store import ObjectStore, is_local
from tasks.store.uris import local_path

__all__ = [
    "ObjectsOfMask",
    "RasterLabels",
    "is_raster_labels",
    "objects_of_mask",
    "open_raster_labels",
    "raster_classes",
]

# Named by these, a file is never tried as a raster.
_VECTOR_SUFFIXES = (
    ".gpkg", ".geojson", ".json", ".geojsonl", ".shp", ".zip", ".fgb", ".parquet", ".geoparquet", ".gdb",
    ".kml", ".kmz", ".gml", ".gpx", ".tab", ".mif", ".csv", ".sqlite", ".dxf", ".dgn",
)  # fmt: skip
_PIXEL_SPACE = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
# A raster with more distinct values than this holds measurements, not classes.
_MOST_CLASSES = 65_535
_PIECE_PX = 4_000_000
_NAMED_IN_MESSAGES = 10


class RasterLabels:
    """Label rasters on a grid; usable from many threads at once, to be closed (a context manager).

    Attributes:
        schema: the classes.
        identity: changes when the rasters or what names their classes may have changed.
        uris: the rasters, in order; where they overlap, the first one with data wins.
        dtype: the smallest unsigned integer type that holds every class value.
    """

    def __init__(
        self,
        reader: GridReader,
        schema: ClassSchema,
        classes: Mapping[int, int],
        identity: str,
    ) -> None:
        self._reader = reader
        self.schema = schema
        self.identity = identity
        self.uris = tuple(info.uri for info in reader.infos)
        self.dtype: np.dtype[np.unsignedinteger] = np.dtype(np.min_scalar_type(max(schema.values, default=1)))
        self._table = _ClassTable(classes, self.dtype)

    def read(self, window: Window) -> npt.NDArray[np.unsignedinteger]:
        """Class values of a window of the grid, which may reach outside; 0 = no label.

        Rasters that are not on the grid give their nearest pixel.

        Returns:
            array  # (rows, cols), dtype as ``self.dtype``

        Raises:
            LabelError: pixels that are no whole numbers, or class values that are not in the schema.
            RasterError: a raster cannot be read.
        """
        pixels = self._reader.read(window)
        where = ", ".join(info.uri for info in self._reader.touching(window)) or self.uris[0]
        return self._table.apply(pixels, where)

    def footprints(self) -> list[Window]:
        """Per raster the window of the grid that it may touch, clipped to the grid."""
        return self._reader.footprints()

    def close(self) -> None:
        """Close all files; safe to call twice."""
        self._reader.close()

    def __enter__(self) -> RasterLabels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_raster_labels(uri: str) -> bool:
    """Whether labels at this address are a raster: by the ending of the name, else by opening it.

    A folder, a prefix (``…/``) or a pattern counts as rasters, but a geodatabase folder (``.gdb``) does not.
    """
    name = uri.partition("|")[0].rstrip("/").lower()
    if name.endswith(_VECTOR_SUFFIXES):
        return False
    if name.endswith(RASTER_SUFFIXES):
        return True
    if uri.endswith("/") or (is_local(uri) and local_path(uri).is_dir()):
        return True
    try:
        with raster_environment(uri), open_raster(uri) as dataset:
            return int(dataset.count) > 0
    except ChiplineError:
        return False


def open_raster_labels(
    uris: Sequence[str],
    grid: Grid,
    *,
    classvalue_field: str | None = None,
    schema: ClassSchema | None = None,
) -> RasterLabels:
    """Label rasters as one mosaic on the imagery's grid.

    The classes are those of ``schema``; without it those of each raster's attribute table, else of its
    category names; a raster with neither is read once, block by block, for the values it holds, and its
    colour table (if any) gives their colours.

    Args:
        uris: rasters, folders, prefixes and patterns, as :func:`tasks.imagery.expand_rasters` takes them.
        grid: the imagery's grid. In pixel space (no CRS) a label raster must have just the imagery's size.
        classvalue_field: column of the attribute table with the class value; None takes the pixel value.
        schema: the classes, where they are given from outside.

    Raises:
        NotFoundError: there is no raster.
        LabelError: several bands, pixels that are no classes, tables that contradict each other.
        BadInputError: a raster without CRS on a grid with one.
    """
    infos = [_usable(inspect_raster(uri)) for uri in expand_rasters(uris)]
    classes, schema = _classes(infos, classvalue_field, schema)
    identities = [info.identity for info in infos]
    identity = identities[0] if len(identities) == 1 else _digest(identities)
    store = ObjectStore()
    tables = [table for info in infos if (table := side_table_uri(info.uri, store)) is not None]
    if tables:
        identity = _digest([identity, identity_of_files(tables, store)])
    reader = GridReader([_placed(info, grid) for info in infos], grid, (0,), resampling="nearest")
    return RasterLabels(reader, schema, classes, identity)


def raster_classes(uris: Sequence[str], *, classvalue_field: str | None = None) -> ClassSchema:
    """The classes of label rasters, as :func:`open_raster_labels` finds them.

    Raises:
        NotFoundError: there is no raster.
        LabelError: several bands, pixels that are no classes, tables that contradict each other.
    """
    infos = [_usable(inspect_raster(uri)) for uri in expand_rasters(uris)]
    return _classes(infos, classvalue_field, None)[1]


def _classes(
    infos: Sequence[RasterInfo], classvalue_field: str | None, schema: ClassSchema | None
) -> tuple[dict[int, int], ClassSchema]:
    """Class value by pixel value, and the classes."""
    store = ObjectStore()
    if schema is not None and classvalue_field is None:
        return {value: value for value in schema.values}, schema
    namings: list[ClassNaming] = []
    unnamed: list[ClassNaming] = []
    for info in infos:
        naming = _own_naming(info, classvalue_field, store)
        if naming is not None:
            namings.append(naming)
        elif schema is None:
            unnamed.append(_naming_by_values(info))
        else:
            namings.append(ClassNaming(info.uri, {value: value for value in schema.values}, {}))
    classes = _joined_classes([*namings, *unnamed])
    if schema is not None:
        known = {0, *schema.values}
        return {pixel: value for pixel, value in classes.items() if value in known}, schema
    schema = _joined_schema(namings, unnamed)
    if not len(schema):
        what = f"label raster {infos[0].uri} holds" if len(infos) == 1 else "label rasters hold"
        raise LabelError(
            f"The {what} no class: all pixels are 0 or without data.",
            "Give a raster whose pixels are class values from 1 on.",
        )
    return classes, schema


class _ClassTable:
    """Class value by pixel value, applied to arrays; ``dtype`` is that of the class values."""

    def __init__(self, classes: Mapping[int, int], dtype: np.dtype[np.unsignedinteger]) -> None:
        self._known = {0: 0, **classes}
        self.dtype = dtype
        # Stands for "unknown" in the tables: a number that is no class.
        unknown = int(np.iinfo(dtype).max)
        taken = unknown in self._known.values()
        kind = np.dtype(np.min_scalar_type(unknown + 1)) if taken else dtype
        self._unknown = np.iinfo(kind).max
        self._pixels = np.array(sorted(self._known), dtype=np.int64)
        self._targets = np.array([self._known[pixel] for pixel in sorted(self._known)]).astype(kind)
        self._tables: dict[np.dtype[np.integer], npt.NDArray[np.unsignedinteger]] = {
            np.dtype(name): self._table(np.dtype(name)) for name in ("uint8", "int8", "uint16", "int16")
        }

    def _table(self, dtype: np.dtype[np.integer]) -> npt.NDArray[np.unsignedinteger]:
        """The class value of every pixel value there is, at its place as an unsigned number."""
        limits = np.iinfo(dtype)
        table = np.full(1 << limits.bits, self._unknown, dtype=self._targets.dtype)
        within = (self._pixels >= limits.min) & (self._pixels <= limits.max)
        table[self._pixels[within] & (len(table) - 1)] = self._targets[within]
        return table

    def apply(self, pixels: Pixels, where: str) -> npt.NDArray[np.unsignedinteger]:
        """Class values of pixels (1, rows, cols)."""
        values = _whole_numbers(pixels.values[0], where)
        if values.dtype.itemsize > 2 and values.size and values.min() >= 0 and values.max() < 1 << 16:
            values = values.astype(np.uint16)
        if values.dtype in self._tables:
            out = np.take(self._tables[values.dtype], values.view(f"u{values.dtype.itemsize}"))
        else:
            at = np.minimum(np.searchsorted(self._pixels, values), len(self._pixels) - 1)
            out = np.where(
                self._pixels[at] == values, self._targets[at], self._targets.dtype.type(self._unknown)
            )
        strange = out == self._unknown
        if strange.any():
            raise _unknown(np.unique(values[strange]), where)
        if self._known[0]:
            # Pixels without data are 0, too.
            out[~pixels.valid] = 0
        return out.astype(self.dtype, copy=False)


def _unknown(values: npt.NDArray[np.integer], where: str) -> LabelError:
    named = ", ".join(str(value) for value in values[:_NAMED_IN_MESSAGES])
    more = f" and {len(values) - _NAMED_IN_MESSAGES} more" if len(values) > _NAMED_IN_MESSAGES else ""
    if values[0] < 0:
        return LabelError(
            f"The label raster {where} holds the negative values {named}{more}.",
            "Number the classes from 1, and declare the value that means 'no label' as nodata.",
        )
    return LabelError(
        f"The label raster {where} holds the pixel values {named}{more}, which are not among the classes.",
        "Name every value in the attribute table or the class schema file, "
        "and declare the value that means 'no label' as nodata.",
    )


def _whole_numbers(values: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.integer]:
    if values.dtype.kind != "f":
        return values  # type: ignore[return-value]
    whole = np.isfinite(values) & (np.floor(values) == values) & (np.abs(values) < 2**53)
    if not whole.all():
        raise LabelError(
            f"The label raster {where} holds {values[~whole][0]}, which is no whole number.",
            "Give a raster whose pixels are class values; round or reclassify measurements first.",
        )
    return values.astype(np.int64)


def _usable(info: RasterInfo) -> RasterInfo:
    kinds = [kind for kind in info.colorinterp if kind != "alpha"]
    if len(kinds) != 1 or info.colorinterp[0] == "alpha":
        raise LabelError(
            f"The label raster {info.uri} has {info.band_count} bands ({', '.join(info.band_names)}).",
            "Give a raster with one band of class values (`gdal_translate -b 1 in.tif out.tif` copies one).",
        )
    return info


def _placed(info: RasterInfo, grid: Grid) -> RasterInfo:
    """The raster as it lies on the grid: in pixel space, pixel by pixel."""
    if grid.crs_wkt is not None:
        return info
    if (info.height, info.width) != grid.shape:
        raise LabelError(
            f"The label raster {info.uri} has {info.width} x {info.height} pixels, "
            f"the imagery has {grid.cols} x {grid.rows}.",
            "In pixel space label rasters are laid on the imagery pixel by pixel: give one of the same size.",
        )
    return info.model_copy(update={"crs_wkt": None, "transform": _PIXEL_SPACE})


def _own_naming(info: RasterInfo, classvalue_field: str | None, store: ObjectStore) -> ClassNaming | None:
    with raster_environment(info.uri), open_raster(info.uri) as dataset:
        table = read_attribute_table(info.uri, dataset, store)
        if table is None and classvalue_field is not None and classvalue_field.lower() != "value":
            raise LabelError(
                f"The label raster {info.uri} has no attribute table, so no field {classvalue_field!r}.",
                "Build one (Build Raster Attribute Table), or leave classvalue_field empty.",
            )
        if table is not None:
            naming = naming_of_table(table, classvalue_field)
        else:
            categories = naming_of_categories(info.uri, read_category_names(dataset))
            if categories is None:
                return None
            naming = categories
        return _with_colors(naming, read_color_table(dataset))


def _with_colors(naming: ClassNaming, table: Mapping[int, Color]) -> ClassNaming:
    colors = dict(naming.colors)
    for pixel, value in naming.classes.items():
        # Formats fill a colour table up with black.
        if value > 0 and table.get(pixel, (0, 0, 0)) != (0, 0, 0):
            colors.setdefault(value, table[pixel])
    return ClassNaming(naming.source, naming.classes, naming.names, colors)


def _naming_by_values(info: RasterInfo) -> ClassNaming:
    """The values that occur in a raster, found in one pass over its blocks."""
    grid = Grid(None, _PIXEL_SPACE, info.height, info.width)
    plain = info.model_copy(update={"crs_wkt": None, "transform": _PIXEL_SPACE})
    found: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
    with GridReader([plain], grid, (0,), resampling="nearest") as reader:
        for _, pixels in prefetch(reader, pieces(info)):
            values = _whole_numbers(pixels.values[0][pixels.valid], info.uri)
            found = np.union1d(found, _occurring(values))
            if len(found) > _MOST_CLASSES:
                raise LabelError(
                    f"The label raster {info.uri} holds more than {_MOST_CLASSES} distinct values.",
                    "Give a raster of classes; measurements must be reclassified first.",
                )
    if len(found) and found[0] < 0:
        raise _unknown(found[found < 0], info.uri)
    classes = {int(value): int(value) for value in found}
    naming = ClassNaming(info.uri, classes, {value: str(value) for value in classes if value})
    with raster_environment(info.uri), open_raster(info.uri) as dataset:
        return _with_colors(naming, read_color_table(dataset))


def _occurring(values: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return np.flatnonzero(np.bincount(values)).astype(np.int64)
    return np.unique(values).astype(np.int64)


def pieces(info: RasterInfo, most_px: int = _PIECE_PX) -> Iterable[Window]:
    """Windows of whole blocks, of at most ``most_px`` pixels where a block is not larger, over the raster."""
    sizes = (info.height, info.width)
    block_rows, block_cols = (min(pair) for pair in zip(info.block_shape, sizes, strict=True))
    cols = min(info.width, max(1, most_px // (block_rows * block_cols)) * block_cols)
    rows = max(1, most_px // (block_rows * cols)) * block_rows
    grid = Grid(None, _PIXEL_SPACE, info.height, info.width)
    return (tile.intersection(grid.window) for tile in grid.tiles(rows, cols))


def _joined_classes(namings: Sequence[ClassNaming]) -> dict[int, int]:
    classes: dict[int, int] = {}
    source: dict[int, str] = {}
    for naming in namings:
        for pixel, value in naming.classes.items():
            if classes.setdefault(pixel, value) != value:
                raise LabelError(
                    f"The pixel value {pixel} is class {classes[pixel]} in {source[pixel]} "
                    f"and class {value} in {naming.source}.",
                    "Give label rasters whose pixel values mean the same, or export them separately.",
                )
            source.setdefault(pixel, naming.source)
    return classes


def _joined_schema(namings: Sequence[ClassNaming], unnamed: Sequence[ClassNaming]) -> ClassSchema:
    names: dict[int, str] = {}
    colors: dict[int, Color] = {}
    source: dict[int, str] = {}
    for naming in namings:
        for value, name in naming.names.items():
            if names.setdefault(value, name) != name:
                raise LabelError(
                    f"The class value {value} is {names[value]!r} in {source[value]} "
                    f"and {name!r} in {naming.source}.",
                    "Give a value the same name everywhere, or give a class schema file.",
                )
            source.setdefault(value, naming.source)
    for naming in [*namings, *unnamed]:
        for value, name in naming.names.items():
            names.setdefault(value, name)
        for value, color in naming.colors.items():
            colors.setdefault(value, color)
    return ClassSchema.from_values(names, colors)


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
