"""Raster labels: class values as pixels, read on the grid of the imagery; objects found in a mask."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine

from tasks.errors import ChiplineError, LabelError
from tasks.imagery.collection import RASTER_SUFFIXES, expand_rasters
from tasks.imagery.grid import Grid
from tasks.imagery.identity import identity_of_files
from tasks.imagery.prefetch import prefetch
from tasks.imagery.raster import RasterInfo, inspect_raster, open_raster, raster_environment
from tasks.imagery.reader import GridReader
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
from tasks.labels.pixels import LabelsInWindow
from tasks.labels.schema import ClassSchema, Color
from tasks.store import ObjectStore, is_local
from tasks.store.uris import local_path

# Named by these, a file is never tried as a raster.
_VECTOR_SUFFIXES = (
    ".gpkg", ".geojson", ".json", ".geojsonl", ".shp", ".zip", ".fgb", ".parquet", ".geoparquet", ".gdb",
    ".kml", ".kmz", ".gml", ".gpx", ".tab", ".mif", ".csv", ".sqlite", ".dxf", ".dgn",
)  # fmt: skip
_PIXEL_SPACE = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
# A raster with more distinct values than this holds measurements, not classes.
_MOST_CLASSES = 65_535
_PIECE_PX = 4_000_000
_LARGEST_TABLE = 1 << 16
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
        self._table = _ClassTable(classes)

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
        known = self._table.apply(_whole_numbers(pixels.values[0], where), where, pixels.valid)
        out = known.astype(self.dtype, copy=False)
        # A pixel value 0 may be a class of the attribute table, but no data never is.
        out[~pixels.valid] = 0
        return out

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
    store = ObjectStore()
    infos = [_usable(inspect_raster(uri), grid) for uri in expand_rasters(uris)]
    namings: list[ClassNaming] = []
    side_files: list[str] = []
    unnamed: dict[str, ClassNaming] = {}
    for info in infos:
        side = side_table_uri(info.uri, store)
        side_files += [side] if side is not None else []
        naming = _own_naming(info, classvalue_field, store) if schema is None or classvalue_field else None
        if naming is not None:
            namings.append(naming)
        elif schema is None:
            unnamed[info.uri] = _naming_by_values(info)
    classes = _joined_classes([*namings, *unnamed.values()])
    if schema is None:
        schema = _joined_schema(namings, list(unnamed.values()))
    elif namings:
        allowed = {0, *schema.values}
        classes = {pixel: value for pixel, value in classes.items() if value in allowed}
    else:
        classes = {value: value for value in schema.values}
    if not len(schema):
        raise LabelError(
            f"The label raster {infos[0].uri} holds no class: all its pixels are 0 or without data."
            if len(infos) == 1
            else f"The {len(infos)} label rasters hold no class: all their pixels are 0 or without data.",
            "Give a raster whose pixels are class values from 1 on.",
        )
    identities = [info.identity for info in infos]
    identity = identities[0] if len(identities) == 1 else _digest(identities)
    if side_files:
        identity = _digest([identity, identity_of_files(side_files, store)])
    return RasterLabels(GridReader(infos, grid, (0,), resampling="nearest"), schema, classes, identity)


@dataclass(frozen=True)
class ObjectsOfMask(LabelsInWindow):
    """The objects of a mask; ``indices`` are -1, for they are no records of a file.

    Attributes:
        regions: the number of the object each pixel belongs to, from 1 in the objects' order; 0 = none
            # (rows, cols), int32
    """

    regions: npt.NDArray[np.int32] | None = None

    @cached_property
    def polygons(self) -> npt.NDArray[np.object_]:
        """(n,) the objects' outlines along pixel edges, holes included, chip pixels."""
        if self.regions is None or not len(self):
            return np.empty(0, dtype=object)
        return _outlines(self.regions, len(self))

    def instances(self, value: int) -> npt.NDArray[np.unsignedinteger]:
        """The objects of one class numbered from 1 in their order; 0 = none.

        Returns:
            array  # (rows, cols), uint8, uint16 or uint32
        """
        if self.regions is None:
            raise ValueError("These objects were made without their mask.")
        mine = self.values == value
        numbers = np.zeros(len(self) + 1, dtype=np.min_scalar_type(max(1, int(mine.sum()))))
        numbers[1:][mine] = np.arange(1, int(mine.sum()) + 1)
        out: npt.NDArray[np.unsignedinteger] = numbers[self.regions]
        return out


def objects_of_mask(mask: npt.NDArray[np.unsignedinteger]) -> ObjectsOfMask:
    """The connected regions of a chip's class mask as objects.

    Pixels of one class that share an edge are one object (4-connected; corners do not connect). Objects are
    ordered by class value, then by their first pixel, row by row.

    Args:
        mask: class values, 0 = no label  # (rows, cols), unsigned integer

    Returns:
        boxes of whole pixels, areas in pixels.
    """
    from scipy import ndimage

    regions = np.zeros(mask.shape, dtype=np.int32)
    values: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    dense, present = _dense(mask)
    frames = ndimage.find_objects(dense, len(present)) if present else []
    for number, (value, frame) in enumerate(zip(present, frames, strict=True), start=1):
        here = dense[frame] == number
        labelled, count = ndimage.label(here)
        labelled = _by_first_pixel(labelled, count)
        top, left = frame[0].start, frame[1].start
        for rows, cols in ndimage.find_objects(labelled, count):
            boxes.append((left + cols.start, top + rows.start, left + cols.stop, top + rows.stop))
        labelled[here] += len(values)
        regions[frame] += labelled
        values += [value] * count
    return ObjectsOfMask(
        indices=np.full(len(values), -1, dtype=np.intp),
        values=np.array(values, dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        areas=np.bincount(regions.ravel(), minlength=len(values) + 1)[1:].astype(np.float64),
        left_out=np.empty(0, dtype=np.intp),
        regions=regions,
    )


def _dense(mask: npt.NDArray[np.unsignedinteger]) -> tuple[npt.NDArray[np.int32], list[int]]:
    """The mask with its class values numbered from 1, ascending, and the class values."""
    if mask.dtype.itemsize <= 2:
        present = np.flatnonzero(np.bincount(mask.ravel()))
        present = present[present > 0]
        table = np.zeros(int(present[-1]) + 1 if len(present) else 1, dtype=np.int32)
        table[present] = np.arange(1, len(present) + 1)
        return table[mask], [int(value) for value in present]
    found, inverse = np.unique(mask, return_inverse=True)
    has_none = len(found) > 0 and found[0] == 0
    dense = inverse.reshape(mask.shape).astype(np.int32) + (0 if has_none else 1)
    return dense, [int(value) for value in (found[1:] if has_none else found)]


def _by_first_pixel(labelled: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int32]:
    """Regions 1 … count numbered anew by their first pixel, row by row."""
    flat = labelled.ravel()
    first = np.zeros(count + 1, dtype=np.int64)
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)  # the last assignment, the first pixel, stays
    first[0] = -1
    numbers = np.empty(count + 1, dtype=np.int32)
    numbers[np.argsort(first, kind="stable")] = np.arange(count + 1, dtype=np.int32)
    return numbers[labelled]


def _outlines(regions: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.object_]:
    from rasterio.features import shapes

    outlines = np.empty(count, dtype=object)
    found = shapes(regions, mask=regions > 0, connectivity=4, transform=Affine.identity())
    for outline, number in found:
        outlines[int(number) - 1] = shapely.normalize(shapely.geometry.shape(outline))
    return outlines


class _ClassTable:
    """Class value by pixel value, applied to arrays."""

    def __init__(self, classes: Mapping[int, int]) -> None:
        known = {0: 0, **classes}
        self._pixels = np.array(sorted(known), dtype=np.int64)
        targets = np.array([known[value] for value in sorted(known)], dtype=np.int64)
        kind = np.promote_types(np.min_scalar_type(int(targets.max())), np.int8)
        self._targets = targets.astype(kind)
        self._direct: npt.NDArray[np.signedinteger] | None = None
        if self._pixels[0] >= 0 and self._pixels[-1] < _LARGEST_TABLE:
            # One more place, for all that is unknown.
            self._direct = np.full(int(self._pixels[-1]) + 2, -1, dtype=kind)
            self._direct[self._pixels] = self._targets

    def apply(
        self, values: npt.NDArray[np.integer], where: str, valid: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.signedinteger]:
        if self._direct is not None:
            last = len(self._direct) - 1
            within = np.minimum(values, last) if values.dtype.itemsize > 1 or last < 255 else values
            if values.dtype.kind == "i":
                within = np.where(values < 0, last, within)
            out: npt.NDArray[np.signedinteger] = self._direct[within]
        else:
            at = np.minimum(np.searchsorted(self._pixels, values), len(self._pixels) - 1)
            out = np.where(self._pixels[at] == values, self._targets[at], self._targets.dtype.type(-1))
        if out.size and out.min() < 0:
            wrong = values[(out < 0) & valid]
            if len(wrong):
                raise _unknown(np.unique(wrong), where)
        return out


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


def _usable(info: RasterInfo, grid: Grid) -> RasterInfo:
    kinds = [kind for kind in info.colorinterp if kind != "alpha"]
    if len(kinds) != 1 or info.colorinterp[0] == "alpha":
        raise LabelError(
            f"The label raster {info.uri} has {info.band_count} bands ({', '.join(info.band_names)}).",
            "Give a raster with one band of class values (`gdal_translate -b 1 in.tif out.tif` copies one).",
        )
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
        for _, pixels in prefetch(reader, _pieces(info)):
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


def _pieces(info: RasterInfo) -> Iterable[Window]:
    """Whole blocks, several at a time, that cover the raster."""
    block_rows, block_cols = (
        min(block, size) for block, size in zip(info.block_shape, (info.height, info.width), strict=True)
    )
    cols = min(info.width, max(1, _PIECE_PX // (block_rows * block_cols)) * block_cols)
    rows = max(1, _PIECE_PX // (block_rows * cols)) * block_rows
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
