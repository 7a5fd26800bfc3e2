"""Streaming: many windows cut from pieces of imagery, each of which is read once, ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.imagery.collection import same_crs
from tasks.imagery.grid import Grid
from tasks.imagery.raster import RasterInfo
from tasks.imagery.windows import Window

Arrays = tuple[NDArray[Any], ...]
"""What one read gives: arrays whose last two axes are rows and columns.  # (..., rows, cols) each"""

_PIECE_BYTES = 6 * 2**20
"""Large enough that a read's fixed costs vanish, small enough that a row of pieces stays small."""
_LARGEST_BLOCK_BYTES = 64 * 2**20
_LEAST_PX = 512
"""Pieces are at least as high and wide, for the blocks of a VRT say nothing of those of its sources."""
_RESAMPLED_BLOCK = (512, 512)


def stream_windows(
    read: Callable[[Window], Arrays],
    windows: Sequence[Window],
    *,
    piece: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
    threads: int = 2,
    depth: int = 4,
) -> Generator[Arrays, None, None]:
    """The arrays of each window, in the order given, put together from pieces that are read once each.

    The plane is cut into pieces of ``piece`` (rows, cols) pixels, one of which begins at ``origin``
    (row, col). A piece is read when the first window that needs it comes near, as far as windows need it,
    and dropped after the last one. ``threads`` threads read up to ``depth`` pieces ahead. Memory is that of
    the pieces between their first and last window and of ``depth`` more: for windows in rows, about a row
    of pieces, whatever the number of windows.

    The arrays belong to the consumer (no two windows share memory), with one exception: an array that is
    one value throughout and has no memory of its own (made by ``np.broadcast_to``, as :attr:`Pixels.valid`
    of a raster without a mask) stays such a read-only array.

    When the consumer stops early (closes the generator), reads that have not begun are dropped and the
    threads are joined.

    Args:
        read: gives the arrays of a window, with the same number, types and leading axes for each window;
            called by several threads at once.
        windows: in any order, overlapping or not; they may reach outside of any grid.
        piece: (rows, cols) of a piece, px; see :func:`piece_shape`.
        origin: (row, col) where a piece begins, px; see :func:`piece_origin`.
        threads: how many threads read.
        depth: how many pieces are read ahead.

    Raises:
        Exception: what ``read`` raised, at the turn of the first window that needs the piece.
    """
    if threads < 1 or depth < 1 or min(piece) < 1:
        raise ValueError(f"threads, depth and piece are at least 1; got {threads}, {depth} and {piece}.")
    plan = _planned(windows, piece, origin)
    alive: dict[int, Future[Arrays]] = {}
    submitted = reached = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="chipline-read")
    try:
        for number, window in enumerate(windows):
            needed = plan.pieces_of[plan.starts[number] : plan.starts[number + 1]].tolist()
            # Pieces are numbered by first use: those below the highest one so far have been asked for.
            reached = max(reached, *(index + 1 for index in needed)) if needed else reached
            while submitted < min(reached + depth, len(plan.areas)):
                alive[submitted] = pool.submit(read, plan.areas[submitted])
                submitted += 1
            if not needed:  # a window without a pixel still has axes and types
                yield read(window)
                continue
            parts = [(plan.areas[index], alive[index].result()) for index in needed]
            for index in needed:
                if plan.last_use[index] == number:
                    del alive[index]
            alone = len(needed) == 1 and plan.uses[needed[0]] == 1
            found = parts[0][1] if alone and parts[0][0] == window else _cut(window, parts)
            # Nothing but the consumer holds on to the arrays while it works on them.
            del parts
            yield found
            del found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def piece_shape(infos: Sequence[RasterInfo], grid: Grid, bytes_per_pixel: int) -> tuple[int, int]:
    """How large pieces should be to read these rasters on ``grid``: (rows, cols), px.

    Some megabytes, low and wide, so that a row of pieces takes little memory. On a raster whose pixels are
    the grid's own, a piece is a whole number of its blocks, and together with :func:`piece_origin` every
    block is decoded once. Of several rasters the first one's blocks count.

    Args:
        infos: the rasters, in order.
        grid: the target grid.
        bytes_per_pixel: bytes of all bands of one pixel, in memory.
    """
    info = infos[0]
    size = max(1, bytes_per_pixel)
    block_rows, block_cols = info.block_shape if _aligned(info, grid) else _RESAMPLED_BLOCK
    if block_rows * block_cols * size > _LARGEST_BLOCK_BYTES:
        # It does not pay to hold a whole block as a piece; GDAL's cache may hold it meanwhile.
        block_rows = max(1, _PIECE_BYTES // (block_cols * size))
    if block_cols >= info.width and _aligned(info, grid):
        return (_multiple(block_rows, _PIECE_BYTES // (info.width * size)), info.width)
    rows, unit = (-(-_LEAST_PX // block) * block for block in (block_rows, block_cols))
    widest = -(-grid.cols // unit) * unit
    return (rows, min(_multiple(unit, _PIECE_BYTES // (rows * size)), widest))


def piece_origin(infos: Sequence[RasterInfo], grid: Grid) -> tuple[int, int]:
    """(row, col) on ``grid`` where pieces should begin so that the first raster's blocks are not cut."""
    info = infos[0]
    if not _aligned(info, grid):
        return (0, 0)
    return grid.offset_of(info.transform, info.height, info.width) or (0, 0)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which pieces there are, by the order of first use, and which windows need them."""

    areas: list[Window]  # per piece, what of it is needed
    last_use: list[int]  # per piece, number of the last window
    uses: list[int]  # per piece, how many windows
    starts: list[int]  # per window, and one more at the end: where its pieces begin in pieces_of
    pieces_of: NDArray[np.int64]


def _planned(windows: Sequence[Window], piece: tuple[int, int], origin: tuple[int, int]) -> _Plan:
    edges = np.array([(w.row, w.row_stop, w.col, w.col_stop) for w in windows], dtype=np.int64).reshape(-1, 4)
    row, row_stop, col, col_stop = edges.T
    first_row, first_col = (row - origin[0]) // piece[0], (col - origin[1]) // piece[1]
    high = (row_stop - 1 - origin[0]) // piece[0] - first_row + 1
    wide = (col_stop - 1 - origin[1]) // piece[1] - first_col + 1
    empty = (row_stop <= row) | (col_stop <= col)
    count = np.where(empty, 0, high * wide)
    starts = np.concatenate(([0], np.cumsum(count)))
    # One entry for each window and piece that share a pixel, in the order of windows, then rows, columns.
    window = np.repeat(np.arange(len(edges)), count)
    within = np.arange(starts[-1]) - starts[:-1][window]
    down, across = np.divmod(within, np.maximum(wide, 1)[window])
    piece_row, piece_col = first_row[window] + down, first_col[window] + across
    if not len(window):
        return _Plan([], [], [], starts.tolist(), np.zeros(0, np.int64))
    key = (piece_row - piece_row.min()) * (np.ptp(piece_col) + 1) + (piece_col - piece_col.min())
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    index = rank[inverse]
    pieces = len(order)
    last_use = np.zeros(pieces, np.int64)
    np.maximum.at(last_use, index, window)
    top, left = origin[0] + piece_row * piece[0], origin[1] + piece_col * piece[1]
    needed = np.empty((4, pieces), np.int64)
    needed[0], needed[1] = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    needed[2], needed[3] = needed[0], needed[1]
    np.minimum.at(needed[0], index, np.maximum(row[window], top))
    np.maximum.at(needed[1], index, np.minimum(row_stop[window], top + piece[0]))
    np.minimum.at(needed[2], index, np.maximum(col[window], left))
    np.maximum.at(needed[3], index, np.minimum(col_stop[window], left + piece[1]))
    areas = [Window(r, c, stop - r, col_end - c) for r, stop, c, col_end in needed.T.tolist()]
    uses = np.bincount(index, minlength=pieces)
    return _Plan(areas, last_use.tolist(), uses.tolist(), starts.tolist(), index)


def _cut(window: Window, parts: list[tuple[Window, Arrays]]) -> Arrays:
    """The arrays of a window from the pieces that it touches."""
    top, left = window.row, window.col
    places = []
    for area, _ in parts:  # plain numbers: this runs for every window
        row, row_stop = max(area.row, top), min(area.row_stop, window.row_stop)
        col, col_stop = max(area.col, left), min(area.col_stop, window.col_stop)
        to = (..., slice(row - top, row_stop - top), slice(col - left, col_stop - left))
        of = (..., slice(row - area.row, row_stop - area.row), slice(col - area.col, col_stop - area.col))
        places.append((to, of))
    cut = []
    for arrays in zip(*(arrays for _, arrays in parts), strict=True):
        first = arrays[0]
        shape = (*first.shape[:-2], *window.shape)
        constant = _constant(arrays)
        if constant is not None:
            # A slice costs a tenth of a broadcast, and this runs for every window.
            cut.append(first[places[0][1]] if len(arrays) == 1 else np.broadcast_to(constant, shape))
            continue
        values = np.empty(shape, first.dtype)
        for (to, of), array in zip(places, arrays, strict=True):
            values[to] = array[of]
        cut.append(values)
    return tuple(cut)


def _constant(arrays: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """The value that all arrays are made of, where each is a single value without memory of its own."""
    if any(any(array.strides) or not array.size for array in arrays):
        return None
    values = [array[(0,) * array.ndim] for array in arrays]
    return np.asarray(values[0]) if all(value == values[0] for value in values[1:]) else None


def _aligned(info: RasterInfo, grid: Grid) -> bool:
    offset = grid.offset_of(info.transform, info.height, info.width)
    return offset is not None and same_crs(info.crs_wkt, grid.crs_wkt)


def _multiple(unit: int, wanted: int) -> int:
    """The largest multiple of ``unit`` up to ``wanted``, at least one."""
    return max(1, wanted // unit) * unit
