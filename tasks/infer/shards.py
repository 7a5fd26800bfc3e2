"""Tiles, shards and parts: how a target grid is cut into work, and the keys of the results.

Tile steps are anchored to the origin of the target grid, so that a tile's place depends neither on the
extent that is computed nor on the shard size. A shard is a rectangle of whole tile steps and one object in
the store; its key is the hash of all that decides its content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from tasks.errors import NotFoundError, PreconditionFailedError, StoreError
from tasks.imagery import Window
from tasks.store import ObjectStore, join

# Bumped by hand whenever the engine, the operators or the reconciliation change a shard's content.
SEMANTICS_VERSION = 4


class TileGeometry(BaseModel):
    """Sizes in pixels of what an inference function takes and gives per call.

    Attributes:
        rows, cols: inner part of one super-tile (``ty``, ``tx``): the step between calls.
        padding: pixels around the inner part, on each side.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    cols: int
    padding: int

    def inner(self, tile_row: int, tile_col: int) -> Window:
        """Inner window of a tile on the grid; tiles at the far edges reach outside."""
        return Window(tile_row * self.rows, tile_col * self.cols, self.rows, self.cols)


class Shard(BaseModel):
    """One unit of results.

    Attributes:
        grid: number of its target grid in the plan.
        row, col: place among the grid's shards.
        tile_row, tile_col, tile_rows, tile_cols: rectangle of tiles.
        window: (row, col, rows, cols) on the grid that the shard writes: its tiles within the region.
        key: name of its result in the store.
    """

    model_config = ConfigDict(frozen=True)

    grid: int
    row: int
    col: int
    tile_row: int
    tile_col: int
    tile_rows: int
    tile_cols: int
    window: tuple[int, int, int, int]
    key: str

    @property
    def target(self) -> Window:
        """``window`` as a Window."""
        return Window(*self.window)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """(row, col) of its tiles on the grid, row by row."""
        for row in range(self.tile_row, self.tile_row + self.tile_rows):
            for col in range(self.tile_col, self.tile_col + self.tile_cols):
                yield row, col


@dataclass(frozen=True)
class Footprint:
    """Where one raster lies on a grid, and its identity."""

    window: Window
    identity: str


def tiles_per_shard(step: int, block: int, target: int) -> int:
    """Number of tile steps along one axis of a shard.

    Near ``target`` pixels; among the counts within a quarter of it, the one whose edge comes closest to a
    whole number of the source's blocks, so that a block is decoded for one shard and not for two.
    """
    lowest = max(1, -(-3 * target // (4 * step)))
    highest = max(lowest, 5 * target // (4 * step))
    # A block larger than a shard (a striped file's rows) gives no edge to aim at.
    aligned = 1 if block > highest * step else block

    def cost(count: int) -> tuple[int, int]:
        rest = (count * step) % aligned
        return min(rest, aligned - rest), abs(count * step - target)

    return min(range(lowest, highest + 1), key=cost)


def plan_shards(
    *,
    grid: int,
    region: Window,
    geometry: TileGeometry,
    tiles: tuple[int, int],
    footprints: Sequence[Footprint],
    base_key: str,
    after: Sequence[Footprint] | None = None,
    grid_window: Window | None = None,
    margin: int = 0,
) -> list[Shard]:
    """The shards of one grid that hold imagery, in (row, col) order, with their keys.

    Args:
        grid: number of the grid, for the records only: it is not part of a key.
        region: what is computed, within the grid.
        geometry: tile sizes.
        tiles: (rows, cols) of tiles per shard.
        footprints: of all rasters on this grid, in the collection's order.
        base_key: hash of all that the shards have in common.
        after: of the rasters of a second date, where a shard needs imagery of both; None: there is none.
        grid_window: the whole grid; the region by default.
        margin: pixels that a tile contributes beyond its inner part. Along the region's edge a shard also
            computes the grid's tiles beyond it that reach in, so that an extent changes no pixel.
    """
    everything = region if grid_window is None else grid_window
    shard_rows, shard_cols = tiles[0] * geometry.rows, tiles[1] * geometry.cols
    holds: set[tuple[int, int]] = set()
    holds_after: set[tuple[int, int]] = set()
    touches: dict[tuple[int, int], list[str]] = {}
    for footprint in footprints:
        # A raster within the halo decides pixels too, but a shard is made only where imagery lies.
        holds.update(_cells(footprint.window.intersection(region), shard_rows, shard_cols))
        for cell in _cells(footprint.window.expand(geometry.padding + margin), shard_rows, shard_cols):
            touches.setdefault(cell, []).append(footprint.identity)
    for footprint in after or ():
        holds_after.update(_cells(footprint.window.intersection(region), shard_rows, shard_cols))
        for cell in _cells(footprint.window.expand(geometry.padding + margin), shard_rows, shard_cols):
            touches.setdefault(cell, []).append(footprint.identity)
    if after is not None:
        holds &= holds_after
    shards = []
    for row, col in sorted(holds):
        whole = Window(row * shard_rows, col * shard_cols, shard_rows, shard_cols)
        window = whole.intersection(region)
        reach = window.expand(margin).intersection(everything)
        first_row, last_row = _tile_range(
            (window.row, window.row_stop),
            (reach.row, reach.row_stop),
            (region.row, region.row_stop),
            geometry.rows,
        )
        first_col, last_col = _tile_range(
            (window.col, window.col_stop),
            (reach.col, reach.col_stop),
            (region.col, region.col_stop),
            geometry.cols,
        )
        place = (window.row, window.col, window.rows, window.cols)
        shards.append(
            Shard(
                grid=grid,
                row=row,
                col=col,
                tile_row=first_row,
                tile_col=first_col,
                tile_rows=last_row - first_row + 1,
                tile_cols=last_col - first_col + 1,
                window=place,
                key=_digest(base_key, *map(str, (row, col, *place)), *touches[row, col]),
            )
        )
    return shards


def _tile_range(
    window: tuple[int, int], reach: tuple[int, int], region: tuple[int, int], step: int
) -> tuple[int, int]:
    """First and last tile along one axis; ``reach`` counts only where the shard lies at the region's edge."""
    start = reach[0] if window[0] == region[0] else window[0]
    stop = reach[1] if window[1] == region[1] else window[1]
    return start // step, (stop - 1) // step


def split_parts(count: int, per_part: int) -> list[tuple[int, int]]:
    """Contiguous runs (start, stop) over ``count`` shards, of nearly equal length, at most ``per_part``."""
    if count == 0:
        return []
    parts = -(-count // per_part)
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def _cells(window: Window, rows: int, cols: int) -> Iterator[tuple[int, int]]:
    if window.is_empty:
        return
    for row in range(window.row // rows, (window.row_stop - 1) // rows + 1):
        for col in range(window.col // cols, (window.col_stop - 1) // cols + 1):
            yield row, col


def _digest(*parts: str) -> str:
    # A separator that no part holds: ("ab", "c") and ("a", "bc") must differ.
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


class ShardStore:
    """Results of shards in the store, under ``shards/<shard key>``."""

    def __init__(self, store: ObjectStore, root: str) -> None:
        self._store = store
        self._prefix = join(root, "shards")

    def uri(self, shard: Shard) -> str:
        """Where the shard's result lies, or will lie."""
        return join(self._prefix, shard.key)

    def exists(self, shard: Shard) -> bool:
        """Whether the result is there already."""
        return self._store.exists(self.uri(shard))

    def put(self, shard: Shard, data: bytes) -> bool:
        """Store a result; False when another worker stored it first (whose object then stays)."""
        try:
            self._store.put(self.uri(shard), data, if_none_match=True)
        except PreconditionFailedError:
            return False
        return True

    def get(self, shard: Shard) -> bytes:
        """A stored result.

        Raises:
            StoreError: the result is gone, or the store cannot be reached.
        """
        try:
            return self._store.get(self.uri(shard))
        except NotFoundError as error:
            raise StoreError(
                f"The result of shard ({shard.row}, {shard.col}) of grid {shard.grid} is not in the store.",
                "Start the run again: it computes what is missing.",
            ) from error
