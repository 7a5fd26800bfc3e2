"""Labels in chips at any angle: quarters exactly the turned grid, others as burnt in the chip's frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from tasks.imagery.places import Place
from tasks.labels import ClassSchema, PixelLabels

SIDE = 200
UINT8 = "uint8"


@pytest.fixture(scope="module")
def crowd() -> PixelLabels:
    random = np.random.default_rng(7)
    count = 120
    centres = random.uniform(-20, SIDE + 20, (count, 2))
    angles = np.sort(random.uniform(0, 2 * np.pi, (count, 9)), axis=1)
    radii = random.uniform(2, 30, (count, 9))
    rings = centres[:, None] + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)
    shapes = np.asarray(
        shapely.make_valid(
            shapely.polygons(np.round(rings * 65536) / 65536), method="structure", keep_collapsed=False
        ),
        dtype=object,
    )
    shapes[::3] = shapely.difference(shapes[::3], shapely.buffer(shapely.centroid(shapes[::3]), 3))
    keep = np.isin(shapely.get_type_id(shapes), (3, 6)) & (shapely.area(shapes) > 0)
    schema = ClassSchema.from_values({value: str(value) for value in range(1, 4)})
    # Numbers with gaps: what lies near is a part of all records.
    numbers = np.flatnonzero(keep) * 10
    return PixelLabels(shapes[keep], random.integers(1, 4, int(keep.sum())), schema, numbers)


def _in_frame(labels: PixelLabels, place: Place) -> npt.NDArray[np.object_]:
    """The labels in the chip's pixels, by shapely alone."""
    inverse = ~place.to_grid

    def move(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = inverse @ (points[:, 0], points[:, 1])
        return np.column_stack([x, y])

    return np.asarray(shapely.transform(labels.geometries, move), dtype=object)


def _rasterized(shapes: Any, values: Any, rows: int, cols: int) -> npt.NDArray[Any]:
    pairs = list(zip(shapes, values.tolist(), strict=True))
    if not pairs:
        return np.zeros((rows, cols), dtype=UINT8)
    burnt: npt.NDArray[Any] = rasterize(pairs, out_shape=(rows, cols), dtype=UINT8)
    return burnt


def _places(*angles: float) -> st.SearchStrategy[Place]:
    return st.builds(
        Place,
        row=st.integers(-30, SIDE - 10),
        col=st.integers(-30, SIDE - 10),
        rows=st.integers(1, 70),
        cols=st.integers(1, 70),
        angle=st.sampled_from(angles),
    )


places = _places(0.0, 90.0, 180.0, 270.0) | _places(30.0, 123.4, 359.5)


@settings(max_examples=60, deadline=None)
@given(place=places)
def test_burning_quarters_turns_the_grid_and_other_angles_burn_in_the_chip(
    crowd: PixelLabels, place: Place
) -> None:
    burnt = crowd.burn_at(place)
    assert burnt.shape == (place.rows, place.cols)
    if place.is_exact:
        window = place.window
        oracle = _rasterized(
            shapely.transform(crowd.geometries, lambda xy: xy - (window.col, window.row)),
            crowd.values,
            window.rows,
            window.cols,
        )
        oracle = np.rot90(oracle, -place.quarters)
    else:
        oracle = _rasterized(_in_frame(crowd, place), crowd.values, place.rows, place.cols)
    np.testing.assert_array_equal(burnt, oracle)


@settings(max_examples=60, deadline=None)
@given(place=places, ratio=st.sampled_from([0.0, 0.4]))
def test_boxes_areas_and_polygons_equal_an_intersection_in_the_chips_frame(
    crowd: PixelLabels, place: Place, ratio: float
) -> None:
    [found] = crowd.at([place], min_overlap_ratio=ratio)
    shapes = _in_frame(crowd, place)
    parts = shapely.intersection(shapes, shapely.box(0, 0, place.cols, place.rows))
    areas = shapely.area(parts)
    # Slivers and shares at the limit may go either way.
    share = areas / shapely.area(shapes)
    sure = crowd.numbers[(areas > 0.1) & (share > ratio + 1e-6)]
    assert set(sure.tolist()) <= set(found.indices.tolist())
    assert (np.diff(found.indices) > 0).all()
    at = np.searchsorted(crowd.numbers, found.indices)
    assert (share[at] >= ratio - 1e-6).all()
    assert (found.values == crowd.values[at]).all()
    assert found.areas == pytest.approx(areas[at], abs=1e-6)
    assert found.polygons.shape == (len(found),)
    assert shapely.area(found.polygons) == pytest.approx(areas[at], abs=1e-6)
    apart = shapely.area(shapely.symmetric_difference(found.polygons, np.asarray(parts)[at]))
    assert (apart < 1e-6).all()
    bounds = shapely.bounds(found.polygons).reshape(-1, 4)
    assert np.abs(found.boxes - bounds).max(initial=0) < 1e-9
    left_out = np.searchsorted(crowd.numbers, found.left_out)
    assert (share[left_out] < ratio + 1e-9).all()
    assert not set(found.left_out.tolist()) & set(found.indices.tolist())


def test_many_places_at_once_equal_one_by_one(crowd: PixelLabels) -> None:
    many = [
        Place(row, col, 40, 50, angle)
        for row in range(0, SIDE, 60)
        for col in range(0, SIDE, 70)
        for angle in (0.0, 33.0, 90.0)
    ]
    for place, found in zip(many, crowd.at(many, min_overlap_ratio=0.3), strict=True):
        [one] = crowd.at([place], min_overlap_ratio=0.3)
        np.testing.assert_array_equal(found.indices, one.indices)
        np.testing.assert_array_equal(found.boxes, one.boxes)
        np.testing.assert_array_equal(found.left_out, one.left_out)
        assert shapely.equals_identical(found.polygons, one.polygons).all()
    assert crowd.at([]) == []


def test_at_no_angle_the_answers_are_those_of_windows(crowd: PixelLabels) -> None:
    [at] = crowd.at([Place(30, 40, 50, 60)], min_overlap_ratio=0.2)
    window = crowd.in_window(30, 40, 50, 60, min_overlap_ratio=0.2)
    np.testing.assert_array_equal(at.boxes, window.boxes)
    np.testing.assert_array_equal(at.indices, window.indices)
    np.testing.assert_array_equal(crowd.burn_at(Place(30, 40, 50, 60)), crowd.burn(30, 40, 50, 60))


@settings(max_examples=40, deadline=None)
@given(place=places)
def test_instances_are_numbered_in_label_order_without_gaps(crowd: PixelLabels, place: Place) -> None:
    [found] = crowd.at([place], min_overlap_ratio=0.3)
    shapes = _in_frame(crowd, place)
    for value in (1, 2, 3):
        instances = crowd.instances_at(place, found, value)
        assert instances.shape == (place.rows, place.cols)
        assert instances.dtype == UINT8
        mine = found.indices[found.values == value]
        at = np.searchsorted(crowd.numbers, mine)
        if place.is_exact:
            alone = [crowd.burn_at(place, leave_out=set(crowd.numbers.tolist()) - {int(one)}) for one in mine]
        else:
            alone = [_rasterized([shapes[one]], np.array([1]), place.rows, place.cols) for one in at]
        owner = np.zeros((place.rows, place.cols), dtype=int)
        for number, pixels in enumerate(alone, 1):
            owner[pixels > 0] = number
        seen = [number for number in range(1, len(mine) + 1) if (owner == number).any()]
        expected = np.zeros_like(owner)
        for dense, number in enumerate(seen, 1):
            expected[owner == number] = dense
        np.testing.assert_array_equal(instances, expected)


def test_an_object_hidden_by_a_later_one_of_its_class_gets_no_number() -> None:
    shapes = np.array(
        [shapely.box(0, 0, 4, 4), shapely.box(1, 1, 2, 2), shapely.box(0, 0, 3, 3), shapely.box(5, 5, 9, 9)]
    )
    schema = ClassSchema.from_values({1: "a", 2: "b"})
    labels = PixelLabels(shapes, np.array([1, 1, 1, 2]), schema)
    place = Place(0, 0, 10, 10)
    [found] = labels.at([place])
    assert np.unique(labels.instances_at(place, found, 1)).tolist() == [0, 1, 2]
    assert labels.instances_at(place, found, 1)[1, 1] == 2
    assert np.unique(labels.instances_at(place, found, 2)).tolist() == [0, 1]
    assert not labels.instances_at(place, found, 3).any()


def test_more_than_255_objects_need_wider_numbers() -> None:
    shapes = np.array([shapely.box(col, row, col + 1, row + 1) for row in range(20) for col in range(20)])
    labels = PixelLabels(shapes, np.ones(400, dtype=np.int64), ClassSchema.from_values({1: "a"}))
    place = Place(0, 0, 20, 20)
    instances = labels.instances_at(place, labels.at([place])[0], 1)
    assert instances.dtype == np.dtype("uint16")
    assert instances.ravel().tolist() == list(range(1, 401))


def test_labels_without_polygons_say_so(crowd: PixelLabels) -> None:
    from tasks.labels import LabelsInWindow

    [found] = crowd.at([Place(0, 0, 50, 50)])
    bare = LabelsInWindow(found.indices, found.values, found.boxes, found.areas, found.left_out)
    with pytest.raises(ValueError, match="did not keep their polygons"):
        _ = bare.polygons
