"""Every object is reported exactly once and whole, however the work is cut."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imagery import Window
from tasks.infer.objects import Objects
from tasks.infer.operators import ObjectOperator
from tasks.infer.reconcile import reconciled
from tasks.infer.shards import Shard, TileGeometry
from tasks.labels.rings import polygon_of_rings

GEOMETRY = TileGeometry(rows=40, cols=32, padding=12)


@dataclass(frozen=True)
class Found:
    class_name: str
    confidence_raw: float
    rings: list[list[tuple[float, float]]]
    attributes: dict[str, Any] = field(default_factory=dict)


def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def blobs(image: NDArray[Any], shift: int) -> list[Found]:
    """One box per connected blob; class by its brightness, confidence by its size."""
    labels, count = ndimage.label(image > 0)
    found = []
    for number, (rows, cols) in enumerate(ndimage.find_objects(labels), start=1):
        value = int(image[rows, cols][labels[rows, cols] == number].max())
        outline = box(cols.start - shift, rows.start - shift, cols.stop - shift, rows.stop - shift)
        area = (rows.stop - rows.start) * (cols.stop - cols.start)
        found.append(Found("dark" if value < 128 else "bright", float(area), [outline]))
    assert len(found) == count
    return found


def detector(pixels: Any, _mask: Any) -> list[Found]:
    return blobs(pixels[0], GEOMETRY.padding)


def jittering_detector(seed: int) -> Any:
    """Each tile sees slightly another box, with another confidence: as real networks do."""

    def detect(pixels: Any, _mask: Any) -> list[Found]:
        generator = np.random.default_rng([seed, int(pixels.astype(np.int64).sum()), int(pixels[0, 0].sum())])
        result = []
        for item in detector(pixels, None):
            (x0, y0), _, (x1, y1), _ = item.rings[0]
            j = generator.uniform(-0.6, 0.6, 4)
            outline = box(x0 + j[0], y0 + j[1], x1 + j[2], y1 + j[3])
            result.append(Found(item.class_name, float(generator.random()), [outline]))
        return result

    return detect


@pytest.fixture
def dots() -> NDArray[np.uint8]:
    """Separate blobs of 5 to 12 px on a raster of 230 x 190 px, many of them on tile borders."""
    generator = np.random.default_rng(3)
    image = np.zeros((230, 190), np.uint8)
    for _ in range(4000):
        rows, cols = generator.integers(5, 12, 2)
        row, col = generator.integers(0, 230), generator.integers(0, 190)
        if not image[max(row - 1, 0) : row + rows + 1, max(col - 1, 0) : col + cols + 1].any():
            image[row : row + rows, col : col + cols] = generator.integers(1, 256)
    return image


def by_rows(shards: Sequence[Shard], results: dict[str, bytes]) -> Iterator[tuple[int, Objects]]:
    for row in sorted({shard.row for shard in shards}):
        here = [shard for shard in shards if shard.row == row]
        tables = [Objects.from_bytes(results[shard.key]) for shard in here]
        yield max(shard.tile_row + shard.tile_rows for shard in here), Objects.joined(tables)


def content(tables: Any) -> set[tuple[Any, ...]]:
    found = Objects.joined(list(tables))
    bounds = [tuple(map(float, item)) for item in shapely.bounds(found.geometry).reshape(-1, 4)]
    result = list(zip(found.class_name, map(float, found.confidence), bounds, strict=True))
    assert len(result) == len(set(result)), "an object is there twice"
    return set(result)


def detected(
    scene: Any, host: Any, sink: Any, tiles: tuple[int, int], *, shuffled: bool = False
) -> set[tuple[Any, ...]]:
    shards = scene.shards(GEOMETRY, tiles)
    work = list(shards)
    if shuffled:
        random.Random(5).shuffle(work)
    operator = ObjectOperator(GEOMETRY, {0: (0, 0, scene.grid.rows, scene.grid.cols)})
    for start in range(0, len(work), 5):
        scene.run(work[start : start + 5], host, operator, sink, GEOMETRY)
    return content(reconciled(by_rows(shards, sink.results), GEOMETRY))


@pytest.mark.parametrize("tiles", [(1, 1), (2, 3), (3, 1), (50, 50)])
@pytest.mark.parametrize("cuts", [1, 3])
def test_objects_equal_those_of_the_whole_array(
    make_scene: Any, fake_host: Any, memory_sink: Any, dots: Any, tiles: tuple[int, int], cuts: int
) -> None:
    expected = {
        (item.class_name, item.confidence_raw, (*item.rings[0][0], *item.rings[0][2]))
        for item in blobs(dots, 0)
    }
    assert len(expected) > 150
    scene = make_scene(dots[None], cuts=cuts)
    assert detected(scene, fake_host(detector), memory_sink(), tiles) == expected


@pytest.mark.parametrize("seed", range(3))
def test_tiles_that_disagree_still_report_each_object_once(
    make_scene: Any, fake_host: Any, memory_sink: Any, dots: Any, seed: int
) -> None:
    scene, detect = make_scene(dots[None]), jittering_detector(seed)
    reference = detected(scene, fake_host(detect), memory_sink(), (1, 1))
    truth = shapely.box(*np.array([[*b.rings[0][0], *b.rings[0][2]] for b in blobs(dots, 0)]).T)
    boxes = shapely.box(*np.array([bounds for _, _, bounds in reference]).T)
    # Which blob each reported box lies on: all of them, each once.
    tree = shapely.STRtree(truth)
    nearest = tree.nearest(shapely.centroid(boxes))
    assert sorted(nearest.tolist()) == list(range(len(truth)))
    # And the choice among the tiles' versions does not depend on how the work was cut.
    for tiles in [(2, 3), (4, 1), (50, 50)]:
        assert detected(scene, fake_host(detect), memory_sink(), tiles, shuffled=True) == reference


def objects_of(*items: tuple[tuple[int, int], str, float, bool, Any]) -> Objects:
    """(tile, class, confidence, owned, polygon) as a table, all of them near a border."""
    count = len(items)
    return Objects(
        tile_row=np.array([item[0][0] for item in items], np.int32),
        tile_col=np.array([item[0][1] for item in items], np.int32),
        class_name=np.array([item[1] for item in items], object),
        confidence=np.array([item[2] for item in items], float),
        owned=np.array([item[3] for item in items], bool),
        at_border=np.ones(count, bool),
        cut=np.zeros(count, bool),
        attributes=np.array(["{}"] * count, object),
        geometry=np.array([item[4] for item in items], object),
    )


def kept(*items: Any) -> list[tuple[tuple[int, int], str, float]]:
    table = Objects.joined(list(reconciled([(1, objects_of(*items))], GEOMETRY)))
    rows = zip(table.tile_row, table.tile_col, table.class_name, table.confidence, strict=True)
    return sorted(((int(row), int(col)), name, float(score)) for row, col, name, score in rows)


HERE, MOVED, ELSEWHERE = shapely.box(26, 10, 38, 20), shapely.box(27, 10, 39, 20), shapely.box(33, 10, 45, 20)


def test_of_two_owners_the_more_confident_one_stays() -> None:
    assert kept(((0, 0), "a", 0.6, True, HERE), ((0, 1), "a", 0.7, True, MOVED)) == [((0, 1), "a", 0.7)]
    assert kept(((0, 0), "a", 0.7, True, HERE), ((0, 1), "a", 0.7, True, MOVED)) == [((0, 0), "a", 0.7)]


def test_owners_of_other_classes_or_little_overlap_both_stay() -> None:
    assert len(kept(((0, 0), "a", 0.6, True, HERE), ((0, 1), "b", 0.7, True, MOVED))) == 2
    assert len(kept(((0, 0), "a", 0.6, True, HERE), ((0, 1), "a", 0.7, True, ELSEWHERE))) == 2


def test_objects_of_one_tile_are_never_compared() -> None:
    assert len(kept(((0, 0), "a", 0.6, True, HERE), ((0, 0), "a", 0.7, True, MOVED))) == 2


def test_an_object_that_nobody_owns_is_reported_once_if_two_tiles_saw_it() -> None:
    assert kept(((0, 0), "a", 0.6, False, HERE), ((0, 1), "a", 0.7, False, MOVED)) == [((0, 1), "a", 0.7)]
    assert kept(((0, 0), "a", 0.6, False, HERE)) == []  # its owner looked and saw nothing


def test_an_unowned_view_never_replaces_the_owners() -> None:
    assert kept(((0, 0), "a", 0.6, True, HERE), ((0, 1), "a", 0.9, False, MOVED)) == [((0, 0), "a", 0.6)]
    assert kept(((0, 0), "a", 0.6, True, HERE), ((0, 1), "b", 0.9, False, MOVED)) == [((0, 0), "a", 0.6)]


def test_nothing_is_settled_before_the_tile_below_has_been_seen() -> None:
    upper = objects_of(((0, 0), "a", 0.6, True, shapely.box(5, 33, 15, 45)))
    lower = objects_of(((1, 0), "a", 0.8, True, shapely.box(5, 34, 15, 46)))
    tables = list(reconciled([(1, upper), (2, lower)], GEOMETRY))
    assert len(tables[0]) == 0
    assert Objects.joined(tables).confidence.tolist() == [0.8]


def test_an_object_cut_off_at_the_block_is_left_to_its_owner_and_marked_there() -> None:
    operator = ObjectOperator(GEOMETRY, {0: (0, 0, 400, 400)})
    shard = Shard(
        grid=0, row=0, col=0, tile_row=0, tile_col=0, tile_rows=2, tile_cols=2, window=(0, 0, 80, 64), key="k"
    )
    from tasks.infer.engine import Tile

    tile = Tile(0, 0, Window(0, 0, 40, 32), np.ones((40, 32), bool))
    state = operator.begin(shard)
    operator.accept(
        state,
        tile,
        [
            Found("a", 1.0, [box(24, 5, 44, 15)]),  # centroid in the neighbour, cut at the block's right edge
            Found("a", 2.0, [box(10, 5, 44, 15)]),  # owned, larger than the halo
            Found("a", 3.0, [box(28, 5, 40, 15)]),  # centroid just outside: kept for the border pass
            Found("a", 4.0, [box(36, 5, 43, 15)]),  # the neighbour's business alone
            Found("a", 5.0, [box(-14, 5, -2, 15)]),  # outside of the raster
        ],
    )
    table = Objects.from_bytes(operator.finish(state))
    rows = sorted(zip(table.confidence, table.owned, table.cut, table.at_border, strict=True))
    assert [tuple(map(float, row)) for row in rows] == [(2.0, 1, 1, 1), (3.0, 0, 0, 1)]


@pytest.mark.parametrize(
    ("rings", "area"),
    [
        ([box(0, 0, 4, 3)], 12.0),
        ([[*box(0, 0, 4, 3), (0, 0)]], 12.0),  # closed already
        ([box(0, 0, 10, 10), box(2, 2, 4, 4)], 96.0),  # a hole
        ([box(0, 0, 10, 10), box(2, 2, 8, 8), box(4, 4, 6, 6)], 68.0),  # an island in the hole
        ([box(0, 0, 2, 2), box(5, 5, 7, 7)], 8.0),  # two outlines
        ([[(0, 0), (2, 2), (2, 0), (0, 2)]], 2.0),  # a bow tie
        ([[(0, 0), (4, 0), (4, 4), (4, 6), (4, 4), (0, 4)]], 16.0),  # a spike
    ],
)
def test_rings_become_valid_polygons(rings: Any, area: float) -> None:
    polygon = polygon_of_rings(rings)
    assert polygon is not None
    assert shapely.is_valid(polygon)
    assert shapely.area(polygon) == pytest.approx(area)


@pytest.mark.parametrize("rings", [[], [[(0, 0), (1, 1)]], [[(0, 0), (1, 1), (2, 2), (0, 0)]]])
def test_rings_without_area_are_no_object(rings: Any) -> None:
    assert polygon_of_rings(rings) is None
