"""Objects of a mask against a flood fill written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks.labels.mask_objects import objects_of_mask


def flood(mask: Any) -> list[tuple[int, list[tuple[int, int]]]]:
    """Regions as (value, pixels), in the order of value and first pixel."""
    rows, cols = mask.shape
    seen: set[tuple[int, int]] = set()
    regions = []
    for start in np.ndindex(rows, cols):
        if mask[start] == 0 or start in seen:
            continue
        seen.add(start)
        waiting, pixels = [start], []
        while waiting:
            row, col = waiting.pop()
            pixels.append((row, col))
            for near in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                inside = 0 <= near[0] < rows and 0 <= near[1] < cols
                if inside and near not in seen and mask[near] == mask[start]:
                    seen.add(near)
                    waiting.append(near)
        regions.append((int(mask[start]), pixels))
    return sorted(regions, key=lambda region: (region[0], min(region[1])))


masks = arrays.arrays(
    st.sampled_from(["uint8", "uint16", "uint32"]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 1, 2, 3, 7, 9, 200]),
)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_regions_are_those_of_a_flood_fill(mask: Any) -> None:
    expected = flood(mask)
    found = objects_of_mask(mask)
    assert found.values.tolist() == [value for value, _ in expected]
    assert found.areas.tolist() == [len(pixels) for _, pixels in expected]
    boxes = [
        [min(c for _, c in p), min(r for r, _ in p), max(c for _, c in p) + 1, max(r for r, _ in p) + 1]
        for _, p in expected
    ]
    assert found.boxes.tolist() == boxes
    assert (found.indices == -1).all()
    assert not len(found.left_out)
    regions = np.zeros(mask.shape, dtype=int)
    for number, (_, pixels) in enumerate(expected, start=1):
        for pixel in pixels:
            regions[pixel] = number
    assert found.regions is not None
    np.testing.assert_array_equal(found.regions, regions)


@settings(max_examples=60, deadline=None)
@given(masks)
def test_polygons_outline_their_regions(mask: Any) -> None:
    found = objects_of_mask(mask)
    assert len(found.polygons) == len(found)
    assert shapely.is_valid(found.polygons).all()
    np.testing.assert_array_equal(shapely.area(found.polygons), found.areas)
    np.testing.assert_array_equal(shapely.bounds(found.polygons).reshape(-1, 4), found.boxes)
    regions = np.asarray(found.regions)
    for number, polygon in enumerate(found.polygons, start=1):
        rows, cols = np.nonzero(regions == number)
        assert shapely.contains_xy(polygon, cols + 0.5, rows + 0.5).all()


def test_a_hole_stays_a_hole_and_corners_do_not_connect() -> None:
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], dtype=np.uint8)
    found = objects_of_mask(mask)
    assert found.areas.tolist() == [8, 1]
    assert len(found.polygons[0].interiors) == 1


def test_instances_number_the_objects_of_a_class_without_gaps() -> None:
    mask = np.array([[2, 0, 5], [0, 5, 0], [2, 2, 0]], dtype=np.uint16)
    found = objects_of_mask(mask)
    np.testing.assert_array_equal(found.instances(2), [[1, 0, 0], [0, 0, 0], [2, 2, 0]])
    np.testing.assert_array_equal(found.instances(5), [[0, 0, 1], [0, 2, 0], [0, 0, 0]])
    assert not found.instances(3).any()
    assert found.instances(2).dtype == np.uint8


def test_more_than_255_instances_get_a_larger_type() -> None:
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[::2, ::2] = 1
    numbers = objects_of_mask(mask).instances(1)
    assert numbers.dtype == np.uint16
    assert numbers.max() == 400


@pytest.mark.parametrize("shape", [(4, 5), (0, 0), (1, 1)])
def test_a_mask_without_labels_has_no_objects(shape: tuple[int, int]) -> None:
    found = objects_of_mask(np.zeros(shape, dtype=np.uint8))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert len(found.polygons) == 0
    assert not found.instances(1).any()
