"""Masks: what lies outside is not computed and not reported; what lies inside is what it was without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio.features
import shapely
from rasterio.crs import CRS
from scipy import ndimage

from tasks.imagery import Grid, Window
from tasks.infer.engine import TileCutter
from tasks.infer.mask import GridMask, MaskPolygons
from tasks.infer.objects import Objects
from tasks.infer.operators import ObjectOperator, PixelFormat, PixelOperator, read_pixels
from tasks.infer.parameters import parts_at_once
from tasks.infer.shards import TileGeometry

GEOMETRY = TileGeometry(rows=32, cols=24, padding=5)
SHAPES = [
    shapely.Polygon([(20, 30), (90, 40), (70, 120)], [[(50, 50), (60, 55), (55, 70)]]),
    shapely.box(120.2, 5.3, 150.7, 33.9),
]


def mask_of(*shapes: Any) -> GridMask:
    return GridMask(np.array(shapes, dtype=object))


def classes_of(pixels: Any, mask: Any) -> Any:
    assert mask.any()
    total = ndimage.uniform_filter(pixels.astype(np.float64).sum(axis=0), 5)
    pad = GEOMETRY.padding
    return np.where(total > 250, 2, 1).astype(np.int32)[None, pad:-pad, pad:-pad]


def test_pixels_inside_are_those_whose_centre_is() -> None:
    burnt = rasterio.features.rasterize([(shape, 1) for shape in SHAPES], out_shape=(210, 170))
    for window in (Window(0, 0, 210, 170), Window(31, 17, 40, 60), Window(-9, 140, 50, 60)):
        wanted = np.zeros(window.shape, np.bool_)
        common = window.intersection(Window(0, 0, 210, 170))
        wanted[common.slices_in(window)] = burnt[common.slices_in(Window(0, 0, 210, 170))] != 0
        np.testing.assert_array_equal(mask_of(*SHAPES).inside(window), wanted)


def test_a_mask_changes_no_pixel_inside_and_computes_no_tile_beside_it(
    make_scene: Any, fake_host: Any, memory_sink: Any, noise: Any
) -> None:
    scene, operator, mask = (
        make_scene(noise),
        PixelOperator(GEOMETRY, PixelFormat("uint8", 0.0)),
        mask_of(*SHAPES),
    )
    results, tiles = [], []
    for cutter in (None, TileCutter(GEOMETRY, operator.needs, lambda _, window: mask.inside(window))):
        sink, shards = memory_sink(), scene.shards(GEOMETRY, (2, 3))
        counters = scene.run(shards, fake_host(classes_of), operator, sink, GEOMETRY, cutter=cutter)
        made = np.zeros(noise.shape[1:], np.uint8)
        for shard in shards:
            made[shard.target.slices_in(Window(0, 0, *made.shape))] = read_pixels(sink.results[shard.key])
        results.append(made)
        tiles.append(counters.tiles)
    inside = mask.inside(Window(0, 0, *noise.shape[1:]))
    np.testing.assert_array_equal(results[1], np.where(inside, results[0], 0))
    assert 0 < tiles[1] < tiles[0] / 2


@dataclass
class Found:
    rings: list[Any]
    class_name: str = "Dot"
    confidence_raw: float = 1.0

    @property
    def attributes(self) -> dict[str, Any]:
        return {}


def test_objects_count_whose_centre_lies_inside(make_scene: Any, fake_host: Any, memory_sink: Any) -> None:
    image = np.zeros((1, 96, 96), np.uint8)
    centres = [(20, 20), (20, 70), (70, 20), (70, 70)]
    for row, col in centres:
        image[0, row - 4 : row + 4, col - 4 : col + 4] = 200
    geometry = TileGeometry(rows=48, cols=48, padding=16)

    def dots(pixels: Any, _: Any) -> list[Found]:
        labels, _count = ndimage.label(pixels[0] > 100)
        found = []
        for rows, cols in ndimage.find_objects(labels):
            x0, x1, y0, y1 = (value - 16 for value in (cols.start, cols.stop, rows.start, rows.stop))
            found.append(Found([[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]]))
        return found

    scene, sink = make_scene(image), memory_sink()
    mask = mask_of(shapely.box(10, 10, 30, 30), shapely.box(60, 60, 71, 96))
    operator = ObjectOperator(geometry, {0: (0, 0, 96, 96)}, {0: mask})
    cutter = TileCutter(geometry, operator.needs, lambda _, window: mask.inside(window))
    shards = scene.shards(geometry, (2, 2))
    scene.run(shards, fake_host(dots), operator, sink, geometry, cutter=cutter)
    objects = Objects.from_bytes(sink.results[shards[0].key])
    middles = {tuple(np.round(item.centroid.coords[0]).tolist()) for item in objects.geometry}
    assert middles == {(20.0, 20.0), (70.0, 70.0)}


def test_a_mask_in_another_reference_system_lies_where_it_should() -> None:
    own, other = CRS.from_epsg(32612).to_wkt(), CRS.from_epsg(4326).to_wkt()
    transform = (0.5, 0.0, 500_000.0, 0.0, -0.5, 4_900_000.0)
    square = shapely.box(500_010, 4_899_950, 500_030, 4_899_990)
    project = pyproj.Transformer.from_crs(own, other, always_xy=True)
    points = shapely.segmentize(square, 1.0)
    degrees = shapely.transform(points, lambda xy: np.column_stack(project.transform(xy[:, 0], xy[:, 1])))
    mask = MaskPolygons("m", other, np.array([degrees], dtype=object))
    there = MaskPolygons.from_bytes(mask.to_bytes()).on_grid(Grid(own, transform, 400, 400))
    assert there.window == Window(20, 20, 80, 40)
    assert there.inside(Window(0, 0, 200, 200)).sum() == 80 * 40
    assert there.touches([Window(0, 0, 10, 10), Window(30, 30, 5, 5)]).tolist() == [False, True]
    assert mask.digest != MaskPolygons("m", own, mask.geometry).digest


@pytest.mark.parametrize(("factor", "parts"), [(None, None), ("2", 2), (" 3 ", 3), ("0", 1), ("1%", 1)])
def test_parallel_processing_factor_is_a_number_or_a_share(factor: str | None, parts: int | None) -> None:
    assert parts_at_once(factor) == parts


def test_a_share_counts_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.infer.parameters.os.cpu_count", lambda: 8)
    assert [parts_at_once(text) for text in ("80%", "50 %", "100%", "200%")] == [6, 4, 8, 16]
