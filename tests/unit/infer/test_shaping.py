"""Outlines made plainer: what stays, how far it moves, and that neighbours still abut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
import pytest
import shapely
import shapely.affinity
from rasterio.crs import CRS

from tasks.infer.shaping import regularised, shaped

UTM = CRS.from_epsg(32612).to_wkt()
DEGREES = CRS.from_epsg(4326).to_wkt()


def wishes(**more: Any) -> dict[str, Any]:
    return {"minimum_area": 0.0, "polygon_shape": "AS_FOUND", "shape_tolerance": 1.0, **more}


def array(*geometry: shapely.Geometry) -> Any:
    return np.array(geometry, dtype=object)


def rough(outline: shapely.Polygon, seed: int) -> shapely.Polygon:
    """The outline with a vertex every 0.5, up to 0.2 off."""
    points = shapely.get_coordinates(shapely.segmentize(outline, 0.5))[:-1]
    moved = points + np.random.default_rng(seed).uniform(-0.2, 0.2, points.shape)
    return shapely.Polygon(moved)


@pytest.mark.parametrize(("crs", "unit"), [(UTM, 1.0), (DEGREES, 1 / 111_320)])
def test_small_polygons_are_left_out_by_square_metres(crs: str, unit: float) -> None:
    boxes = [shapely.box(0, 0, 3, 3), shapely.box(10, 0, 11, 1), shapely.box(0, 10, 2, 12)]
    west, north = (500_000, 0) if crs == UTM else (10, 0)
    moved = [shapely.transform(box, lambda points: points * unit + (west, north)) for box in boxes]
    stays, outlines = shaped(array(*moved), crs, wishes(minimum_area=3.5))
    assert stays.tolist() == [0, 2]
    assert shapely.equals(outlines, array(moved[0], moved[2])).all()


@pytest.mark.parametrize("code", [3857, 4326, 2263])
def test_a_tolerance_is_metres_on_the_ground_in_every_system(code: int) -> None:
    """60 degrees north, where a unit of Web Mercator is half a metre; 2263 counts in feet."""
    if code == 2263:
        own, east, north = "EPSG:32618", 583_000.0, 4_507_000.0
    else:
        own, east, north = "EPSG:32633", 500_000.0, 6_651_000.0
    ring = [(2.0 * x, 1.4 if x % 2 else 0.0) for x in range(41)]
    outline = shapely.transform(
        shapely.Polygon([*ring, (80, 60), (0, 60)]), lambda points: points + np.array([east, north])
    )
    there = pyproj.Transformer.from_crs(own, f"EPSG:{code}", always_xy=True)
    moved = shapely.transform(outline, lambda points: np.column_stack(there.transform(*points.T)))
    wkt = CRS.from_epsg(code).to_wkt()
    for tolerance, many in ((0.9, True), (1.6, False)):
        wish = wishes(polygon_shape="SIMPLIFIED", shape_tolerance=tolerance)
        _, made = shaped(array(moved), wkt, wish)
        assert (shapely.get_num_coordinates(made[0]) > 30) == many, tolerance


def test_simplified_neighbours_still_abut() -> None:
    steps = [(x, x % 2 * 0.4) for x in range(21)]
    above = shapely.Polygon([*steps, (20, 10), (0, 10)])
    below = shapely.Polygon([*steps, (20, -10), (0, -10)])
    _, made = shaped(
        array(above, below), UTM, wishes(polygon_shape="SIMPLIFIED", shape_tolerance=3.0), covers=True
    )
    assert shapely.get_num_coordinates(made).sum() < 20
    assert shapely.area(shapely.intersection(*made)) == pytest.approx(0, abs=1e-9)
    assert shapely.area(shapely.union_all(made)) == pytest.approx(400)


@pytest.mark.parametrize("turn", [0, 17, 45, 80])
def test_a_rough_building_gets_right_angles(turn: float) -> None:
    plan = shapely.Polygon([(0, 0), (12, 0), (12, 5), (7, 5), (7, 9), (0, 9)])
    building = shapely.affinity.rotate(plan, turn)
    made = regularised(shapely.simplify(rough(building, 3), 0.5), 0.8)
    points = shapely.get_coordinates(made)
    assert len(points) == 7
    steps = np.diff(points, axis=0)
    following = np.roll(steps, -1, axis=0)
    assert np.abs((steps * following).sum(axis=1)).max() < 1e-6
    common = shapely.area(shapely.intersection(made, building))
    assert common / shapely.area(shapely.union(made, building)) > 0.93


def test_a_round_one_stays_round() -> None:
    disc = shapely.simplify(shapely.Point(0, 0).buffer(10), 0.1)
    wedge = shapely.Polygon([(0, 0), (10, 0), (10, 3)])
    assert shapely.equals(regularised(wedge, 1.0), wedge)
    made = regularised(disc, 0.5)
    assert shapely.is_valid(made)
    assert shapely.area(shapely.intersection(made, disc)) > 0.75 * shapely.area(disc)


def test_an_outline_within_the_tolerance_stays() -> None:
    tiny = shapely.box(0, 0, 0.5, 0.5)
    for shape in ("SIMPLIFIED", "REGULARISED"):
        _, made = shaped(array(tiny), UTM, wishes(polygon_shape=shape, shape_tolerance=5.0))
        assert made[0].area == pytest.approx(0.25)
    assert len(shaped(np.empty(0, dtype=object), UTM, wishes(polygon_shape="SIMPLIFIED"))[1]) == 0
