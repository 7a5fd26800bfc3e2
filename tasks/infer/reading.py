"""In which order a part's shards are read, and how many decoded blocks are kept meanwhile.

A shard reads the edges of its neighbours, too: its halo. GDAL keeps decoded blocks until its cache is full
and then drops the oldest, so that a block which two rows of shards share is decoded once only if all that is
read in between fits. The cache is therefore made for a few shards side by side, and a part goes through its
shards in bands of so many columns: what is kept follows from the size of a shard, not from the width of the
raster. Only the blocks along a band's sides are fetched twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.imagery import GridReader
from tasks.infer.shards import Shard, TileGeometry

# Of the columns of blocks in a band, those that its neighbours decode, too.
_MOST_TWICE = 0.1
_WIDEST_BAND = 16
LEAST_CACHE_BYTES = 64 * 2**20


def fit_cache(readers: Sequence[GridReader], shards: Sequence[Shard], geometry: TileGeometry) -> int:
    """Let the readers of one grid keep the blocks of as many shards side by side as the answer says.

    Returns:
        Columns of shards in a band; 0 where the blocks' memory does not follow from a shard's size: then the
        readers' cache stays as large as it may be, and shards go in the order given.
    """
    padding = 2 * geometry.padding
    rows = max(shard.tile_rows for shard in shards) * geometry.rows + padding
    cols = max(shard.tile_cols for shard in shards) * geometry.cols + padding
    needed = block = 0
    for reader in readers:
        found = reader.bytes_of_blocks((rows, cols))
        if found is None:
            return 0
        needed += found
        block = max(block, *(info.block_shape[1] for info in reader.infos))
    # One cache serves the whole process: what any reader allows, all of them share.
    most = min(reader.cache_bytes for reader in readers)
    wide = max(shard.col for shard in shards) - min(shard.col for shard in shards) + 1
    band = min(_band(cols - padding, block, geometry.padding), wide, max(1, most // needed))
    for reader in readers:
        reader.cache_bytes = min(max(LEAST_CACHE_BYTES, band * needed), most)
    return band


def _band(cols: int, block: int, padding: int) -> int:
    """The fewest shards of ``cols`` px side by side that share few enough blocks of ``block`` px."""
    for band in range(1, _WIDEST_BAND):
        # An edge within a block shares that one, an edge between two blocks shares both.
        edges = [number * band * cols for number in range(1, 17)]
        shared = [(edge + padding - 1) // block - (edge - padding) // block + 1 for edge in edges]
        if sum(shared) / len(shared) <= _MOST_TWICE * band * cols / block:
            return band
    return _WIDEST_BAND


def in_bands(shards: Sequence[Shard], bands: Mapping[int, int]) -> list[Shard]:
    """The shards, band by band and in each of them row by row.

    Args:
        shards: of one or several grids.
        bands: columns of shards in a band, by the grid's number; 0: as given.
    """

    def place(position: int) -> tuple[int, int, int, int]:
        shard = shards[position]
        band = bands[shard.grid]
        return (shard.grid, shard.col // band, shard.row, shard.col) if band else (shard.grid, 0, 0, position)

    return [shards[position] for position in sorted(range(len(shards)), key=place)]
