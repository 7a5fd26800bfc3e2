"""Shards of scores become one raster: strips that several shards share are added up and decided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tasks.errors import StoreError
from tasks.imagery import Window
from tasks.infer.blending import Side, pieces_of
from tasks.infer.operators import PixelFormat
from tasks.infer.scores import Decided, Planes, Scoring, arrays_from_bytes, arrays_to_bytes, decide
from tasks.infer.shards import Shard


def decided_blocks(
    results: Iterable[tuple[Shard, bytes]],
    shards: Sequence[Shard],
    region: Window,
    scoring: Scoring,
    form: PixelFormat,
) -> Iterator[tuple[Window, Decided]]:
    """Windows on the grid that together make up the output, each once.

    What waits for a shard of the next row is kept compressed: memory grows with a row's borders, not with
    the raster's area.

    Args:
        results: of all shards of one grid in (row, col) order.
        shards: the same shards.
        region: what is computed.
        scoring, form: of the plan.

    Raises:
        StoreError: a shard's result does not hold what the plan says.
    """
    there = {(shard.row, shard.col) for shard in shards}
    waiting: dict[tuple[int, int], tuple[int, bytes]] = {}
    for shard, data in results:
        arrays = arrays_from_bytes(data)
        pieces = pieces_of(shard.target, region, scoring.margin)
        core = pieces.pop((0, 0), None)
        if core is not None:
            if arrays["classes"].shape != core.shape:
                raise StoreError(
                    f"The result of shard ({shard.row}, {shard.col}) has the shape "
                    f"{arrays['classes'].shape}, not {core.shape}.",
                    "Delete the object and start the run again: it computes what is missing.",
                )
            none = np.empty((0, *core.shape), np.uint8)
            yield core, Decided(arrays["classes"], arrays.get("top", none), arrays.get("probability", none))
        for side, place in pieces.items():
            planes = arrays[f"strip {side[0]} {side[1]}"]
            key = (place.row, place.col)
            count, kept = waiting.pop(key, (0, b""))
            if kept:
                planes = planes + arrays_from_bytes(kept)["sums"]
            if count + 1 < _contributors(shard, side, there):
                waiting[key] = (count + 1, arrays_to_bytes({"sums": planes}))
            else:
                yield place, _decided(planes, scoring, form)


def _contributors(shard: Shard, side: tuple[Side, Side], there: set[tuple[int, int]]) -> int:
    """How many shards share the piece that lies on this side."""
    rows, cols = {shard.row, shard.row + side[0]}, {shard.col, shard.col + side[1]}
    return sum((row, col) in there for row in rows for col in cols)


def _decided(planes: Planes, scoring: Scoring, form: PixelFormat) -> Decided:
    return decide(planes, scoring, form.dtype, form.nodata)
