"""How a plan's shards are cut into parts, each of which one run of a worker computes."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from math import ceil

from tasks.infer.parameters import InferenceTool, parts_at_once
from tasks.infer.planned import Processor
from tasks.infer.shards import Shard, TileGeometry, split_parts

# Another worker may come, so that even a single one leaves a part for it.
FEWEST_WORKERS = 2
# Of what is left, in percent, that a round of parts hands out.
SHARE_OF_ROUND = 70
# Pixels that are worth the start of a part (some seconds: a process, imports, the network) and of a part at
# most. Two cores compute about 1 Mpx/s, a GPU some hundred.
_MEGAPIXEL = 1_000_000
LEAST_PIXELS: dict[Processor, int] = {"CPU": 8 * _MEGAPIXEL, "GPU": 64 * _MEGAPIXEL}
MOST_PIXELS: dict[Processor, int] = {"CPU": 128 * _MEGAPIXEL, "GPU": 512 * _MEGAPIXEL}
# A shard of crops stands for as many pixels as one of tiles has by default.
_PIXELS_OF_CROPS = 2048 * 2048


def plan_parts(
    parameters: InferenceTool,
    shards: Sequence[Shard],
    geometry: TileGeometry,
    *,
    processor: Processor,
    workers: int,
    crops: bool,
) -> list[tuple[int, int]]:
    """The parts (start, stop) over ``shards``: as asked for, or as suits the device and its workers.

    Args:
        parameters: ``shards_per_part`` and ``parallel_processing_factor``.
        geometry: of the shards' tiles.
        processor: what computes them.
        workers: that are there for parts; 0 where nobody knows.
        crops: whether the shards are of crops around features.
    """
    count, at_once = len(shards), parts_at_once(parameters.parallel_processing_factor)
    if count == 0:
        return []
    if parameters.shards_per_part is not None:
        # Each of the parts that run at the same time has something to do.
        share = count if at_once is None else -(-count // at_once)
        return split_parts(count, min(parameters.shards_per_part, share))
    tile = geometry.rows * geometry.cols  # computed whole, also where it reaches beyond the imagery
    return cut_parts(
        [_PIXELS_OF_CROPS if crops else shard.tile_rows * shard.tile_cols * tile for shard in shards],
        workers=max(workers, FEWEST_WORKERS) if at_once is None else at_once,
        least=LEAST_PIXELS[processor],
        most=MOST_PIXELS[processor],
    )


def cut_parts(work: Sequence[int], *, workers: int, least: int, most: int) -> list[tuple[int, int]]:
    """Contiguous runs (start, stop) over shards, long ones first, so that nobody idles at the end.

    In rounds of one part per worker (factoring: Hummel, Schonberg and Flynn, Communications of the ACM
    35(8), 1992): each round hands out ``SHARE_OF_ROUND`` of what is left, in equal parts, and the last one
    all of it. Whoever was slower in a long round, or came later, makes up for it in the short ones; and few
    parts have to start.

    Args:
        work: of each shard.
        workers: that take parts at the same time.
        least: work that is worth the start of a part, more or less.
        most: work of a part at most, but for the size of a shard.
    """
    done = list(itertools.accumulate(work))
    parts: list[tuple[int, int]] = []
    stop = 0
    while stop < len(done):
        before = done[stop - 1] if stop else 0
        left = done[-1] - before
        if 2 * left <= 3 * workers * least:
            number = ceil(left / min(most, max(left / workers, least / 2)))
            share = left / number
        else:
            number, share = workers, min(most, left * SHARE_OF_ROUND / 100 / workers)
        for turn in range(1, number + 1):
            start, stop = stop, _stop(done, stop, before + turn * share)
            if start < stop:
                parts.append((start, stop))
    return parts


def _stop(done: Sequence[int], start: int, target: float) -> int:
    """Where a part ends that begins at ``start``, so that the work done by then comes next to ``target``."""
    after = bisect_left(done, target, min(start, len(done)))
    stop = after + 1
    if after and target - done[after - 1] < done[min(after, len(done) - 1)] - target:
        stop = after  # the border before it is nearer
    return min(max(stop, start + 1), len(done))
