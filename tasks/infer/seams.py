"""Shards of scores become one raster: strips that several shards share are added up and decided."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tasks.errors import StoreError
from tasks.imagery import Window
from tasks.infer.blending import Side, pieces_of
from tasks.infer.operators import PixelFormat
from tasks.infer.scores import Decided, Scoring, arrays_from_bytes, arrays_to_bytes, decide
from tasks.infer.shards import Shard


def decided_blocks(
    results: Iterable[tuple[Shard, bytes]],
    shards: Sequence[Shard],
    region: Window,
    scoring: Scoring,
    form: PixelFormat,
    folder: Path | None = None,
) -> Iterator[tuple[Window, Decided]]:
    """Windows on the grid that together make up the output, each once.

    What waits for a shard of the next row lies compressed on the disk, so that memory follows the size of a
    shard alone.

    Args:
        results: of all shards of one grid in (row, col) order.
        shards: the same shards.
        region: what is computed.
        scoring, form: of the plan.
        folder: for what waits; the system's folder for temporary files by default.

    Raises:
        StoreError: a shard's result does not hold what the plan says.
    """
    there = {(shard.row, shard.col) for shard in shards}
    with tempfile.TemporaryDirectory(prefix="strips-", dir=folder) as waiting:
        yield from _joined(results, there, Path(waiting), region, scoring, form)


def _joined(
    results: Iterable[tuple[Shard, bytes]],
    there: set[tuple[int, int]],
    waiting: Path,
    region: Window,
    scoring: Scoring,
    form: PixelFormat,
) -> Iterator[tuple[Window, Decided]]:
    counts: dict[tuple[int, int], int] = {}
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
            count, kept = counts.pop(key, 0), waiting / f"{place.row}-{place.col}"
            if count:
                planes = planes + arrays_from_bytes(kept.read_bytes())["sums"]
            if count + 1 < _contributors(shard, side, there):
                counts[key] = count + 1
                kept.write_bytes(arrays_to_bytes({"sums": planes}))
            else:
                kept.unlink(missing_ok=True)
                yield place, decide(planes, scoring, form.dtype, form.nodata)


def _contributors(shard: Shard, side: tuple[Side, Side], there: set[tuple[int, int]]) -> int:
    """How many shards share the piece that lies on this side."""
    rows, cols = {shard.row, shard.row + side[0]}, {shard.col, shard.col + side[1]}
    return sum((row, col) in there for row in rows for col in cols)
