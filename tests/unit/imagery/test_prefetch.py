import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tasks.errors import RasterError
from tasks.imagery import Pixels, Window, prefetch


class Reader:
    """Counts what was read; the pixels tell the window's row."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.read_rows: list[int] = []
        self.fails_at = fails_at
        self.lock = threading.Lock()

    def read(self, window: Window) -> Pixels:
        with self.lock:
            self.read_rows.append(window.row)
        if window.row == self.fails_at:
            raise RasterError("broken", "mend it")
        return Pixels(np.full((1, 1, 1), window.row), np.ones((1, 1), bool))


def rows() -> Iterator[Window]:
    return (Window(row, 0, 1, 1) for row in itertools.count())


def chipline_threads() -> int:
    return sum(thread.name.startswith("chipline-read") for thread in threading.enumerate())


def test_in_order_bounded_and_closed_early() -> None:
    reader = Reader()
    stream = prefetch(reader, rows(), threads=3, depth=5)
    for row, (window, pixels) in zip(range(20), stream, strict=False):
        assert window.row == row == pixels.values[0, 0, 0]
        assert max(reader.read_rows) <= row + 5
    stream.close()
    assert len(reader.read_rows) <= 26
    assert chipline_threads() == 0


def test_an_error_comes_at_its_turn_and_ends_the_threads() -> None:
    stream = prefetch(Reader(fails_at=7), rows(), threads=2, depth=4)
    assert [next(stream)[0].row for _ in range(7)] == list(range(7))
    with pytest.raises(RasterError, match="broken"):
        next(stream)
    assert chipline_threads() == 0


def test_nothing_to_read() -> None:
    assert list(prefetch(Reader(), [], threads=2)) == []
    with pytest.raises(ValueError, match="at least 1"):
        next(prefetch(Reader(), [], depth=0))
