"""Object classification: crops around features, or whole images, through the one loop in ``engine.py``.

Source: ``docs/formats/python-raster-function.md`` §7: a window of the function's size centred on the feature,
or the feature's envelope up to that size; pixels outside of the feature black where the package asks for it.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInputError, HostError
from tasks.host import Operation
from tasks.imagery import GridReader, Pixels, RasterInfo, Window
from tasks.imagery.collection import grid_of_raster
from tasks.imagery.image_space import in_pixel_space
from tasks.infer.engine import Block, Source, Strip
from tasks.infer.shards import Shard, TileGeometry
from tasks.labels.burning import burn_polygons

LARGEST_WHOLE_IMAGE_PX = 2**28
# Crops that lie together are read in one go where that brings at most this many times their own pixels.
_READ_TOGETHER = 3

_RESULTS = pa.schema(
    [
        ("row", pa.int64()),
        ("label", pa.string()),
        ("confidence", pa.float64()),
        ("confidences", pa.string()),
        ("attributes", pa.string()),
    ]
)


class PlannedCrops(BaseModel):
    """What is cut around features.

    Attributes:
        rows, cols: size of a crop, or the largest one where it varies, px.
        fixed: whether all crops have that size.
        blacken: whether pixels outside of a polygon are black.
        batch: crops per call of the function.
        whole_images: each raster is one object, brought to the crop's size.
        table: name of the file with the features, in the plan's folder.
        crs_wkt: coordinate system of the features; empty where there is none.
        label_field, confidence_field, source_field, date_field, area_field, package_field, run_field: fields
            that the output gets; an empty one is not written.
        caption_field: the same for the function's captions; empty where it announces none.
        counts: features in all, and of these those without geometry and those beside the imagery.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    cols: int
    fixed: bool
    blacken: bool
    batch: int
    whole_images: bool
    table: str
    crs_wkt: str
    label_field: str
    confidence_field: str
    source_field: str
    date_field: str = ""
    area_field: str = ""
    package_field: str = ""
    run_field: str = ""
    caption_field: str = ""
    counts: dict[str, int]

    @property
    def fields(self) -> dict[str, str]:
        """The fields that the output gets, for the run key."""
        return {name: value for name, value in self.model_dump().items() if name.endswith("_field")}

    @property
    def decides_pixels(self) -> dict[str, Any]:
        """The part of it that belongs into shard keys."""
        return self.model_dump(
            include={"rows", "cols", "fixed", "blacken", "batch", "whole_images", "crs_wkt"}
        )


def crop_windows(geometry: NDArray[np.object_], crops: PlannedCrops) -> NDArray[np.int64]:
    """The window of each feature.

    A fixed crop is centred on the middle of the feature's envelope. A varying one is the envelope in whole
    pixels; a point, and a feature larger than the largest crop, get a fixed one.

    Args:
        geometry: (n,) in grid pixels, none empty.
        crops: their size.

    Returns:
        (row, col, rows, cols) of each; it may reach outside of the grid.  # (n, 4)
    """
    bounds = shapely.bounds(geometry).reshape(-1, 4)
    size = np.array([crops.rows, crops.cols])
    middle = (bounds[:, [1, 0]] + bounds[:, [3, 2]]) / 2
    start = np.floor(middle - size / 2 + 0.5).astype(np.int64)
    windows = np.hstack([start, np.broadcast_to(size, start.shape)])
    if not crops.fixed:
        low = np.floor(bounds[:, [1, 0]]).astype(np.int64)
        extent = np.maximum(np.ceil(bounds[:, [3, 2]]).astype(np.int64) - low, 1)
        is_point = (bounds[:, :2] == bounds[:, 2:]).all(axis=1)
        varies = (extent <= size).all(axis=1) & ~is_point
        windows[varies] = np.hstack([low, extent])[varies]
    return windows


@dataclass(frozen=True)
class Features:
    """A run of features in grid pixels.

    Attributes:
        rows: place of each in the plan's table.
        geometry: x = column, y = row; a whole image is the rectangle of its crop.
    """

    rows: NDArray[np.int64]
    geometry: NDArray[np.object_]


@dataclass(frozen=True)
class CropBatch:
    """What the operator is told about one call: rows of the table, in the batch's order."""

    rows: NDArray[np.int64]


@dataclass(frozen=True)
class _Crops:
    """Crops of one shape that are handed over together: rows of the table, windows, outlines to blacken."""

    rows: NDArray[np.int64]
    windows: list[Window]
    outlines: NDArray[np.object_]


@dataclass(frozen=True)
class CropCutter:
    """Crops of a shard's features in batches of one shape.

    Fixed crops come in full batches: the last one is filled up by repeating a crop, so that the function
    always gets arrays of one shape and a feature's answer does not depend on where a shard ends. Crops of
    varying size go one by one, for the same reason.

    Attributes:
        features: of a shard.
    """

    crops: PlannedCrops
    features: Callable[[Shard], Features]

    def strips(self, shard: Shard, source: Source) -> Iterator[Strip]:  # noqa: ARG002
        """One strip per batch."""
        found = self.features(shard)
        windows = [Window(*place) for place in crop_windows(found.geometry, self.crops).tolist()]
        size = self.crops.batch if self.crops.fixed else 1
        starts = range(0, len(windows), size)
        for start in starts:
            here = slice(start, start + size)
            item = _Crops(found.rows[here], windows[here], found.geometry[here])
            yield Strip(shard, _around(windows[here]), item, last=start == starts[-1])

    def read(self, strip: Strip, source: Source) -> Pixels:
        """The crops of one batch.  # values (n, bands, rows, cols), valid (n, rows, cols)"""
        item: _Crops = strip.item
        wanted = sum(window.rows * window.cols for window in item.windows)
        if strip.window.rows * strip.window.cols <= _READ_TOGETHER * wanted:
            whole = source.reader.read(strip.window)
            parts = [window.slices_in(strip.window) for window in item.windows]
            values = np.stack([whole.values[:, *part] for part in parts])
            valid = np.stack([whole.valid[part] for part in parts])
        else:
            pixels = [source.reader.read(window) for window in item.windows]
            values = np.stack([one.values for one in pixels])
            valid = np.stack([one.valid for one in pixels])
        if self.crops.blacken:
            valid = valid & np.stack(
                [inside(outline, window) for outline, window in zip(item.outlines, item.windows, strict=True)]
            )
            values[~np.broadcast_to(valid[:, None], values.shape)] = 0
        return Pixels(values, valid)

    def blocks(self, strip: Strip, pixels: Pixels, source: Source) -> Iterator[Block | None]:  # noqa: ARG002
        """The batch, without crops of features that hold no imagery, whatever lies around them."""
        item: _Crops = strip.item
        seen = [
            bool(valid[_envelope(outline, window)].any())
            for valid, outline, window in zip(pixels.valid, item.outlines, item.windows, strict=True)
        ]
        there = np.flatnonzero(seen)
        if not len(there):
            yield None
            return
        missing = self.crops.batch - len(there) if self.crops.fixed else 0
        taken = np.concatenate([there, np.repeat(there[-1:], missing)])
        first = item.windows[int(there[0])]
        yield Block(
            pixels.values[taken],
            pixels.valid[taken].astype(np.uint8),
            first,
            CropBatch(item.rows[there]),
        )


def inside(outline: shapely.Geometry, window: Window) -> NDArray[np.bool_]:
    """Pixels of a window whose centre lies in the polygon; all of them for a point or a line.

    A polygon between pixel centres keeps the pixel that its middle lies in.
    """
    parts = shapely.get_parts(outline)
    polygons = parts[shapely.get_dimensions(parts) == 2]
    if not len(polygons):
        return np.ones(window.shape, np.bool_)
    valid = np.where(shapely.is_valid(polygons), polygons, shapely.make_valid(polygons))
    flat = shapely.get_parts(shapely.get_parts(valid))
    flat = flat[shapely.get_dimensions(flat) == 2]
    mask: NDArray[np.bool_] = (
        burn_polygons(flat, np.ones(len(flat), np.int64), window, np.dtype(np.uint8)) != 0
    )
    if not mask.any():
        middle = shapely.point_on_surface(outline)
        row, col = int(np.floor(shapely.get_y(middle))) - window.row, int(np.floor(shapely.get_x(middle)))
        col -= window.col
        if 0 <= row < window.rows and 0 <= col < window.cols:
            mask[row, col] = True
    return mask


def _envelope(outline: shapely.Geometry, window: Window) -> tuple[slice, slice]:
    """The pixels of a feature's envelope, at least the one that it begins in, as slices of its window."""
    left, top, right, bottom = shapely.bounds(outline).tolist()
    row, col = math.floor(top), math.floor(left)
    row_stop, col_stop = max(math.ceil(bottom), row + 1), max(math.ceil(right), col + 1)
    envelope = Window(row, col, row_stop - row, col_stop - col).intersection(window)
    return envelope.slices_in(window)


def _around(windows: Sequence[Window]) -> Window:
    row, col = min(window.row for window in windows), min(window.col for window in windows)
    return Window(
        row,
        col,
        max(window.row_stop for window in windows) - row,
        max(window.col_stop for window in windows) - col,
    )


class ClassifiedLike(Protocol):
    """One answer of the host, see ``tasks.host.ClassifiedObject``."""

    @property
    def label(self) -> str: ...
    @property
    def confidences_raw(self) -> Sequence[float]: ...
    @property
    def confidence_raw(self) -> float: ...
    @property
    def attributes(self) -> dict[str, Any]: ...


@dataclass
class _CropState:
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    answers: list[ClassifiedLike] = field(default_factory=list)


@dataclass(frozen=True)
class CropOperator:
    """Labels of features; a shard's result is a small table with a row per feature that has imagery."""

    operation: Operation = "vectorize"

    def needs(self, valid: NDArray[np.bool_], geometry: TileGeometry) -> bool:  # noqa: ARG002
        """Asked for tiles only."""
        return bool(valid.any())

    def begin(self, shard: Shard) -> _CropState:  # noqa: ARG002
        """An empty table."""
        return _CropState()

    def accept(self, state: _CropState, tile: CropBatch, result: Sequence[ClassifiedLike]) -> None:
        """Take the answers for one batch; those for repeated crops at its end are left out.

        Raises:
            HostError: fewer answers than features.
        """
        if len(result) < len(tile.rows):
            raise HostError(
                f"The inference function answered {len(result)} times for {len(tile.rows)} features.",
                "Mend the function: vectorize returns one feature for each raster it is given.",
            )
        state.rows.append(tile.rows)
        state.answers += result[: len(tile.rows)]

    def finish(self, state: _CropState) -> bytes:
        """The table as an Arrow stream, in the order of the plan's table; equal tables give equal bytes."""
        rows = np.concatenate([np.empty(0, np.int64), *state.rows])
        order = np.argsort(rows, kind="stable")
        answers = [state.answers[index] for index in order.tolist()]
        columns = [
            pa.array(rows[order]),
            pa.array([answer.label for answer in answers], pa.string()),
            pa.array([float(answer.confidence_raw) for answer in answers], pa.float64()),
            pa.array(
                [";".join(f"{value:g}" for value in answer.confidences_raw) for answer in answers],
                pa.string(),
            ),
            pa.array([_further(answer.attributes) for answer in answers], pa.string()),
        ]
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, _RESULTS, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(pa.Table.from_arrays(columns, schema=_RESULTS))
        return sink.getvalue()


def read_labels(data: bytes) -> pa.Table:
    """The table of a shard's result: row, label, confidence, confidences, attributes."""
    with pa.ipc.open_stream(io.BytesIO(data)) as reader:
        return reader.read_all()


def _further(attributes: dict[str, Any]) -> str:
    # Label and confidence have columns of their own; identifiers count within one batch only.
    own = ("oid", "fid", "label", "class", "classname", "confidence", "shape")
    return json.dumps(
        {name: value for name, value in attributes.items() if name.lower() not in own}, sort_keys=True
    )


class ImagesReader:
    """Whole images at one size, below each other on a grid that exists for this alone.

    Image n lies at rows n x ``rows``. A larger image is averaged, a smaller one interpolated.

    Args:
        images: window on the grid, and the raster.
        bands: zero-based, in the function's order.
    """

    def __init__(self, images: Sequence[tuple[Window, RasterInfo]], bands: tuple[int, ...]) -> None:
        self._images = list(images)
        self._bands = bands
        self.dtype: np.dtype[np.generic] = np.result_type(*(np.dtype(info.dtype) for _, info in self._images))

    @property
    def band_count(self) -> int:
        """Number of bands that are handed over."""
        return len(self._bands)

    def read(self, window: Window) -> Pixels:
        """The images that a window holds, each whole.

        Raises:
            RasterError: an image cannot be read.
        """
        values = np.zeros((len(self._bands), *window.shape), self.dtype)
        valid = np.zeros(window.shape, np.bool_)
        for place, info in self._images:
            if place.intersection(window).is_empty:
                continue
            shown, there = resized(self._whole(info), place.shape)
            here = place.intersection(window)
            part = here.slices_in(place)
            values[:, *here.slices_in(window)] = shown[:, *part]
            valid[here.slices_in(window)] = there[part]
        return Pixels(values, valid)

    def _whole(self, info: RasterInfo) -> Pixels:
        raw = in_pixel_space(info)
        grid = grid_of_raster(raw, map_space=False)
        with GridReader([raw], grid, self._bands) as reader:
            return reader.read(grid.window)


def check_whole_images(infos: Sequence[RasterInfo]) -> None:
    """Refuse images that are too large to be one object.

    Raises:
        BadInputError: naming the first of them.
    """
    for info in infos:
        if info.width * info.height > LARGEST_WHOLE_IMAGE_PX:
            raise BadInputError(
                f"{info.address} has {info.width} x {info.height} pixels, too many to be one object.",
                "Give the objects in it as in_features.",
            )


def resized(pixels: Pixels, shape: tuple[int, int]) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """An image and its validity at another size; what is not valid does not mix into what is.

    Returns:
        values of the same type, 0 where not valid  # (bands, rows, cols); validity  # (rows, cols), bool
    """
    values, valid = pixels.values, np.ascontiguousarray(pixels.valid)
    if valid.shape == shape:
        return values, valid
    weight = _scaled(valid.astype(np.float32), shape)
    there = weight >= 0.5
    made = np.zeros((len(values), *shape), values.dtype)
    for band, target in zip(values, made, strict=True):
        mean = _scaled(np.where(valid, band, 0).astype(np.float32), shape)[there] / weight[there]
        if values.dtype.kind in "iu":
            limits = np.iinfo(str(values.dtype))
            mean = np.clip(np.rint(mean), limits.min, limits.max)
        target[there] = mean
    return made, there


def _scaled(plane: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    # Pillow widens the filter when it shrinks, so that every pixel of the source counts.
    image = Image.fromarray(plane).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)
