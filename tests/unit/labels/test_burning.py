"""Burning polygons: the pixels of GDAL, in any window."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from tasks.imagery.windows import Window
from tasks.labels.burning import burn_polygons

UINT8 = np.dtype("uint8")


def _blobs(seed: int, rows: int, cols: int, fraction: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Polygons of all kinds around a raster: holes, several parts, boxes, both ring directions."""
    random = np.random.default_rng(seed)
    count, corners = int(random.integers(1, 25)), int(random.integers(3, 12))
    centres = random.uniform((-20, -20), (cols + 20, rows + 20), (count, 2))
    angles = np.sort(random.uniform(0, 2 * np.pi, (count, corners)), axis=1)
    radii = random.uniform(1, random.integers(3, 60), (count, corners))
    rings = centres[:, None] + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)
    outlines = shapely.polygons(np.round(rings * fraction) / fraction)
    shapes = np.asarray(shapely.make_valid(outlines, method="structure", keep_collapsed=False), dtype=object)
    holed = shapely.set_precision(
        shapely.difference(shapes[: count // 2], shapely.buffer(shapely.centroid(shapes[: count // 2]), 3)),
        1 / fraction,
    )
    corner = np.round(random.uniform(-5, 40, (5, 2)) * fraction) / fraction
    boxes = np.asarray(shapely.box(*corner.T, *(corner + random.integers(1, 20, (5, 2)) / 2).T), dtype=object)
    joined = np.concatenate([shapes, holed, shapely.reverse(boxes[:2]), boxes[2:]])
    joined = joined[np.isin(shapely.get_type_id(joined), (3, 6)) & (shapely.area(joined) > 0)]
    return joined, random.integers(1, 200, len(joined))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 80),
    cols=st.integers(1, 80),
    fraction=st.sampled_from([1, 2, 4, 65536]),
)
def test_every_pixel_is_gdals(seed: int, rows: int, cols: int, fraction: int) -> None:
    # Coarse fractions put many corners and edges exactly on pixel centres.
    shapes, values = _blobs(seed, rows, cols, fraction)
    oracle = rasterize(zip(shapes, values.tolist(), strict=True), out_shape=(rows, cols), dtype="uint8")
    burnt = burn_polygons(shapes, values, Window(0, 0, rows, cols), UINT8)
    np.testing.assert_array_equal(burnt, oracle)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    row=st.integers(-30, 60),
    col=st.integers(-30, 60),
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
)
def test_a_window_is_a_cut_out_of_the_whole(seed: int, row: int, col: int, rows: int, cols: int) -> None:
    shapes, values = _blobs(seed, 60, 60, 4)
    whole = burn_polygons(shapes, values, Window(-30, -30, 130, 130), UINT8)
    part = burn_polygons(shapes, values, Window(row, col, rows, cols), UINT8)
    np.testing.assert_array_equal(part, whole[row + 30 : row + 30 + rows, col + 30 : col + 30 + cols])


@pytest.mark.parametrize("size", [3, 400])
def test_the_last_polygon_lies_on_top_whether_runs_are_short_or_long(size: int) -> None:
    shapes = np.array([shapely.box(0, 0, size, size), shapely.box(1, 0, size, size), shapely.box(2, 0, 3, 1)])
    burnt = burn_polygons(shapes, np.array([7, 5, 6]), Window(0, 0, size, size), UINT8)
    assert burnt[0, :3].tolist() == [7, 5, 6]
    assert (burnt[1:, 1:] == 5).all()


def test_many_pixels_in_short_runs_come_in_several_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, values = _blobs(3, 60, 60, 4)
    whole = burn_polygons(shapes, values, Window(0, 0, 60, 60), UINT8)
    monkeypatch.setattr("tasks.labels.burning._PIXELS_AT_ONCE", 7)
    monkeypatch.setattr("tasks.labels.burning._LONG_RUN_PX", 1000)
    np.testing.assert_array_equal(burn_polygons(shapes, values, Window(0, 0, 60, 60), UINT8), whole)


def test_large_values_and_no_polygons() -> None:
    box = np.array([shapely.box(0, 0, 2, 2)])
    assert burn_polygons(box, np.array([70_000]), Window(0, 0, 2, 2), np.dtype("uint32")).max() == 70_000
    assert not burn_polygons(box[:0], np.array([], dtype=np.int64), Window(0, 0, 2, 2), UINT8).any()
    assert burn_polygons(box, np.array([1]), Window(0, 0, 0, 5), UINT8).shape == (0, 5)
    assert not burn_polygons(box, np.array([1]), Window(50, 50, 4, 4), UINT8).any()
