"""The one reader: windows of a target grid, read from a collection of rasters."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import numpy as np
import rasterio.errors
import rasterio.warp
import rasterio.windows
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from tasks.errors import BadInputError, NotFoundError, RasterError, StoreError
from tasks.imagery._memory import give_back_memory
from tasks.imagery.collection import bounds_in, crs_name, same_crs
from tasks.imagery.grid import Grid
from tasks.imagery.raster import CACHE_BYTES, RasterInfo, open_raster, raster_environment
from tasks.imagery.services import RETRY_WAITS_S, kind_of_service, may_pass, reason_of
from tasks.imagery.windows import Window
from tasks.store import ObjectStore, is_local, is_s3

ResamplingMethod = Literal["nearest", "bilinear", "cubic", "average", "mode"]

_OPEN_HANDLES = 64
# What GDAL says of every VRT, whatever the blocks of its sources are.
_BLOCK_OF_VRT = (128, 128)


@dataclass(frozen=True, slots=True)
class Pixels:
    """The pixels of one window.

    Attributes:
        values: source dtype; 0 where not valid.  # (bands, rows, cols)
        valid: True where at least one extracted band holds data; not to be written to, since it may be one
            value without memory of its own where all pixels are valid.  # (rows, cols), bool
    """

    values: NDArray[np.generic]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where a raster lies on the grid: its window there, and whether its pixels are the grid's own."""

    window: Window
    aligned: bool


@dataclass(slots=True)
class _Handle:
    """An open raster; ``view`` is the raster itself or its warped view on the whole grid."""

    source: DatasetReader
    view: DatasetReader | WarpedVRT
    bands: tuple[int, ...]  # one-based, in the order they are handed over
    alpha: int | None  # band of the view that tells validity
    masked: bool  # whether masks must be looked at
    nodata: NDArray[np.generic] | None = None  # per band, where nothing else masks it  # (bands, 1, 1)
    one_mask: bool = False  # whether all bands have the same mask

    def close(self) -> None:
        if self.view is not self.source:
            self.view.close()
        self.source.close()


class GridReader:
    """Reads windows of a grid from an ordered collection; usable from many threads at once.

    Where rasters overlap, the first one that is valid at a pixel wins. A pixel is invalid only where every
    extracted band is nodata (or NaN), or where the raster's own mask or alpha band says so; outside of the
    grid and of all rasters pixels are invalid. Rasters whose pixels coincide with the grid's are read as
    they are; others are resampled onto the whole grid without approximation, so that a pixel's value never
    depends on the window it is read through.

    Args:
        infos: the collection, in order.
        grid: the target grid.
        bands: zero-based band indices, in the order wanted; None takes all bands.
        resampling: method for rasters that are not on the grid.

    Attributes:
        cache_bytes: what GDAL's cache of decoded blocks may hold while this reader reads; the cache is one
            for the whole process.

    Raises:
        BadInputError: bands that a raster lacks, rasters with different numbers of bands where all are
            taken, a raster without CRS on a grid with one.
    """

    def __init__(
        self,
        infos: Sequence[RasterInfo],
        grid: Grid,
        bands: tuple[int, ...] | None = None,
        *,
        resampling: ResamplingMethod = "bilinear",
    ) -> None:
        if not infos:
            raise BadInputError("The collection holds no raster.", "Give at least one raster.")
        self.infos = tuple(infos)
        self.grid = grid
        self.bands = _checked_bands(self.infos, bands)
        self.dtype: np.dtype[np.generic] = np.result_type(*(np.dtype(info.dtype) for info in self.infos))
        self.cache_bytes = CACHE_BYTES
        self._resampling = Resampling[resampling]
        self._placements = _placements(self.infos, grid)
        self._edges = np.array(
            [(p.window.row, p.window.row_stop, p.window.col, p.window.col_stop) for p in self._placements]
        )
        self._lock = threading.Lock()
        self._free: list[tuple[int, _Handle]] = []  # the most recently used one last
        self._closed = False

    @property
    def band_count(self) -> int:
        """Number of bands that are handed over."""
        return len(self.bands)

    def footprints(self) -> list[Window]:
        """Per raster, in order, the window of the grid that it may touch, clipped to the grid."""
        return [placement.window for placement in self._placements]

    def touching(self, window: Window) -> list[RasterInfo]:
        """The rasters that may contribute to ``window``, in the collection's order."""
        return [self.infos[index] for index in self._candidates(window.intersection(self.grid.window))]

    def bytes_of_blocks(self, shape: tuple[int, int]) -> int | None:
        """About how many bytes the decoded blocks have that a window touches.

        Args:
            shape: (rows, cols) of the window, px.

        Returns:
            None where this does not follow from the window: a raster is resampled, its blocks are larger
            than the window (a striped file's), or not known (those of a VRT's sources).
        """
        most = 0
        for info, placement in zip(self.infos, self._placements, strict=True):
            rows, cols = min(shape[0], info.height), min(shape[1], info.width)
            high, wide = info.block_shape
            if not placement.aligned or high > rows or wide > cols or info.block_shape == _BLOCK_OF_VRT:
                return None
            # On average a window touches one block more than lie in it; GDAL decodes all bands of a block.
            pixels = (rows + high) * (cols + wide)
            most = max(most, pixels * info.band_count * np.dtype(info.dtype).itemsize)
        return most

    def read(self, window: Window) -> Pixels:
        """The pixels of a window, which may reach outside of the grid.

        Raises:
            RasterError: a raster cannot be opened or read; it names the file and the window.
        """
        if self._closed:
            raise ValueError("The reader is closed.")
        inside = window.intersection(self.grid.window)
        candidates = self._candidates(inside)
        if candidates and self._placements[candidates[0]].window.contains(window):
            alone = self._read_alone(candidates.pop(0), window)
            if not candidates or alone.valid.all():
                return alone
            values, valid = alone.values, alone.valid
        else:
            values = np.zeros((self.band_count, *window.shape), dtype=self.dtype)
            valid = np.zeros(window.shape, dtype=np.bool_)
        for index in candidates:
            part = self._placements[index].window.intersection(inside)
            here = part.slices_in(window)
            missing = ~valid[here]
            if not missing.any():
                continue
            found, found_valid = self._read_raster(index, part)
            taken = missing if found_valid is None else missing & found_valid
            if taken.all():
                values[:, *here] = found
                valid[here] = True
            else:
                np.copyto(values[:, *here], found, where=taken, casting="safe")
                valid[here] |= taken
        return Pixels(values, valid)

    def close(self) -> None:
        """Close all files; safe to call twice."""
        with self._lock:
            self._closed = True
            handles, self._free = self._free, []
        for _, handle in handles:
            handle.close()
        if handles:
            give_back_memory()

    def __enter__(self) -> GridReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_alone(self, index: int, window: Window) -> Pixels:
        """A window that lies in a raster: what was read is handed over as it is."""
        found, valid = self._read_raster(index, window)
        found = found.astype(self.dtype, casting="safe", copy=False)
        if valid is None or valid.all():
            return Pixels(found, np.broadcast_to(np.True_, window.shape))
        found[:, ~valid] = 0
        return Pixels(found, valid)

    def _candidates(self, inside: Window) -> list[int]:
        if inside.is_empty:
            return []
        edges = self._edges
        touches = (
            (edges[:, 0] < inside.row_stop)
            & (edges[:, 1] > inside.row)
            & (edges[:, 2] < inside.col_stop)
            & (edges[:, 3] > inside.col)
        )
        return [int(index) for index in np.flatnonzero(touches)]

    def _read_raster(self, index: int, part: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
        """Values and validity of one raster in a window of the grid; None where all of it is valid."""
        info, placement = self.infos[index], self._placements[index]
        local = part.shift(*_origin_shift(placement, info, self.grid)) if placement.aligned else part
        target = rasterio.windows.Window(local.col, local.row, local.cols, local.rows)
        waits = iter(RETRY_WAITS_S)
        while True:
            try:
                with raster_environment(info.uri, self.cache_bytes), self._borrowed(index) as handle:
                    found = handle.view.read(list(handle.bands), window=target)
                    return found, self._validity(handle, found, target)
            except (rasterio.errors.RasterioError, CPLE_BaseError, RasterError) as error:
                reason = reason_of(error)
                wait = next(waits, None) if _is_worth_asking_again(info.uri, reason) else None
                if wait is None and isinstance(error, RasterError):
                    raise  # it could not be opened
                if wait is None:
                    # GDAL's own text repeats a service's address with its credentials.
                    raise _cannot_read(info, local, reason) from (
                        None if kind_of_service(info.uri) else error
                    )
            time.sleep(wait)

    def _validity(
        self, handle: _Handle, found: NDArray[np.generic], target: rasterio.windows.Window
    ) -> NDArray[np.bool_] | None:
        valid: NDArray[np.bool_] | None = None  # (rows, cols), or (bands, rows, cols)
        if handle.alpha is not None:
            valid = handle.view.read(handle.alpha, window=target) != 0
        elif handle.nodata is not None:
            valid = found != handle.nodata
        elif handle.masked and handle.one_mask:
            valid = handle.view.read_masks(handle.bands[0], window=target) != 0
        elif handle.masked:
            valid = handle.view.read_masks(list(handle.bands), window=target) != 0
        if found.dtype.kind == "f":
            number = ~np.isnan(found)
            if not number.all():
                valid = number if valid is None else valid & number
        return valid if valid is None or valid.ndim == 2 else np.asarray(valid.any(axis=0))

    @contextmanager
    def _borrowed(self, index: int) -> Iterator[_Handle]:
        """A handle that nobody else uses meanwhile; kept open afterwards for whoever comes next."""
        handle: _Handle | None = None
        with self._lock:
            for position in range(len(self._free) - 1, -1, -1):
                if self._free[position][0] == index:
                    handle = self._free.pop(position)[1]
                    break
        if handle is None:
            handle = self._opened(index)
        try:
            yield handle
        except BaseException:
            handle.close()  # a fresh one on the next try: a failed one may remember its failure
            raise
        with self._lock:
            if not self._closed:
                self._free.append((index, handle))
            superfluous = [handle] if self._closed else []
            while len(self._free) > _OPEN_HANDLES:
                superfluous.append(self._free.pop(0)[1])
        for old in superfluous:
            old.close()

    def _opened(self, index: int) -> _Handle:
        info = self.infos[index]
        source = open_raster(info.uri)
        try:
            if (source.height, source.width, source.count) != (info.height, info.width, info.band_count):
                raise RasterError(
                    f"{info.address} has changed since it was inspected.",
                    "Leave inputs unchanged while a run works on them, and start the run again.",
                )
            bands = tuple(band + 1 for band in self.bands)
            alpha = next(
                (n for n, kind in enumerate(source.colorinterp, 1) if kind == ColorInterp.alpha), None
            )
            if self._placements[index].aligned:
                flags = [source.mask_flag_enums[band - 1] for band in bands]
                masked = any(MaskFlags.all_valid not in flag for flag in flags)
                return _Handle(
                    source,
                    source,
                    bands,
                    _aligned_alpha(source, bands, alpha),
                    masked,
                    _whole_nodata(source, bands) if masked else None,
                    all(MaskFlags.per_dataset in flag for flag in flags),
                )
            return self._warped(source, bands, alpha)
        except BaseException:
            source.close()
            raise

    def _warped(self, source: DatasetReader, bands: tuple[int, ...], alpha: int | None) -> _Handle:
        grid = self.grid
        a, b, c, d, e, f = grid.transform
        by_nodata = source.nodata is not None and alpha is None
        view = WarpedVRT(
            source,
            crs=CRS.from_wkt(grid.crs_wkt),
            transform=Affine(a, b, c, d, e, f),
            width=grid.cols,
            height=grid.rows,
            resampling=self._resampling,
            # Next to exact (0 itself fails in rasterio): an approximated transformation would depend on
            # the window that is computed at a time.
            tolerance=1e-30,
            add_alpha=not by_nodata and alpha is None,
            # Nodata is a matter of each band by itself, as it is for an aligned raster.
            **({"UNIFIED_SRC_NODATA": "NO"} if by_nodata else {}),
            **_scales_of_rotated(source, grid),
        )
        if by_nodata:
            return _Handle(source, view, bands, None, masked=True)
        return _Handle(source, view, bands, alpha or source.count + 1, masked=True)


def _is_worth_asking_again(uri: str, reason: str) -> bool:
    """Whether what could not be read may be readable soon; waits for an object store that starts again.

    GDAL asks again for some answers and not at all where nobody answers.
    """
    if kind_of_service(uri):
        return may_pass(reason)
    if not is_s3(uri):
        return not is_local(uri)
    try:
        ObjectStore().stat(uri)
    except (StoreError, NotFoundError):
        return False
    return True


def _cannot_read(info: RasterInfo, window: Window, reason: str) -> RasterError:
    remedy = (
        "Check that the service answers and that its token is still valid; then start the run again."
        if kind_of_service(info.uri)
        else "Check that the file is complete (copy it again if it was cut off) and that its store can be "
        "reached."
    )
    return RasterError(
        f"{info.address} could not be read at rows {window.row} to {window.row_stop}, "
        f"columns {window.col} to {window.col_stop}: {reason}.",
        remedy,
    )


def _scales_of_rotated(source: DatasetReader, grid: Grid) -> dict[str, str]:
    """Cells of the grid per pixel of a rotated raster, for GDAL, along the raster's columns and rows.

    GDAL takes the ratio of two bounding boxes, which is wrong for a rotated raster: it blurs.
    """
    a, b, c, d, e, f = tuple(source.transform)[:6]
    if not (b or d):
        return {}
    col, row = source.width / 2, source.height / 2
    x, y = a * col + b * row + c, d * col + e * row + f
    xs, ys = [x, x + a, x + b], [y, y + d, y + e]
    if source.crs is not None:
        xs, ys = rasterio.warp.transform(source.crs, CRS.from_wkt(grid.crs_wkt), xs, ys)
    cols, rows = zip(*(grid.to_pixel(x, y) for x, y in zip(xs, ys, strict=True)), strict=True)
    along = [math.hypot(cols[step] - cols[0], rows[step] - rows[0]) for step in (1, 2)]
    return {"XSCALE": f"{along[0]:.6f}", "YSCALE": f"{along[1]:.6f}"}


def _origin_shift(placement: _Placement, info: RasterInfo, grid: Grid) -> tuple[int, int]:
    """What to add to a grid position to get the aligned raster's own position: (rows, cols)."""
    offset = grid.offset_of(info.transform, info.height, info.width)
    if offset is None:
        raise ValueError(f"{info.address} is not aligned with the grid; {placement} is wrong.")
    return (-offset[0], -offset[1])


def _aligned_alpha(source: DatasetReader, bands: tuple[int, ...], alpha: int | None) -> int | None:
    """The alpha band, where it is what masks the extracted bands (nodata goes before alpha in GDAL)."""
    if alpha is None:
        return None
    colours = [band for band in bands if band != alpha] or [alpha]
    masked = any(MaskFlags.alpha in source.mask_flag_enums[band - 1] for band in colours)
    return alpha if masked or colours == [alpha] else None


def _whole_nodata(source: DatasetReader, bands: tuple[int, ...]) -> NDArray[np.generic] | None:
    """Nodata per band where nothing but whole numbers are compared: no need to ask GDAL for masks."""
    values = [source.nodatavals[band - 1] for band in bands]
    kinds = {source.dtypes[band - 1] for band in bands}
    flags = [source.mask_flag_enums[band - 1] for band in bands]
    if len(kinds) > 1 or any(flag != [MaskFlags.nodata] for flag in flags):
        return None
    dtype = np.dtype(kinds.pop())
    if dtype.kind not in "iu" or dtype.itemsize > 4:
        return None
    limits = np.iinfo(dtype)
    for value in values:
        if value is None or not limits.min <= value <= limits.max or value != int(value):
            return None
    return np.array(values).astype(dtype)[:, None, None]


def _checked_bands(infos: tuple[RasterInfo, ...], bands: tuple[int, ...] | None) -> tuple[int, ...]:
    first = infos[0]
    if bands is None:
        for info in infos[1:]:
            if info.band_count != first.band_count:
                raise BadInputError(
                    f"{first.address} has {first.band_count} bands and {info.address} has {info.band_count}.",
                    "Name the bands to extract, or give rasters with the same bands.",
                )
        return tuple(range(first.band_count))
    if not bands:
        raise BadInputError("No band is to be extracted.", "Name at least one band, counted from 0.")
    for info in infos:
        lacking = [band for band in bands if not 0 <= band < info.band_count]
        if lacking:
            raise BadInputError(
                f"{info.address} has {info.band_count} bands ({', '.join(info.band_names)}), so there is no "
                f"band {', '.join(str(band) for band in lacking)} counted from 0.",
                f"Extract bands between 0 and {info.band_count - 1}.",
            )
    return tuple(bands)


def _placements(infos: tuple[RasterInfo, ...], grid: Grid) -> list[_Placement]:
    same: dict[str | None, bool] = {}
    placements = []
    for info in infos:
        if info.crs_wkt not in same:
            same[info.crs_wkt] = same_crs(info.crs_wkt, grid.crs_wkt)
        if not same[info.crs_wkt] and (info.crs_wkt is None or grid.crs_wkt is None):
            raise BadInputError(
                f"{info.address} has {crs_name(info.crs_wkt)}, the target grid has {crs_name(grid.crs_wkt)}.",
                "Assign the raster's reference system, or process it by itself in pixel space.",
            )
        offset = grid.offset_of(info.transform, info.height, info.width) if same[info.crs_wkt] else None
        if offset is not None:
            window = Window(offset[0], offset[1], info.height, info.width)
        elif grid.crs_wkt is None:
            raise BadInputError(
                f"{info.address} does not lie on the target grid, and in pixel space nothing is resampled.",
                "Process the raster by itself.",
            )
        else:
            # One cell more on each side: the footprint's edge is curved in another reference system.
            window = grid.window_of_bounds(bounds_in(info, grid.crs_wkt, within=grid.bounds)).expand(1)
        placements.append(_Placement(window.intersection(grid.window), aligned=offset is not None))
    return placements
