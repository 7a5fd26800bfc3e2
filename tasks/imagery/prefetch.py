"""Reading ahead: the next windows are read by threads while the consumer works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

from tasks.imagery.reader import Pixels

Place = TypeVar("Place")
_Place = TypeVar("_Place", contravariant=True)


class Readable(Protocol[_Place]):
    """What can be read ahead: a ``GridReader`` by windows, or several by places of the caller's own."""

    def read(self, window: _Place, /) -> Pixels:
        """The pixels of one place."""
        ...


def prefetch(
    reader: Readable[Place], windows: Iterable[Place], *, threads: int = 2, depth: int = 4
) -> Generator[tuple[Place, Pixels], None, None]:
    """Each window with its pixels, in the order given, read ahead by ``threads`` threads.

    At most ``depth`` windows are read or held beyond the one that the consumer works on, so memory stays
    flat; ``windows`` may be an endless stream. A read error is raised when its window's turn comes. When
    the consumer stops early (closes the generator), reads that have not begun are dropped and the threads
    are joined.

    Raises:
        RasterError: as :meth:`GridReader.read` does.
    """
    if threads < 1 or depth < 1:
        raise ValueError(f"threads and depth are at least 1; got {threads} and {depth}.")
    source = iter(windows)
    pending: deque[tuple[Place, Future[Pixels]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="chipline-read")
    try:
        for window in islice(source, depth):
            pending.append((window, pool.submit(reader.read, window)))
        while pending:
            window, future = pending.popleft()
            pixels = future.result()
            del future
            for following in islice(source, 1):
                pending.append((following, pool.submit(reader.read, following)))
            yield window, pixels
            del pixels
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
