"""Scores through the engine: blended or trimmed, the same pixels however the work is cut."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tasks.errors import HostError
from tasks.imagery import Window
from tasks.infer.blending import ScoreOperator, pieces_of
from tasks.infer.operators import PixelFormat
from tasks.infer.scores import (
    WEIGHT,
    ChipHost,
    Decided,
    ScoreLayout,
    Scoring,
    arrays_from_bytes,
    arrays_to_bytes,
    blend_margin,
    quantised,
    ranked,
    weights,
)
from tasks.infer.seams import decided_blocks
from tasks.infer.shards import Footprint, Shard, TileGeometry, plan_shards

# Two by two chips of 32 x 28 px (inner parts 16 x 12) per super-tile.
GEOMETRY = TileGeometry(rows=32, cols=24, padding=8)
LAYOUT = ScoreLayout(values=[0, 1, 7], hidden=[], chip_rows=32, chip_cols=28, batch=4)
MARGIN = blend_margin(GEOMETRY, LAYOUT)
FORMAT = PixelFormat("uint8", 0.0)


@pytest.fixture
def noise(noise: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A corner of it: four by four super-tiles and a bit."""
    return noise[:, :140, :110].copy()


def local_scores(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Scores that look 2 px far: less than what every mixed-in pixel has as context."""
    total = pixels.astype(np.float64).sum(axis=-3)
    for axis in (-1, -2):
        total = ndimage.correlate1d(total, np.ones(5), axis=axis, mode="constant")
    level = total / 250 / 25 / pixels.shape[-3] * 2.2
    made = np.stack([np.exp(-((level - centre) ** 2) * 8) for centre in (0.4, 1.0, 1.6)], axis=-3)
    result: NDArray[np.float32] = (made / made.sum(axis=-3, keepdims=True)).astype(np.float32)
    return result


def uneasy_scores(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Scores that depend on the whole chip, as those of a network with global pooling do."""
    shift = pixels.astype(np.int64).sum(axis=(-1, -2, -3), keepdims=True) % 97 / 97
    made = local_scores(pixels) + 0.6 * np.stack([shift[:, 0], 1 - shift[:, 0], shift[:, 0] ** 2], axis=1)
    result: NDArray[np.float32] = (made / made.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


@dataclass
class ScoreHost:
    """Gives scores of batches of chips."""

    function: Any
    calls: int = 0
    waiting: deque[Any] = field(default_factory=deque)

    def submit(
        self,
        operation: str,
        pixels: NDArray[Any],
        mask: Any = None,
        *,
        tlc: tuple[float, float],
        shape: tuple[int, int],
        props: Mapping[str, Any],
    ) -> int:
        assert operation == "predict_scores"
        assert mask is None
        assert pixels.shape == (4, 2, LAYOUT.chip_rows, LAYOUT.chip_cols)
        assert len(tlc) == len(shape) == 2
        assert props["extent"]
        self.calls += 1
        self.waiting.append(self.function(pixels))
        return self.calls

    def result(self, _ticket: int) -> Any:
        return self.waiting.popleft()


def classified(
    scene: Any,
    sink: Any,
    function: Any,
    tiles: tuple[int, int],
    *,
    margin: int = MARGIN,
    kept: int = 0,
    region: Window | None = None,
    shuffled: bool = False,
    layout: ScoreLayout = LAYOUT,
) -> tuple[Decided, int]:
    """The whole output of a scene, and the number of calls."""
    region = region or scene.grid.window
    scoring = Scoring(layout=layout, margin=margin, kept=kept)
    shards = plan_shards(
        grid=0,
        region=region,
        geometry=GEOMETRY,
        tiles=tiles,
        footprints=[
            Footprint(scene.grid.window_of_bounds(info.bounds), info.identity) for info in scene.infos
        ],
        base_key="test",
        grid_window=scene.grid.window,
        margin=margin,
    )
    place = (region.row, region.col, region.rows, region.cols)
    operator = ScoreOperator(GEOMETRY, FORMAT, scoring, {0: place})
    host = ScoreHost(function)
    work: list[Shard] = list(shards)
    if shuffled:
        random.Random(4).shuffle(work)
    for start in range(0, len(work), 5):
        scene.run(work[start : start + 5], ChipHost(host, GEOMETRY, layout), operator, sink, GEOMETRY)
    whole = Decided.empty(scene.grid.shape, kept, FORMAT.dtype, FORMAT.nodata)
    covered = np.zeros(scene.grid.shape, int)
    results = ((shard, sink.results[shard.key]) for shard in shards)
    for window, made in decided_blocks(results, shards, region, scoring, FORMAT):
        where = window.slices_in(scene.grid.window)
        covered[where] += 1
        whole.classes[where] = made.classes
        whole.top[(slice(None), *where)] = made.top
        whole.probability[(slice(None), *where)] = made.probability
    assert covered.max() <= 1, "a pixel was given twice"
    if len(shards) == len(list(_cells(region, tiles))):
        inside = covered[region.slices_in(scene.grid.window)]
        assert inside.all(), "a pixel was not given"
    return whole, host.calls


def _cells(region: Window, tiles: tuple[int, int]) -> Any:
    rows, cols = tiles[0] * GEOMETRY.rows, tiles[1] * GEOMETRY.cols
    for row in range(region.row // rows, (region.row_stop - 1) // rows + 1):
        for col in range(region.col // cols, (region.col_stop - 1) // cols + 1):
            yield row, col


def same(one: Decided, other: Decided) -> None:
    np.testing.assert_array_equal(one.classes, other.classes)
    np.testing.assert_array_equal(one.top, other.top)
    np.testing.assert_array_equal(one.probability, other.probability)


@pytest.mark.parametrize("margin", [0, MARGIN])
def test_a_local_function_gives_what_it_gives_on_the_whole_array(
    make_scene: Any, memory_sink: Any, noise: Any, margin: int
) -> None:
    made, _ = classified(make_scene(noise), memory_sink(), local_scores, (2, 2), margin=margin, kept=3)
    scores = local_scores(noise)
    if margin:
        scores = quantised(scores).astype(np.float32)
    expected = np.array(LAYOUT.values)[scores.argmax(axis=0)]
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(made.classes, expected)
    np.testing.assert_array_equal(made.top[0], expected)
    best = -np.sort(-quantised(local_scores(noise)).astype(int), axis=0)
    np.testing.assert_array_equal(made.probability, best)


@pytest.mark.parametrize("margin", [0, MARGIN])
def test_shard_size_order_and_files_change_no_pixel(
    make_scene: Any, memory_sink: Any, noise: Any, margin: int
) -> None:
    array = noise.copy()
    array[:, 32:70, 24:76] = 0  # a hole without imagery, over whole super-tiles
    one, calls = classified(
        make_scene(array, nodata=0), memory_sink(), uneasy_scores, (100, 100), margin=margin, kept=2
    )
    assert (one.classes[35:65, 30:70] == 0).all()
    for tiles, cuts in (((1, 1), 1), ((2, 3), 3), ((3, 1), 2)):
        scene = make_scene(array, cuts=cuts, nodata=0)
        other, others = classified(
            scene, memory_sink(), uneasy_scores, tiles, margin=margin, kept=2, shuffled=True
        )
        same(one, other)
        assert others == calls, "no chip is computed twice"


@pytest.mark.parametrize(
    "region",
    [
        Window(41, 33, 70, 57),
        Window(32, 24, 64, 72),  # on borders of tiles
        Window(60, 44, 60, 30),  # starts and ends a few pixels from them
        Window(61, 45, 5, 4),
    ],
)
@pytest.mark.parametrize("tiles", [(1, 1), (2, 2)])
def test_an_extent_changes_no_pixel_inside(
    make_scene: Any, memory_sink: Any, noise: Any, region: Window, tiles: tuple[int, int]
) -> None:
    scene = make_scene(noise)
    whole, _ = classified(scene, memory_sink(), uneasy_scores, (2, 2))
    part, _ = classified(scene, memory_sink(), uneasy_scores, tiles, region=region)
    inside = region.slices_in(scene.grid.window)
    np.testing.assert_array_equal(part.classes[inside], whole.classes[inside])
    part.classes[inside] = 0
    assert not part.classes.any()


def test_blending_leaves_fewer_steps_at_the_borders_of_chips(
    make_scene: Any, memory_sink: Any, noise: Any
) -> None:
    def steps(made: Decided) -> float:
        """Mean step of the probability across chip borders, against that one pixel beside them."""
        surest = made.probability[0].astype(float)
        rows = np.arange(16, surest.shape[0] - 4, 16)
        return float(
            np.abs(surest[rows] - surest[rows - 1]).mean()
            / np.abs(surest[rows + 3] - surest[rows + 2]).mean()
        )

    scene = make_scene(noise)
    trimmed, _ = classified(scene, memory_sink(), uneasy_scores, (2, 2), margin=0, kept=1)
    blended, _ = classified(scene, memory_sink(), uneasy_scores, (2, 2), kept=1)
    assert steps(trimmed) > 2 * steps(blended)


def test_a_hidden_value_never_wins(make_scene: Any, memory_sink: Any, noise: Any) -> None:
    layout = LAYOUT.model_copy(update={"hidden": [0]})
    for margin in (0, MARGIN):
        made, _ = classified(
            make_scene(noise), memory_sink(), local_scores, (2, 2), margin=margin, layout=layout
        )
        assert set(np.unique(made.classes)) == {1, 7}


def test_logits_are_refused(make_scene: Any, memory_sink: Any, noise: Any) -> None:
    for margin in (0, MARGIN):
        with pytest.raises(HostError, match="probabilities from 0 to 1"):
            classified(
                make_scene(noise),
                memory_sink(),
                lambda pixels: 9 * local_scores(pixels),
                (2, 2),
                margin=margin,
            )


def test_weights_of_neighbours_make_the_whole_everywhere() -> None:
    for inner, margin in ((16, 4), (12, 6), (200, 32), (9, 1)):
        total = np.zeros(3 * inner + 2 * margin, int)
        for number in range(3):
            total[number * inner : (number + 1) * inner + 2 * margin] += weights(inner, margin)
        assert (total[2 * margin : 3 * inner] == WEIGHT).all()


def test_ranks_are_those_of_a_stable_sort() -> None:
    scores = np.random.default_rng(1).integers(0, 6, (5, 9, 8)).astype(np.int32)
    order = np.argsort(-scores, axis=0, kind="stable")[:3]
    expected = np.take_along_axis(scores, order, axis=0)
    places, found = ranked(scores.copy(), 3)
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(found, expected)


def test_pieces_of_a_shard_make_up_its_zone() -> None:
    region = Window(10, 0, 100, 90)
    for window in (
        Window(10, 0, 22, 24),
        Window(32, 24, 32, 24),
        Window(96, 72, 14, 18),
        Window(10, 0, 2, 3),
    ):
        pieces = pieces_of(window, region, 4)
        zone = window.expand(4).intersection(region)
        seen = np.zeros(zone.shape, int)
        for place in pieces.values():
            seen[place.slices_in(zone)] += 1
        assert (seen == 1).all()


def test_arrays_survive_their_bytes() -> None:
    arrays: dict[str, NDArray[Any]] = {"a": np.arange(6, dtype=np.uint16).reshape(2, 3)}
    arrays["empty"] = np.zeros((0, 4), np.uint8)
    data = arrays_to_bytes(arrays)
    assert data == arrays_to_bytes(arrays)
    found = arrays_from_bytes(data)
    assert list(found) == ["a", "empty"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert list(arrays_from_bytes(data, "e")) == ["empty"]
