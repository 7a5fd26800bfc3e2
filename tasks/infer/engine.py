"""The one tiling loop: shards in, results out, through an inference function's host.

Reader threads fetch strips of tiles with their halo, the host works on several tiles at once, an operator
puts a shard's result together, and a writer thread stores it. The stream of tiles runs on across shard
borders, so that the device never waits for a shard to be finished. Memory depends on tile, strip and shard
size alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ChiplineError, NotFoundError, RasterError, StoreError
from tasks.host import Operation
from tasks.imagery import Grid, Pixels, Window, prefetch
from tasks.infer.reading import in_bands
from tasks.infer.shards import Shard, TileGeometry

# Pixels that one read may bring: bounds memory whatever the number of bands and the shard's width.
STRIP_BYTES = 48 * 1024 * 1024
ATTEMPTS = 4
FIRST_DELAY_S = 0.5
# Results that wait to be written; more would only hide a slow store behind growing memory.
WRITES_WAITING = 2

State = TypeVar("State")


class Reader(Protocol):
    """Where pixels come from: ``tasks.imagery.GridReader`` or a test's double."""

    def read(self, window: Window) -> Pixels:
        """Pixels of a window, zero and invalid outside the imagery."""
        ...


class Host(Protocol):
    """What the engine needs of ``tasks.host.HostProcess``."""

    def submit(
        self,
        operation: Operation,
        pixels: NDArray[Any],
        mask: NDArray[np.uint8],
        *,
        tlc: tuple[float, float],
        shape: tuple[int, int],
        props: Mapping[str, Any],
    ) -> int:
        """Hand over one block; blocks while the ring is full."""
        ...

    def result(self, ticket: int) -> Any:
        """What the function returned for the block."""
        ...


class Sink(Protocol):
    """Where results of shards go: ``tasks.infer.shards.ShardStore`` or a test's double."""

    def exists(self, shard: Shard) -> bool:
        """Whether the result is there already."""
        ...

    def put(self, shard: Shard, data: bytes) -> bool:
        """Store a result; False when it was there already."""
        ...


class Operator(Protocol[State]):
    """What a tool does with the results of tiles. It holds no state of its own: that is the shard's."""

    @property
    def operation(self) -> Operation:
        """The function's method that takes a tile."""
        ...

    def needs(self, valid: NDArray[np.bool_], geometry: TileGeometry) -> bool:
        """Whether a tile has to go through the function, by its block's mask (rows, cols)."""
        ...

    def begin(self, shard: Shard) -> State:
        """State of a new shard."""
        ...

    def accept(self, state: State, tile: Any, result: Any) -> None:
        """Take what the function returned for one tile, or for what else its cutter makes blocks of."""
        ...

    def finish(self, state: State) -> bytes:
        """The shard's result."""
        ...


@dataclass(frozen=True)
class Tile:
    """One tile on its way through the host.

    Attributes:
        row, col: place on the grid, in tile steps.
        inner: what the tile contributes; may reach outside the grid.
        valid: (rows, cols) of the inner part, False where the imagery holds no pixel or a mask leaves it out.
    """

    row: int
    col: int
    inner: Window
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Source:
    """One target grid with the reader of its pixels.

    Attributes:
        pixel_bytes: bytes of one pixel over all bands that are read, its mask included.
        remote: whether a read goes over a network, so that a failure may pass.
        props: what the function is told about the imagery besides a block's extent.
        band: columns of shards that are read before those beside them (``tasks.infer.reading``); 0: in the
            order given.
    """

    grid: Grid
    reader: Reader
    pixel_bytes: int
    remote: bool
    props: Mapping[str, Any]
    band: int = 0


@dataclass(frozen=True)
class Strip:
    """What is read of a shard in one go.

    Attributes:
        window: what is read.
        item: which blocks it is for; the cutter knows.
        last: whether it ends its shard.
    """

    shard: Shard
    window: Window
    item: Any
    last: bool


@dataclass(frozen=True)
class Block:
    """What the function is handed in one call.

    Attributes:
        pixels: (bands, rows, cols), or a batch (n, bands, rows, cols).
        mask: (rows, cols), or (n, rows, cols); 1 where valid, uint8.
        inner: the window that the function's answer is about.
        tile: what the operator is told with the answer.
    """

    pixels: NDArray[Any]
    mask: NDArray[np.uint8]
    inner: Window
    tile: Any


class Cutter(Protocol):
    """How a shard becomes reads, and what was read becomes blocks: tiles of a grid, crops of features."""

    def strips(self, shard: Shard, source: Source) -> Iterator[Strip]:
        """What to read, one after the other; a shard has at least one strip."""
        ...

    def read(self, strip: Strip, source: Source) -> Pixels:
        """The pixels of a strip; called in the reading threads."""
        ...

    def blocks(self, strip: Strip, pixels: Pixels, source: Source) -> Iterator[Block | None]:
        """The blocks of a strip; None for one that need not go through the function."""
        ...


@dataclass(frozen=True)
class TileCutter:
    """Tiles with their halo: a strip is as many rows of tiles as fit into ``STRIP_BYTES``.

    Attributes:
        needs: see :class:`Operator`.
        wanted: pixels of a window of a grid, by its number, whose results count; None: all.
    """

    geometry: TileGeometry
    needs: Callable[[NDArray[np.bool_], TileGeometry], bool]
    wanted: Callable[[int, Window], NDArray[np.bool_]] | None = None

    def strips(self, shard: Shard, source: Source) -> Iterator[Strip]:
        """Consecutive rows of tiles."""
        geometry, halo = self.geometry, 2 * self.geometry.padding
        cols = shard.tile_cols * geometry.cols + halo
        per_strip = max(1, STRIP_BYTES // (source.pixel_bytes * cols * geometry.rows))
        for start in range(0, shard.tile_rows, per_strip):
            count = min(per_strip, shard.tile_rows - start)
            row = shard.tile_row + start
            window = Window(
                row * geometry.rows - geometry.padding,
                shard.tile_col * geometry.cols - geometry.padding,
                count * geometry.rows + halo,
                cols,
            )
            yield Strip(shard, window, (row, count), last=start + count == shard.tile_rows)

    def read(self, strip: Strip, source: Source) -> Pixels:
        """The strip's window."""
        return source.reader.read(strip.window)

    def blocks(self, strip: Strip, pixels: Pixels, source: Source) -> Iterator[Block | None]:  # noqa: ARG002
        """The tiles, row by row."""
        geometry, pad = self.geometry, self.geometry.padding
        height, width = geometry.rows + 2 * pad, geometry.cols + 2 * pad
        first_row, rows = strip.item
        for row in range(rows):
            for col in range(strip.shard.tile_cols):
                top, left = row * geometry.rows, col * geometry.cols
                valid = counts = pixels.valid[top : top + height, left : left + width]
                inner = geometry.inner(first_row + row, strip.shard.tile_col + col)
                if self.wanted is not None and valid.any():
                    counts = valid & self.wanted(strip.shard.grid, inner.expand(pad))
                if not self.needs(counts, geometry):
                    yield None
                    continue
                # A copy: the strip may go as soon as its tiles are submitted.
                inner_valid = counts[pad : pad + geometry.rows, pad : pad + geometry.cols].copy()
                yield Block(
                    pixels.values[:, top : top + height, left : left + width],
                    valid.astype(np.uint8),  # the host makes one plane per band of it
                    inner,
                    Tile(first_row + row, strip.shard.tile_col + col, inner, inner_valid),
                )


@dataclass
class Counters:
    """What a run of the engine did, for the log and the manifest.

    ``batch_reductions`` are changes to a smaller batch because memory ran out (``tasks.infer.batches``);
    ``seconds_waiting_for_host`` is the time in which the engine had nothing to do but wait for the function.
    """

    shards: int = 0
    shards_found: int = 0
    tiles: int = 0
    tiles_empty: int = 0
    retries: int = 0
    batch_reductions: int = 0
    bytes_written: int = 0
    seconds_waiting_for_host: float = 0.0


Progress = Callable[[int, int], None]


def run_shards(
    shards: Sequence[Shard],
    sources: Mapping[int, Source],
    host: Host,
    operator: Operator[State],
    sink: Sink,
    *,
    geometry: TileGeometry,
    cutter: Cutter | None = None,
    progress: Progress | None = None,
    read_threads: int = 2,
    strips_ahead: int = 3,
    tiles_in_flight: int = 3,
    counters: Counters | None = None,
) -> Counters:
    """Compute the shards whose results are not in the store yet.

    Args:
        shards: in any order: results do not depend on it, and a source with bands sets its own.
        sources: grids and readers, by the shards' grid number.
        host: runs the inference function.
        operator: makes a shard's result of the tiles' results.
        sink: takes the results.
        geometry: tile sizes, as the function's configuration says.
        cutter: what the blocks are; tiles of that geometry by default.
        progress: called with (shards done, shards in all) after each shard.
        read_threads: threads that read imagery.
        strips_ahead: strips that are read before they are needed.
        tiles_in_flight: tiles handed to the host before the first of them is asked for.
        counters: are counted on, also where the run fails; new ones by default.

    Raises:
        RasterError, StoreError: after several attempts, where the cause could have passed.
        HostError: the function failed or returned what does not fit.
    """
    cutter = cutter or TileCutter(geometry, operator.needs)
    run = _Run(sources, host, operator, sink, cutter, counters if counters is not None else Counters())
    ordered = in_bands(shards, {number: source.band for number, source in sources.items()})
    strips = run.strips(ordered, progress)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="chipline-write") as writer,
        closing(prefetch(_StripReader(run.read), strips, threads=read_threads, depth=strips_ahead)) as ahead,
    ):
        run.loop(ahead, len(shards), writer, progress, tiles_in_flight)
    return run.counters


@dataclass(frozen=True)
class _StripReader:
    """Lets strips of several grids go through one prefetching stream."""

    read: Callable[[Strip], Pixels]


@dataclass
class _Work(Generic[State]):
    """A shard on its way."""

    shard: Shard
    state: State
    waiting: int = 0
    all_submitted: bool = False


@dataclass
class _Run(Generic[State]):
    sources: Mapping[int, Source]
    host: Host
    operator: Operator[State]
    sink: Sink
    cutter: Cutter
    counters: Counters
    flights: deque[tuple[int, _Work[State], Any]] = field(default_factory=deque)
    writes: deque[Future[int]] = field(default_factory=deque)

    def loop(
        self,
        ahead: Iterator[tuple[Strip, Pixels]],
        in_all: int,
        writer: ThreadPoolExecutor,
        progress: Progress | None,
        tiles_in_flight: int,
    ) -> None:
        work: _Work[State] | None = None

        def close_if_done(item: _Work[State]) -> None:
            if item.all_submitted and item.waiting == 0:
                self._write(item, writer, progress, in_all)

        for strip, pixels in ahead:
            if work is None:
                work = _Work(strip.shard, self.operator.begin(strip.shard))
            for ticket, tile in self._submit(strip, pixels):
                work.waiting += 1
                self.flights.append((ticket, work, tile))
                while len(self.flights) >= tiles_in_flight:
                    close_if_done(self._receive())
            if strip.last:
                work.all_submitted = True
                close_if_done(work)
                work = None
        while self.flights:
            close_if_done(self._receive())
        self._settle_writes(0)

    def strips(self, shards: Sequence[Shard], progress: Progress | None) -> Iterator[Strip]:
        for shard in shards:
            if self._again(lambda shard=shard: self.sink.exists(shard)):  # type: ignore[misc]
                self.counters.shards_found += 1
                if progress is not None:
                    progress(self.counters.shards + self.counters.shards_found, len(shards))
                continue
            yield from self.cutter.strips(shard, self.sources[shard.grid])

    def read(self, strip: Strip) -> Pixels:
        source = self.sources[strip.shard.grid]
        if not source.remote:
            return self.cutter.read(strip, source)  # what a local file cannot give now, it never will
        pixels: Pixels = self._again(lambda: self.cutter.read(strip, source))
        return pixels

    def _submit(self, strip: Strip, pixels: Pixels) -> Iterator[tuple[int, Any]]:
        source = self.sources[strip.shard.grid]
        for block in self.cutter.blocks(strip, pixels, source):
            if block is None:
                self.counters.tiles_empty += 1
                continue
            ticket = self.host.submit(
                self.operator.operation,
                block.pixels,
                block.mask,
                tlc=(block.inner.col, block.inner.row),
                shape=block.inner.shape,
                props={**source.props, "extent": source.grid.window_bounds(block.inner)},
            )
            self.counters.tiles += 1
            yield ticket, block.tile

    def _receive(self) -> _Work[State]:
        ticket, work, tile = self.flights.popleft()
        started = time.perf_counter()
        result = self.host.result(ticket)
        self.counters.seconds_waiting_for_host += time.perf_counter() - started
        self.operator.accept(work.state, tile, result)
        work.waiting -= 1
        return work

    def _write(
        self, work: _Work[State], writer: ThreadPoolExecutor, progress: Progress | None, in_all: int
    ) -> None:
        def write() -> int:
            data = self.operator.finish(work.state)
            self._again(lambda: self.sink.put(work.shard, data))
            self.counters.shards += 1
            if progress is not None:
                progress(self.counters.shards + self.counters.shards_found, in_all)
            return len(data)

        self._settle_writes(WRITES_WAITING - 1)
        self.writes.append(writer.submit(write))

    def _settle_writes(self, leave: int) -> None:
        while len(self.writes) > leave:
            self.counters.bytes_written += self.writes.popleft().result()

    def _again(self, action: Callable[[], Any]) -> Any:
        """The result of ``action``, tried again with growing delays where the cause can pass."""
        delay = FIRST_DELAY_S
        for _ in range(ATTEMPTS - 1):
            try:
                return action()
            except ChiplineError as error:
                if not can_pass(error):
                    raise
            self.counters.retries += 1
            time.sleep(delay)
            delay *= 2
        return action()


def can_pass(error: BaseException) -> bool:
    """Whether the cause of an error may be gone at the next attempt: the network's or the store's."""
    return isinstance(error, StoreError | RasterError) and not isinstance(error, NotFoundError)
