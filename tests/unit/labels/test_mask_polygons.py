"""Mask polygons: which chips lie completely inside the union, holes included."""

from __future__ import annotations

from collections.abc import Callable

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import LabelError
from tasks.imagery.places import Place
from tasks.labels import MaskRegion, read_mask_polygons

LabelWriter = Callable[..., str]
TRANSFORM = (0.3, 0.0, 500_000.1, 0.0, -0.3, 5_000_000.7)
UTM = pyproj.CRS("EPSG:32612").to_wkt()


def _map(*geometries: shapely.Geometry) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """Pixel polygons in map space."""
    shapes = np.array(geometries, dtype=object)
    return np.asarray(
        shapely.transform(shapes, lambda xy: xy * (0.3, -0.3) + (TRANSFORM[2], TRANSFORM[5])), dtype=object
    )


@pytest.fixture(scope="module")
def blobs() -> MaskRegion:
    random = np.random.default_rng(2)
    circles = shapely.buffer(shapely.points(random.uniform(0, 200, (60, 2))), random.uniform(5, 40, 60))
    return MaskRegion(_map(*np.asarray(circles)))


@settings(max_examples=80, deadline=None)
@given(
    row=st.integers(-20, 200),
    col=st.integers(-20, 200),
    size=st.integers(1, 60),
    angle=st.sampled_from([0.0, 90.0, 30.0, 211.0]),
)
def test_a_chip_is_inside_if_the_union_covers_it(
    blobs: MaskRegion, row: int, col: int, size: int, angle: float
) -> None:
    place = Place(row, col, size, size + 3, angle)
    transform = Affine(*TRANSFORM) @ place.to_grid
    corners = [(0, 0), (place.cols, 0), (place.cols, place.rows), (0, place.rows)]
    frame = shapely.Polygon([transform @ corner for corner in corners])
    expected = shapely.covers(shapely.union_all(blobs.geometries), frame)
    assert blobs.covers(TRANSFORM, [place]).tolist() == [expected]


def test_many_places_at_once_equal_one_by_one(blobs: MaskRegion) -> None:
    places = [
        Place(row, col, 20, 20, angle)
        for row in range(0, 200, 9)
        for col in range(0, 200, 9)
        for angle in (0.0, 45.0)
    ]
    found = blobs.covers(TRANSFORM, places)
    assert 0 < found.sum() < len(places)
    assert found.tolist() == [bool(blobs.covers(TRANSFORM, [place])[0]) for place in places]
    assert blobs.covers(TRANSFORM, []).tolist() == []


def test_an_edge_on_the_chips_edge_is_inside_and_a_hole_is_not() -> None:
    ring = shapely.difference(shapely.box(0, 0, 100, 100), shapely.box(50, 50, 52, 52))
    region = MaskRegion(_map(ring))
    places = [Place(0, 0, 50, 50), Place(0, 0, 50, 100), Place(30, 30, 40, 40), Place(0, 51, 50, 50)]
    assert region.covers(TRANSFORM, places).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("gap", "inside"), [(0.0, True), (1e-6, True), (0.01, False)])
def test_polygons_that_share_an_edge_are_one_region(gap: float, inside: bool) -> None:
    region = MaskRegion(_map(shapely.box(0, 0, 50, 100), shapely.box(50 + gap, -5, 120, 100)))
    assert region.covers(TRANSFORM, [Place(10, 20, 64, 64)]).tolist() == [inside]


def test_polygons_that_share_an_edge_stay_one_region_after_a_reprojection(write_labels: LabelWriter) -> None:
    # Shared corners on one side only: after a reprojection the edges are apart by a hair.
    halves = _map(
        shapely.box(0, 0, 300, 151), shapely.Polygon([(0, 151), (0, 400), (300, 400), (300, 151), (100, 151)])
    )
    degrees = geopandas.GeoSeries(list(halves), crs="EPSG:32612").to_crs("EPSG:4326")
    uri = write_labels(list(degrees), "a.parquet", "EPSG:4326", value=[-3, 0])
    region = read_mask_polygons(uri, UTM)
    inside = [Place(20, 20, 100, 100), Place(100, 20, 100, 100), Place(100, 150, 64, 64, 30.0)]
    assert region.covers(TRANSFORM, [*inside, Place(300, 250, 60, 60)]).tolist() == [True, True, True, False]


def test_mask_polygons_in_the_pixels_of_an_image(write_labels: LabelWriter) -> None:
    uri = write_labels(list(_map(shapely.box(10, 20, 110, 220))))
    region = read_mask_polygons(
        uri, UTM, to_image=lambda x, y: ((x - TRANSFORM[2]) / 0.3, (TRANSFORM[5] - y) / 0.3)
    )
    pixels = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    places = [Place(20, 10, 200, 100), Place(19, 10, 200, 100)]
    assert region.covers(pixels, places).tolist() == [True, False]


def test_a_mask_without_polygons_is_refused(write_labels: LabelWriter) -> None:
    with pytest.raises(LabelError, match="points or lines"):
        read_mask_polygons(write_labels([shapely.Point(0, 0)]), UTM)
