"""Operators: what a tool makes of the results of tiles. They plug into the one loop in ``engine.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from tasks.errors import HostError
from tasks.host import Operation
from tasks.infer.engine import Tile
from tasks.infer.mask import GridMask
from tasks.infer.objects import Objects, no_objects
from tasks.infer.reconcile import border_margin
from tasks.infer.shards import Shard, TileGeometry
from tasks.labels.rings import polygon_of_rings

_UNSIGNED: tuple[type[np.unsignedinteger[Any]], ...] = (np.uint8, np.uint16)


class DetectionLike(Protocol):
    """One object as the host returns it: rings in pixels of the inner block, y down, not closed.

    Source: ``docs/formats/python-raster-function.md`` §7.
    """

    @property
    def class_name(self) -> str: ...
    @property
    def confidence_raw(self) -> float: ...
    @property
    def rings(self) -> Sequence[Sequence[Sequence[float]]]: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class PixelFormat:
    """Values of a raster that is made.

    Attributes:
        dtype: numpy name.
        nodata: value of pixels that the imagery does not cover.
        bands: how many.
        masked: any value may occur: a mask says which pixels count (``tasks.infer.pictures``).
    """

    dtype: str
    nodata: float
    bands: int = 1
    masked: bool = False

    @property
    def of_values(self) -> bool:
        """Whether pixels are quantities, not classes."""
        return self.masked or self.dtype == "float32"

    @property
    def identity(self) -> list[str | int]:
        """What of it decides a shard's bytes."""
        return [self.dtype, str(self.nodata), *([self.bands] if self.masked else [])]


def pixel_format(
    function_dtype: str, class_values: Sequence[int], function_nodata: float | None
) -> PixelFormat:
    """The narrowest format that holds the classes, so that a colour table fits; float results stay float32.

    Without a nodata value of the function's, 0 is nodata as in Esri's classified rasters, unless 0 is a
    class of its own: then the largest value of the type.
    """
    if np.issubdtype(np.dtype(function_dtype), np.floating):
        return PixelFormat("float32", np.nan if function_nodata is None else float(function_nodata))
    nodata = function_nodata
    if nodata is None and 0 not in class_values:
        nodata = 0
    values = [*class_values, *([] if nodata is None else [int(nodata)])]
    for unsigned in _UNSIGNED:
        largest = int(np.iinfo(unsigned).max)
        room = largest if nodata is not None else largest - 1
        if not class_values or min(values) < 0 or max(values) > room:
            continue
        return PixelFormat(np.dtype(unsigned).name, float(largest if nodata is None else nodata))
    smallest = float(np.iinfo(np.int32).min)
    return PixelFormat("int32", smallest if nodata is None else float(nodata))


@dataclass
class _PixelState:
    shard: Shard
    values: NDArray[Any]  # (rows, cols) of the shard's window


@dataclass(frozen=True)
class PixelOperator:
    """Pixel classification: the inner parts of tiles abut; the result of a shard is a small GeoTIFF."""

    geometry: TileGeometry
    format: PixelFormat
    operation: Operation = "updatePixels"

    def needs(self, valid: NDArray[np.bool_], geometry: TileGeometry) -> bool:
        """Whether the inner part holds a pixel of imagery: all others stay nodata."""
        pad = geometry.padding
        return bool(valid[pad : pad + geometry.rows, pad : pad + geometry.cols].any())

    def begin(self, shard: Shard) -> _PixelState:
        """A shard full of nodata."""
        return _PixelState(shard, np.full(shard.target.shape, self.format.nodata, self.format.dtype))

    def accept(self, state: _PixelState, tile: Tile, result: NDArray[Any]) -> None:
        """Put the inner part of one tile, (1, rows, cols), in its place.

        Raises:
            HostError: another shape, or values that the output cannot hold.
        """
        if result.shape != (1, self.geometry.rows, self.geometry.cols):
            raise HostError(
                f"The inference function returned pixels of shape {result.shape} for a block of "
                f"(1, {self.geometry.rows}, {self.geometry.cols}).",
                "Mend the function: updatePixels returns the inner block, without padding.",
            )
        target = state.shard.target
        common = tile.inner.intersection(target)
        if common.is_empty:
            return
        part = common.slices_in(tile.inner)
        values, valid = result[0][part], tile.valid[part]
        # Most tiles are whole: choosing pixels one by one takes ten times as long as copying all of them.
        whole = bool(valid.all())
        kept = values if whole else values[valid]
        if kept.size and self.format.dtype != "float32":
            lowest, highest = int(kept.min()), int(kept.max())
            limits = np.iinfo(self.format.dtype)
            if lowest < limits.min or highest > limits.max:
                raise HostError(
                    f"The inference function returned values from {lowest} to {highest}, which are no class "
                    f"values of its package and do not fit {self.format.dtype}.",
                    "Mend the package's Classes: they must list every value.",
                )
        place = state.values[common.slices_in(target)]
        place[... if whole else valid] = kept.astype(self.format.dtype, copy=False)

    def finish(self, state: _PixelState) -> bytes:
        """The shard as a compressed GeoTIFF, without georeference: the plan knows its place."""
        rows, cols = state.values.shape
        profile = {
            "driver": "GTiff",
            "height": rows,
            "width": cols,
            "count": 1,
            "dtype": self.format.dtype,
            "nodata": self.format.nodata,
            "compress": "zstd",
            # A quarter more bytes than at GDAL's usual level 9, in a fifth of its time: one thread writes.
            "zstd_level": 1,
            "tiled": True,
            "blockxsize": 256,
            "blockysize": 256,
            # Pixel space; without any transform rasterio would warn at each opening.
            "transform": Affine(1, 0, 0, 0, -1, rows),
        }
        with MemoryFile() as memory:
            with memory.open(**profile) as dataset:
                dataset.write(state.values, 1)
            return bytes(memory.read())


def read_pixels(data: bytes) -> NDArray[Any]:
    """The array (rows, cols) of a shard's result that :class:`PixelOperator` made."""
    with MemoryFile(data) as memory, memory.open() as dataset:
        values: NDArray[Any] = dataset.read(1)
    return values


@dataclass
class _ObjectState:
    shard: Shard
    parts: list[Objects] = field(default_factory=list)


@dataclass(frozen=True)
class ObjectOperator:
    """Detection: objects of tiles in grid pixels, with what reconciliation needs to know about them.

    Attributes:
        regions: per grid, the (row, col, rows, cols) outside of which objects are left out.
        masks: per grid, what the centroid of an object must lie in; empty: there is no mask.
        first_tile: added to the rows of tiles where they are smaller than planned (``tasks.infer.batches``),
            since some shards of the plan have tiles of the planned size, and a tile's place is its name.
    """

    geometry: TileGeometry
    regions: Mapping[int, tuple[int, int, int, int]]
    masks: Mapping[int, GridMask] = field(default_factory=dict)
    first_tile: int = 0
    operation: Operation = "vectorize"

    def needs(self, valid: NDArray[np.bool_], geometry: TileGeometry) -> bool:  # noqa: ARG002
        """Whether the block holds a pixel of imagery: an object may reach in from the halo."""
        return bool(valid.any())

    def begin(self, shard: Shard) -> _ObjectState:
        """An empty shard."""
        return _ObjectState(shard)

    def accept(self, state: _ObjectState, tile: Tile, result: Sequence[DetectionLike]) -> None:
        """Take the objects of one tile that the tile owns, or that lie near its border."""
        polygons = _polygons(result)
        whole = np.flatnonzero(~shapely.is_missing(polygons))
        if not len(whole):
            return
        items, inside = [result[index] for index in whole.tolist()], polygons[whole]
        objects = self._judged(tile, items, inside, state.shard.grid)
        if len(objects):
            state.parts.append(objects)

    def _judged(
        self,
        tile: Tile,
        items: Sequence[DetectionLike],
        polygons: NDArray[np.object_],
        grid: int,
    ) -> Objects:
        rows, cols, pad = self.geometry.rows, self.geometry.cols, self.geometry.padding
        margin = border_margin(self.geometry)
        centroids = shapely.get_coordinates(shapely.centroid(polygons))  # (n, 2) x, y in the inner block
        x, y = centroids[:, 0], centroids[:, 1]
        bounds = shapely.bounds(polygons)
        # Within a pixel of the block's edge the function may have cut the object off.
        cut = (
            (bounds[:, 0] <= 1 - pad)
            | (bounds[:, 1] <= 1 - pad)
            | (bounds[:, 2] >= cols + pad - 1)
            | (bounds[:, 3] >= rows + pad - 1)
        )
        # Half open, so that a centroid right on a border has one owner.
        owned = (x >= 0) & (x < cols) & (y >= 0) & (y < rows)
        near_inside = (x < margin) | (x >= cols - margin) | (y < margin) | (y >= rows - margin)
        near_outside = (x >= -margin) & (x < cols + margin) & (y >= -margin) & (y < rows + margin)
        # An object that the neighbour owns and that is cut off here is seen more whole over there.
        kept = owned | (near_outside & ~cut)
        row, col, region_rows, region_cols = self.regions[grid]
        grid_x, grid_y = x + tile.inner.col, y + tile.inner.row
        kept &= (
            (grid_x >= col) & (grid_x < col + region_cols) & (grid_y >= row) & (grid_y < row + region_rows)
        )
        if grid in self.masks:
            kept &= self.masks[grid].holds(grid_x, grid_y)
        offset = np.array((tile.inner.col, tile.inner.row))
        shifted = shapely.transform(polygons, lambda points: points + offset)
        count = len(items)
        return Objects(
            tile_row=np.full(count, self.first_tile + tile.row, np.int32),
            tile_col=np.full(count, tile.col, np.int32),
            class_name=np.array([item.class_name for item in items], dtype=object),
            confidence=np.array([item.confidence_raw for item in items], dtype=np.float64),
            owned=owned,
            at_border=near_inside | ~owned,
            cut=cut & owned,
            attributes=np.array([_extra(item.attributes) for item in items], dtype=object),
            geometry=shifted,
        ).take(kept)

    def finish(self, state: _ObjectState) -> bytes:
        """The shard's objects as Arrow bytes."""
        return (Objects.joined(state.parts).in_order() if state.parts else no_objects()).to_bytes()


def _polygons(items: Sequence[DetectionLike]) -> NDArray[np.object_]:
    """A polygon per object, None where it has no area; boxes, which most detectors give, all at once."""
    result = np.full(len(items), None, dtype=object)
    boxes = [n for n, item in enumerate(items) if len(item.rings) == 1 and len(item.rings[0]) == 4]
    if boxes:
        rings = np.array([items[number].rings[0] for number in boxes], np.float64)
        made = np.atleast_1d(np.asarray(shapely.polygons(rings), dtype=object))
        good = shapely.is_valid(made) & (shapely.area(made) > 0)
        result[np.array(boxes)[good]] = made[good]
    for number, item in enumerate(items):
        if result[number] is None:
            result[number] = polygon_of_rings(item.rings)
    return result


def _extra(attributes: Mapping[str, Any]) -> str:
    # Class and confidence have columns of their own; identifiers count within one block only.
    rest = {
        name: value for name, value in attributes.items() if name not in ("OID", "FID", "Class", "Confidence")
    }
    return json.dumps(rest, sort_keys=True, default=str)
