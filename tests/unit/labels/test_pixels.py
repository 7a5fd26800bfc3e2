"""Labels on a pixel grid: equal to the oracle on the whole raster, however the grid is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from tasks.labels import ClassSchema, PixelLabels, VectorLabels, labels_on_grid

TRANSFORM = Affine(0.3, 0, 500_000.1, 0, -0.3, 5_000_000.7)
ROWS, COLS = 300, 400


def _vector_labels(geometries: list[shapely.Geometry], values: list[int]) -> VectorLabels:
    schema = ClassSchema.from_values({value: f"class {value}" for value in set(values)})
    return VectorLabels("test", "", np.array(geometries, dtype=object), np.array(values), schema)


def _to_map(geometry: shapely.Geometry) -> shapely.Geometry:
    return shapely.transform(
        geometry, lambda xy: xy * (TRANSFORM.a, TRANSFORM.e) + (TRANSFORM.c, TRANSFORM.f)
    )


@pytest.fixture(scope="module")
def crowd() -> tuple[VectorLabels, PixelLabels]:
    """Overlapping blobs of 5 classes, some across the raster's edge."""
    random = np.random.default_rng(5)
    blobs = []
    for _ in range(150):
        centre = random.uniform((-20, -20), (COLS + 20, ROWS + 20))
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        radii = random.uniform(2, 40, 9)
        ring = centre + np.column_stack([radii * np.cos(angles), radii * np.sin(angles)])
        blobs.append(_to_map(shapely.make_valid(shapely.Polygon(ring)).buffer(0)))
    labels = _vector_labels(blobs, random.integers(1, 6, len(blobs)).tolist())
    return labels, labels_on_grid(labels, tuple(TRANSFORM)[:6])


def _oracle(labels: VectorLabels) -> npt.NDArray[Any]:
    mask: npt.NDArray[Any] = rasterize(
        zip(labels.geometries, labels.values.tolist(), strict=True),
        out_shape=(ROWS, COLS),
        transform=TRANSFORM,
        dtype="uint8",
    )
    return mask


def test_burning_equals_rasterize_on_the_whole_raster(crowd: tuple[VectorLabels, PixelLabels]) -> None:
    labels, on_grid = crowd
    oracle = _oracle(labels)
    assert len(np.unique(oracle)) == 6
    np.testing.assert_array_equal(on_grid.burn(0, 0, ROWS, COLS), oracle)


@settings(max_examples=40, deadline=None)
@given(
    row=st.integers(-50, ROWS), col=st.integers(-50, COLS), rows=st.integers(1, 150), cols=st.integers(1, 150)
)
def test_any_window_is_a_cut_out_of_the_whole(
    crowd: tuple[VectorLabels, PixelLabels], row: int, col: int, rows: int, cols: int
) -> None:
    _, on_grid = crowd
    whole = on_grid.burn(-100, -100, ROWS + 300, COLS + 300)
    part = on_grid.burn(row, col, rows, cols)
    np.testing.assert_array_equal(part, whole[row + 100 : row + 100 + rows, col + 100 : col + 100 + cols])


@settings(max_examples=40, deadline=None)
@given(
    row=st.integers(-50, ROWS),
    col=st.integers(-50, COLS),
    size=st.integers(8, 120),
    ratio=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_boxes_and_areas_equal_an_intersection_in_map_space(
    crowd: tuple[VectorLabels, PixelLabels], row: int, col: int, size: int, ratio: float
) -> None:
    labels, on_grid = crowd
    window = _to_map(shapely.box(col, row, col + size, row + size))
    found = on_grid.in_window(row, col, size, size, min_overlap_ratio=ratio)
    expected = {}
    for index, geometry in enumerate(labels.geometries):
        part = shapely.intersection(geometry, window)
        if shapely.area(part) > 0.01 and shapely.area(part) / shapely.area(geometry) >= ratio - 1e-6:
            expected[index] = part
    # Slivers and shares on the limit may go either way.
    sure = {
        index
        for index, part in expected.items()
        if shapely.area(part) / shapely.area(labels.geometries[index]) > ratio + 1e-6 or ratio == 1.0
    }
    assert sure <= set(found.indices.tolist()) | set()
    for index, box, area, value in zip(found.indices, found.boxes, found.areas, found.values, strict=True):
        if index not in expected:
            assert area * 0.09 <= 0.0101
            continue
        xmin, ymin, xmax, ymax = expected[int(index)].bounds
        left, bottom = ~TRANSFORM @ (xmin, ymin)
        right, top = ~TRANSFORM @ (xmax, ymax)
        assert np.abs(box - (left - col, top - row, right - col, bottom - row)).max() < 0.01
        assert area * 0.09 == pytest.approx(shapely.area(expected[int(index)]), abs=1e-3)
        assert value == labels.values[index]


def test_many_windows_at_once_equal_one_by_one(crowd: tuple[VectorLabels, PixelLabels]) -> None:
    _, on_grid = crowd
    windows = np.array([[r, c, 64, 64] for r in range(0, ROWS, 50) for c in range(0, COLS, 50)])
    for window, many in zip(windows, on_grid.in_windows(windows, min_overlap_ratio=0.3), strict=True):
        one = on_grid.in_window(*window.tolist(), min_overlap_ratio=0.3)
        np.testing.assert_array_equal(many.indices, one.indices)
        np.testing.assert_array_equal(many.boxes, one.boxes)
        np.testing.assert_array_equal(many.left_out, one.left_out)


def test_a_label_with_too_small_a_share_is_left_out_of_mask_and_boxes() -> None:
    labels = _vector_labels([_to_map(shapely.box(0, 0, 10, 10)), _to_map(shapely.box(15, 0, 35, 10))], [1, 2])
    on_grid = labels_on_grid(labels, tuple(TRANSFORM)[:6])
    found = on_grid.in_window(0, 0, 20, 20, min_overlap_ratio=0.3)
    assert found.values.tolist() == [1]
    assert found.left_out.tolist() == [1]
    assert set(np.unique(on_grid.burn(0, 0, 20, 20, leave_out={1}))) == {0, 1}


def test_a_neighbour_that_only_shares_an_edge_does_not_count() -> None:
    labels = _vector_labels([_to_map(shapely.box(20, 0, 30, 10))], [1])
    on_grid = labels_on_grid(labels, tuple(TRANSFORM)[:6])
    assert len(on_grid.in_window(0, 0, 20, 20)) == 0
    assert len(on_grid.in_window(0, 0, 20, 21)) == 1


def test_a_line_left_by_an_intersection_does_not_widen_the_box() -> None:
    # A comb: one tooth reaches into the window, its back only touches the window's edge.
    comb = shapely.union_all([shapely.box(20, 0, 30, 20), shapely.box(15, 8, 20, 12)])
    on_grid = labels_on_grid(_vector_labels([_to_map(comb)], [1]), tuple(TRANSFORM)[:6])
    assert on_grid.in_window(0, 0, 20, 20).boxes.tolist() == [[15.0, 8.0, 20.0, 12.0]]


def test_the_label_type_holds_the_largest_value() -> None:
    for value, dtype in ((255, "uint8"), (256, "uint16"), (70_000, "uint32")):
        on_grid = labels_on_grid(
            _vector_labels([_to_map(shapely.box(0, 0, 5, 5))], [value]), tuple(TRANSFORM)[:6]
        )
        assert on_grid.burn(0, 0, 8, 8).dtype == dtype
        assert on_grid.burn(0, 0, 8, 8).max() == value
