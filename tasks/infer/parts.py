"""How a plan's shards are cut into parts, each of which one run of a worker computes."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.infer.parameters import InferenceTool, parts_at_once
from tasks.infer.planned import Processor
from tasks.infer.shards import Shard, split_parts

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
    *,
    processor: Processor,
    workers: int,
    crops: bool,
) -> list[tuple[int, int]]:
    """The parts (start, stop) over ``shards``: as asked for, or as suits the device and its workers.

    Args:
        parameters: ``shards_per_part`` and ``parallel_processing_factor``.
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
    pixels = sum(_PIXELS_OF_CROPS if crops else shard.window[2] * shard.window[3] for shard in shards) / count
    return cut_parts(
        count,
        workers=max(workers, FEWEST_WORKERS) if at_once is None else at_once,
        least=max(1, round(LEAST_PIXELS[processor] / pixels)),
        most=max(1, round(MOST_PIXELS[processor] / pixels)),
    )


def cut_parts(count: int, *, workers: int, least: int, most: int) -> list[tuple[int, int]]:
    """Contiguous runs (start, stop) over ``count`` shards, long ones first, so that nobody idles at the end.

    In rounds of one part per worker (factoring: Hummel, Schonberg and Flynn, Communications of the ACM
    35(8), 1992): each round hands out ``SHARE_OF_ROUND`` of what is left, in equal parts, and the last one
    all of it. Whoever was slower in a long round, or came later, makes up for it in the short ones; and few
    parts have to start.

    Args:
        count: shards in all.
        workers: that take parts at the same time.
        least: shards that are worth the start of a part, more or less.
        most: shards of a part at most.
    """
    parts: list[tuple[int, int]] = []
    start = 0
    while (left := count - start) > 0:
        if 2 * left <= 3 * workers * least:
            last = split_parts(left, min(most, max(-(-left // workers), -(-least // 2))))
            return parts + [(start + begin, start + end) for begin, end in last]
        share = min(most, -(-SHARE_OF_ROUND * left // (100 * workers)))
        for _ in range(workers):
            stop = min(start + share, count)
            if start < stop:
                parts.append((start, stop))
            start = stop
    return parts
