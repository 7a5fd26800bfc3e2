"""How shards are cut into parts: few that start, and nobody idle at the end."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import pytest

from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.parts import LEAST_PIXELS, MOST_PIXELS, cut_parts, plan_parts
from tasks.infer.planned import Processor
from tasks.infer.shards import Shard, TileGeometry, split_parts


def lasts(parts: list[tuple[int, int]], seconds: list[float], start: float) -> float:
    """Until all parts are done, where worker n takes ``seconds[n]`` per shard and ``start`` per part."""
    workers = [(0.0, number) for number in range(len(seconds))]
    for begin, end in parts:  # whoever is free first takes the next one
        free, number = heapq.heappop(workers)
        heapq.heappush(workers, (free + start + (end - begin) * seconds[number], number))
    return max(workers)[0]


def shards(count: int) -> list[Shard]:
    return [
        Shard(
            grid=0,
            row=0,
            col=number,
            tile_row=0,
            tile_col=number,
            tile_rows=1,
            tile_cols=1,
            window=(0, number * 64, 64, 64),  # each is one tile; less may lie within the imagery
            key=f"key {number}",
        )
        for number in range(count)
    ]


def planned(
    count: int, edge: int, *, workers: int = 0, processor: Processor = "CPU", **more: Any
) -> list[int]:
    values = {"input_raster": ["a.tif"], "model": "m.dlpk", "output_classified_raster": "c", **more}
    parameters = ClassifyPixelsParameters.model_validate(values)
    parts = plan_parts(
        parameters,
        shards(count),
        TileGeometry(rows=edge, cols=edge, padding=0),
        processor=processor,
        workers=workers,
        crops=False,
    )
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])][: len(parts)]
    assert sum(stop - start for start, stop in parts) == count
    return [stop - start for start, stop in parts]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 36, 121, 400, 2401])
@pytest.mark.parametrize("workers", [1, 2, 3, 8, 64])
def test_parts_are_contiguous_and_grow_shorter(count: int, workers: int) -> None:
    parts = cut_parts([1] * count, workers=workers, least=4, most=32)
    assert [number for start, stop in parts for number in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in parts]
    assert all(size <= 32 for size in sizes)
    assert all(later <= size + 1 for size, later in itertools.pairwise(sizes))


@pytest.mark.parametrize("count", [64, 121, 400, 2401])
@pytest.mark.parametrize("slower", [1.0, 1.3])
def test_workers_end_together_though_one_is_slower_and_few_parts_start(count: int, slower: float) -> None:
    parts = cut_parts([1] * count, workers=2, least=4, most=64)
    seconds, start = [1.0, slower], 2.0
    ideal = count / sum(1 / one for one in seconds)
    assert lasts(parts, seconds, start) < 1.05 * (ideal + start * len(parts) / 2) + 4 * slower
    # As short as the shortest ones throughout, more of them would start than it is worth.
    assert lasts(parts, seconds, start) < lasts(split_parts(count, 4), seconds, start)


def test_parts_of_a_round_are_as_long_where_shards_are_not() -> None:
    row = [4] * 9 + [2]  # at the edge of the imagery a shard has fewer tiles
    work = row * 9 + [2] * 9 + [1]
    parts = cut_parts(work, workers=2, least=28, most=1000)
    sizes = [sum(work[start:stop]) for start, stop in parts]
    assert len(sizes) == 6
    assert all(abs(one - other) <= 4 for one, other in zip(sizes[::2], sizes[1::2], strict=True))
    # A shard that is more than a part still is one.
    assert cut_parts([1000, 1, 1, 1000], workers=2, least=1, most=10) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_part_is_as_long_as_suits_the_device() -> None:
    edge = 2048
    for processor in ("CPU", "GPU"):
        sizes = planned(2401, edge, workers=4, processor=processor)
        assert sizes[0] == round(MOST_PIXELS[processor] / edge**2)
        assert LEAST_PIXELS[processor] / 2 < sizes[-1] * edge**2 < 2 * LEAST_PIXELS[processor]
    # Smaller shards, more of them.
    assert planned(4 * 400, 1024, workers=2)[0] == pytest.approx(4 * planned(400, edge, workers=2)[0], abs=4)


def test_little_work_is_one_part_and_a_lone_worker_leaves_some_for_another() -> None:
    assert planned(9, 256, workers=8) == [9]
    assert planned(4, 2048, workers=1) == planned(4, 2048, workers=0) == planned(4, 2048, workers=2) == [2, 2]


def test_what_the_person_asked_for_counts() -> None:
    assert planned(40, 2048, workers=8, shards_per_part=20) == [20, 20]
    assert planned(40, 2048, workers=8, shards_per_part=20, parallel_processing_factor="4") == [10] * 4
    # Fewer at the same time than there are workers.
    assert planned(4, 2048, workers=8, parallel_processing_factor="2") == [2, 2]
