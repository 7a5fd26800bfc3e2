"""The one loop: results do not depend on how work is cut, and equal the function on the whole array."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from tasks.errors import HostError, NotFoundError, RasterError, StoreError
from tasks.imagery import Window
from tasks.infer import engine
from tasks.infer.operators import PixelFormat, PixelOperator, read_pixels
from tasks.infer.shards import TileGeometry

RADIUS = 3
GEOMETRY = TileGeometry(rows=32, cols=24, padding=5)
FORMAT = PixelFormat("uint8", 0.0)


def classes_of(pixels: Any, mask: Any) -> Any:
    """A local filter that reaches RADIUS pixels far: 1 or 2 by the mean around a pixel."""
    assert mask.dtype == np.uint8
    assert not pixels[:, mask == 0].any(), "pixels outside are handed over as zero"
    pad = GEOMETRY.padding
    return whole(pixels)[None, pad:-pad, pad:-pad].astype(np.int32)


def whole(array: Any) -> Any:
    total = array.astype(np.int64).sum(axis=0)
    window = np.ones(2 * RADIUS + 1, np.int64)
    for axis in (0, 1):  # whole numbers: exact, however the array is cut
        total = ndimage.correlate1d(total, window, axis=axis, mode="constant")
    return np.where(total > 250 * len(window) ** 2, 2, 1).astype(np.uint8)


def assembled(shards: Any, sink: Any, shape: tuple[int, int]) -> Any:
    result = np.zeros(shape, np.uint8)
    for shard in shards:
        result[shard.target.slices_in(Window(0, 0, *shape))] = read_pixels(sink.results[shard.key])
    return result


@pytest.mark.parametrize("tiles", [(1, 1), (2, 3), (3, 2), (100, 100)])
@pytest.mark.parametrize("cuts", [1, 3])
def test_pixels_equal_the_filter_on_the_whole_array(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any, tiles: tuple[int, int], cuts: int
) -> None:
    scene, sink = make_scene(noise, cuts=cuts), memory_sink()
    shards = scene.shards(GEOMETRY, tiles)
    scene.run(shards, fake_host(classes_of), PixelOperator(GEOMETRY, FORMAT), sink, GEOMETRY)
    result = assembled(shards, sink, noise.shape[1:])
    assert len(np.unique(result)) == 2
    np.testing.assert_array_equal(result, whole(noise))


def test_order_parts_and_strips_change_nothing(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, operator = make_scene(noise), PixelOperator(GEOMETRY, FORMAT)
    shards = scene.shards(GEOMETRY, (3, 2))
    straight, shuffled = memory_sink(), memory_sink()
    scene.run(shards, fake_host(classes_of), operator, straight, GEOMETRY)
    other = list(shards)
    random.Random(1).shuffle(other)
    monkeypatch.setattr(engine, "STRIP_BYTES", 1)  # one row of tiles per read
    for start in range(0, len(other), 4):
        scene.run(other[start : start + 4], fake_host(classes_of), operator, shuffled, GEOMETRY)
    assert len(shards) > 8
    assert straight.results == shuffled.results


def test_an_extent_changes_no_pixel_inside(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any
) -> None:
    scene, sink = make_scene(noise), memory_sink()
    region = Window(41, 33, 90, 77)
    shards = scene.shards(GEOMETRY, (2, 2), region)
    scene.run(shards, fake_host(classes_of), PixelOperator(GEOMETRY, FORMAT), sink, GEOMETRY)
    result = assembled(shards, sink, noise.shape[1:])
    inside = region.slices_in(Window(0, 0, *noise.shape[1:]))
    np.testing.assert_array_equal(result[inside], whole(noise)[inside])
    result[inside] = 0
    assert not result.any()


def test_nodata_stays_nodata_and_empty_tiles_are_not_computed(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any
) -> None:
    array = noise.copy()
    array[:, 60:140, 50:130] = 0
    scene, sink, host = make_scene(array, nodata=0), memory_sink(), fake_host(classes_of)
    shards = scene.shards(GEOMETRY, (2, 2))
    counters = scene.run(shards, host, PixelOperator(GEOMETRY, FORMAT), sink, GEOMETRY)
    result = assembled(shards, sink, array.shape[1:])
    expected = np.where((array != 0).any(axis=0), whole(array), 0)
    np.testing.assert_array_equal(result, expected)
    assert counters.tiles_empty > 0
    assert counters.tiles + counters.tiles_empty == 7 * 8


def test_several_tiles_are_in_flight_and_the_ring_is_never_overfilled(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any
) -> None:
    scene, host = make_scene(noise), fake_host(classes_of)
    shards = scene.shards(GEOMETRY, (1, 1))
    scene.run(shards, host, PixelOperator(GEOMETRY, FORMAT), memory_sink(), GEOMETRY, tiles_in_flight=3)
    assert host.most_in_flight == 3  # although every shard is one tile: the stream crosses their borders


def test_what_is_in_the_store_is_not_computed_again(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any
) -> None:
    scene, sink, operator = make_scene(noise), memory_sink(), PixelOperator(GEOMETRY, FORMAT)
    shards = scene.shards(GEOMETRY, (2, 2))
    scene.run(shards, fake_host(classes_of), operator, sink, GEOMETRY)
    complete = dict(sink.results)
    for shard in shards[1:4]:
        del sink.results[shard.key]
    host, seen = fake_host(classes_of), []
    counters = scene.run(
        shards, host, operator, sink, GEOMETRY, progress=lambda done, total: seen.append((done, total))
    )
    assert sink.results == complete
    assert (counters.shards, counters.shards_found) == (3, len(shards) - 3)
    assert host.calls == 3 * 4
    assert seen[-1] == (len(shards), len(shards))


def test_a_tile_that_fails_ends_the_run_and_stores_nothing_of_its_shard(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any
) -> None:
    scene, sink = make_scene(noise), memory_sink()
    shards = scene.shards(GEOMETRY, (2, 2))
    calls = 0

    def failing(pixels: Any, mask: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise HostError("The function failed.", "Mend it.")
        return classes_of(pixels, mask)

    threads = threading.active_count()
    with pytest.raises(HostError, match="The function failed"):
        scene.run(shards, fake_host(failing), PixelOperator(GEOMETRY, FORMAT), sink, GEOMETRY)
    assert set(sink.results) <= {shards[0].key}
    assert threading.active_count() == threads


def test_pixels_of_a_wrong_shape_are_refused(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any
) -> None:
    scene = make_scene(noise)
    host = fake_host(lambda _pixels, mask: mask[None].astype(np.int32))  # the padding was not removed
    with pytest.raises(HostError, match=r"\(1, 42, 34\)"):
        scene.run(
            scene.shards(GEOMETRY, (1, 1)), host, PixelOperator(GEOMETRY, FORMAT), memory_sink(), GEOMETRY
        )


def test_values_that_the_output_cannot_hold_are_refused_and_not_wrapped(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any
) -> None:
    scene = make_scene(noise)
    host = fake_host(lambda pixels, mask: classes_of(pixels, mask) + 255)
    with pytest.raises(HostError, match="from 256 to 257"):
        scene.run(
            scene.shards(GEOMETRY, (100, 100)), host, PixelOperator(GEOMETRY, FORMAT), memory_sink(), GEOMETRY
        )


def test_a_store_that_stumbles_is_tried_again_and_a_missing_object_is_not(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FIRST_DELAY_S", 0.0)
    scene, sink = make_scene(noise), memory_sink()
    shards = scene.shards(GEOMETRY, (100, 100))
    operator = PixelOperator(GEOMETRY, FORMAT)
    put, failures = sink.put, [StoreError("gone", "wait")] * 2

    def stumbling(shard: Any, data: bytes) -> bool:
        if failures:
            raise failures.pop()
        return bool(put(shard, data))

    sink.put = stumbling
    counters = scene.run(shards, fake_host(classes_of), operator, sink, GEOMETRY)
    assert counters.retries == 2
    assert sink.exists(shards[0])

    failures = [StoreError("gone", "wait")] * engine.ATTEMPTS
    sink.results.clear()
    with pytest.raises(StoreError, match="gone"):
        scene.run(shards, fake_host(classes_of), operator, sink, GEOMETRY)
    assert not failures
    assert not sink.results


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (StoreError("a", "b"), True),
        (RasterError("a", "b"), True),
        (NotFoundError("a", "b"), False),
        (HostError("a", "b"), False),
        (ValueError("a"), False),
    ],
)
def test_only_causes_that_can_pass_are_tried_again(error: Exception, passes: bool) -> None:
    assert engine.can_pass(error) is passes
