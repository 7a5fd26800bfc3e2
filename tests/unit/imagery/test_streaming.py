"""Windows cut from a stream of pieces are what a direct read of each would give."""

import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.errors import RasterError
from tasks.imagery import Grid, GridReader, RasterInfo, Window, grid_of_raster, inspect_raster
from tasks.imagery.streaming import Arrays, piece_origin, piece_shape, stream_windows
from tests.unit.imagery.conftest import Writer

WHOLE = Window(0, 0, 90, 110)
VALUES = np.random.default_rng(5).integers(0, 60_000, (2, *WHOLE.shape), dtype=np.uint16)


class Source:
    """Gives windows of one array, 0 outside, and remembers what was asked for and what is still held."""

    def __init__(self, values: NDArray[Any] = VALUES, fails_on: Window | None = None) -> None:
        self.values = values
        self.fails_on = fails_on
        self.reads: list[Window] = []
        self.held_px = self.most_held_px = 0
        self.lock = threading.Lock()

    def read(self, window: Window) -> Arrays:
        with self.lock:
            self.reads.append(window)
        if self.fails_on is not None and not window.intersection(self.fails_on).is_empty:
            raise RasterError("broken", "mend it")
        found = self.oracle(window)
        with self.lock:
            self.held_px += window.rows * window.cols
            self.most_held_px = max(self.most_held_px, self.held_px)
        weakref.finalize(found, self._gone, window.rows * window.cols)
        return found, np.broadcast_to(np.True_, window.shape)

    def oracle(self, window: Window) -> NDArray[Any]:
        whole = Window(0, 0, *self.values.shape[-2:])
        found = np.zeros((*self.values.shape[:-2], *window.shape), self.values.dtype)
        common = window.intersection(whole)
        if not common.is_empty:
            found[..., *common.slices_in(window)] = self.values[..., *common.slices_in(whole)]
        return found

    def _gone(self, px: int) -> None:
        with self.lock:
            self.held_px -= px


def chipline_threads() -> int:
    return sum(thread.name.startswith("chipline-read") for thread in threading.enumerate())


def rows_of_windows(rows: int, cols: int, size: int, stride: int) -> list[Window]:
    return [
        Window(row, col, size, size)
        for row in range(0, rows - size + 1, stride)
        for col in range(0, cols - size + 1, stride)
    ]


WINDOWS = st.builds(
    Window, st.integers(-30, 100), st.integers(-30, 120), st.integers(0, 45), st.integers(0, 45)
)
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(
    windows=st.lists(WINDOWS, max_size=25),
    piece=SIZES,
    origin=st.tuples(st.integers(-99, 99), st.integers(-99, 99)),
    threads=st.integers(1, 3),
    depth=st.integers(1, 5),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_windows_equal_direct_reads_and_every_piece_is_read_once(
    windows: list[Window], piece: tuple[int, int], origin: tuple[int, int], threads: int, depth: int
) -> None:
    source = Source()
    found = list(
        stream_windows(source.read, windows, piece=piece, origin=origin, threads=threads, depth=depth)
    )
    assert len(found) == len(windows)
    for window, (values, valid) in zip(windows, found, strict=True):
        np.testing.assert_array_equal(values, source.oracle(window))
        assert values.dtype == np.uint16
        assert valid.shape == window.shape
        assert valid.all()
    reads = [window for window in source.reads if not window.is_empty]
    pieces = set()
    for window in reads:
        first = ((window.row - origin[0]) // piece[0], (window.col - origin[1]) // piece[1])
        last = ((window.row_stop - 1 - origin[0]) // piece[0], (window.col_stop - 1 - origin[1]) // piece[1])
        assert first == last, "a read lies in one piece"
        pieces.add(first)
    assert len(pieces) == len(reads), "no piece is read twice"
    for window in reads:
        assert any(not window.intersection(wanted).is_empty for wanted in windows), "nothing needless is read"


def test_memory_is_that_of_a_row_of_pieces() -> None:
    source = Source(np.zeros((1, 2000, 200), np.uint8))
    piece, depth = (40, 50), 3
    chips = 0
    for values, _ in stream_windows(
        source.read, rows_of_windows(2000, 200, 30, 15), piece=piece, threads=2, depth=depth
    ):
        chips += values.shape[-1] == 30
    assert chips == 132 * 12
    # Windows of 30 rows at steps of 15 lie in two rows of pieces at most, four pieces each.
    assert source.most_held_px <= (2 * 4 + depth) * piece[0] * piece[1]
    assert len(source.reads) == 50 * 4


def test_the_arrays_belong_to_the_consumer() -> None:
    windows = [Window(0, 0, 20, 20), Window(0, 0, 20, 20), Window(0, 10, 20, 20), Window(40, 40, 10, 10)]
    source = Source()
    for window, (values, _) in zip(
        windows, stream_windows(source.read, windows, piece=(20, 20)), strict=True
    ):
        np.testing.assert_array_equal(values, source.oracle(window))
        assert values.flags.c_contiguous
        values[:] = 1


def test_a_single_value_stays_one() -> None:
    def read(window: Window) -> Arrays:
        # Half of the plane is one value, the other half is not, though it holds the same.
        whole = np.broadcast_to(np.True_, window.shape)
        return (whole if window.col < 50 else whole.copy(),)

    single, both, real = (
        arrays[0]
        for arrays in stream_windows(
            read, [Window(0, 10, 4, 4), Window(0, 40, 4, 20), Window(0, 60, 4, 4)], piece=(10, 10)
        )
    )
    assert single.strides == (0, 0)
    assert single.all()
    assert both.flags.writeable
    assert both.all()
    assert real.flags.writeable

    def differ(window: Window) -> Arrays:
        return (np.broadcast_to(np.bool_(window.col < 10), window.shape),)

    (mixed,) = next(stream_windows(differ, [Window(0, 8, 1, 4)], piece=(10, 10)))
    assert mixed.tolist() == [[True, True, False, False]]


def test_a_consumer_that_stops_early_leaves_no_thread() -> None:
    source = Source(np.zeros((1, 5000, 40), np.uint8))
    stream = stream_windows(source.read, rows_of_windows(5000, 40, 20, 20), piece=(20, 40), depth=4)
    for _ in range(6):
        next(stream)
    stream.close()
    assert chipline_threads() == 0
    assert len(source.reads) <= 3 + 4, "no further ahead than it may"


def test_an_error_comes_at_the_turn_of_the_first_window_that_needs_the_piece() -> None:
    windows = rows_of_windows(90, 110, 10, 10)
    source = Source(fails_on=Window(45, 5, 1, 1))
    stream = stream_windows(source.read, windows, piece=(20, 20), threads=2, depth=6)
    for window in windows[: windows.index(Window(40, 0, 10, 10))]:
        np.testing.assert_array_equal(next(stream)[0], source.oracle(window))
    with pytest.raises(RasterError, match="broken"):
        next(stream)
    assert chipline_threads() == 0


def test_a_hundred_thousand_windows_cost_as_much_each_as_a_few() -> None:
    # At 27 microseconds each on a free core; quadratic work would take minutes.
    windows = [Window(row, col, 3, 3) for row in range(0, 800, 2) for col in range(0, 500, 2)]
    source = Source(np.zeros((1, 900, 600), np.uint8))
    started = time.process_time()
    count = sum(1 for _ in stream_windows(source.read, windows, piece=(64, 128)))
    assert count == len(windows) == 100_000
    assert (time.process_time() - started) / count < 200e-6


def test_nonsense_is_refused() -> None:
    assert list(stream_windows(Source().read, [], piece=(5, 5))) == []
    for piece, threads, depth in (((5, 5), 0, 1), ((5, 5), 1, 0), ((0, 5), 1, 1)):
        with pytest.raises(ValueError, match="at least 1"):
            next(stream_windows(Source().read, [WHOLE], piece=piece, threads=threads, depth=depth))


def test_a_real_raster_through_its_pieces(write: Writer, noise: NDArray[np.uint8]) -> None:
    noise = noise.copy()
    noise[:, 10:30, 20:60] = 0
    info = inspect_raster(write("a.tif", noise, nodata=0, blockxsize=32, blockysize=16))
    grid = grid_of_raster(info)
    windows = [Window(row, col, 40, 40) for row in range(-20, 160, 13) for col in range(-20, 180, 17)]
    with GridReader([info], grid) as reader:

        def read(window: Window) -> Arrays:
            pixels = reader.read(window)
            return pixels.values, pixels.valid

        for window, (values, valid) in zip(
            windows, stream_windows(read, windows, piece=(32, 64)), strict=True
        ):
            direct = reader.read(window)
            np.testing.assert_array_equal(values, direct.values)
            np.testing.assert_array_equal(valid, direct.valid)


def info_with(
    block: tuple[int, int], height: int, width: int, *, row: int = 0, col: int = 0, cell: float = 0.5
) -> tuple[RasterInfo, Grid]:
    """A raster whose first pixel is at (row, col) of a grid of 20,000 x 20,000."""
    grid = Grid(None, (0.5, 0.0, 0.0, 0.0, -0.5, 0.0), 20_000, 20_000)
    info = RasterInfo(
        uri="a.tif",
        width=width,
        height=height,
        band_count=3,
        dtype="uint8",
        nodata=None,
        crs_wkt=None,
        transform=(cell, 0.0, col * 0.5, 0.0, -cell, -row * 0.5),
        block_shape=block,
        band_names=("r", "g", "b"),
        colorinterp=("red", "green", "blue"),
        identity="1",
    )
    return info, grid


@given(
    block_rows=st.sampled_from([16, 64, 256, 512, 1000, 1024]),
    block_cols=st.sampled_from([16, 128, 256, 512, 1024]),
    row=st.integers(-5000, 5000),
    col=st.integers(-5000, 5000),
    bytes_per_pixel=st.sampled_from([1, 3, 8, 32]),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_pieces_do_not_cut_the_blocks_of_tiles(
    block_rows: int, block_cols: int, row: int, col: int, bytes_per_pixel: int
) -> None:
    info, grid = info_with((block_rows, block_cols), 9000, 9000, row=row, col=col)
    piece, origin = piece_shape([info], grid, bytes_per_pixel), piece_origin([info], grid)
    assert piece[0] % block_rows == 0
    assert piece[1] % block_cols == 0
    assert (row - origin[0]) % piece[0] % block_rows == 0
    assert (col - origin[1]) % piece[1] % block_cols == 0
    least = max(512, block_rows) * max(512, block_cols) * bytes_per_pixel
    assert piece[0] * piece[1] * bytes_per_pixel <= max(8 * 2**20, 2 * least)


@pytest.mark.parametrize("strip_rows", [1, 7, 64])
def test_pieces_of_strips_are_as_wide_as_the_raster(strip_rows: int) -> None:
    info, grid = info_with((strip_rows, 20_000), 20_000, 20_000)
    rows, cols = piece_shape([info], grid, 3)
    assert cols == 20_000
    assert rows % strip_rows == 0
    assert 3 * 2**20 < rows * cols * 3 < 8 * 2**20


def test_pieces_of_a_mosaic_of_strips_are_not_wider_than_one() -> None:
    info, grid = info_with((16, 2_000), 2_000, 2_000, col=500)
    rows, cols = piece_shape([info, info], grid, 3)
    assert cols == 2_000
    assert rows * cols * 3 < 8 * 2**20
    assert piece_origin([info, info], grid) == (0, 500)


def test_a_raster_in_one_block_is_not_one_piece() -> None:
    info, grid = info_with((20_000, 20_000), 20_000, 20_000)
    rows, cols = piece_shape([info], grid, 3)
    assert rows * cols * 3 <= 8 * 2**20


def test_a_resampled_raster_has_pieces_of_the_grid() -> None:
    info, grid = info_with((1, 9000), 9000, 9000, cell=0.7)
    rows, cols = piece_shape([info], grid, 3)
    assert piece_origin([info], grid) == (0, 0)
    assert rows >= 512
    assert 2 * 2**20 < rows * cols * 3 < 8 * 2**20
