"""Polygons of a classified raster equal those of the whole array, however it is cut into blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rasterio.features
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from tasks.imagery import Window
from tasks.infer import vectorise
from tasks.infer.polygons import normalised, without_collinear_vertices
from tasks.infer.vectorise import polygons_of


def patches(seed: int, smooth: float, shape: tuple[int, int] = (60, 70)) -> NDArray[np.uint8]:
    """Four classes in patches; with ``smooth`` 0 every pixel is a throw of the dice."""
    rough = np.random.default_rng(seed).random((4, *shape))
    made: NDArray[np.uint8] = (
        ndimage.gaussian_filter(rough, (0, smooth, smooth)).argmax(axis=0).astype(np.uint8)
    )
    return made


def rings() -> NDArray[np.uint8]:
    """Rings in rings, all across several blocks, the outer one not closed."""
    rows, cols = np.mgrid[:90, :110]
    distance = np.hypot(rows - 45, cols - 55)
    made: NDArray[np.uint8] = (1 + (distance.astype(int) // 6) % 2).astype(np.uint8)
    made[44:46, 55:] = 1
    return made


def canonical(geometry: Any, values: Any) -> list[tuple[int, bytes]]:
    usable = np.asarray(geometry, dtype=object)
    assert shapely.is_valid(usable).all()
    plain = normalised(without_collinear_vertices(usable))
    return sorted(zip(map(int, values), shapely.to_wkb(plain), strict=True))


def whole(array: NDArray[Any], nodata: int | None) -> list[tuple[int, bytes]]:
    mask = None if nodata is None else array != nodata
    found = list(rasterio.features.shapes(array, mask=mask))
    return canonical([shapely.geometry.shape(shape) for shape, _ in found], [value for _, value in found])


def blockwise(array: NDArray[Any], nodata: int | None, block: int) -> list[tuple[int, bytes]]:
    def read(window: Window) -> NDArray[Any]:
        assert max(window.shape) <= block
        return array[window.row : window.row_stop, window.col : window.col_stop]

    made = list(polygons_of(read, array.shape, nodata=nodata, block=block))
    geometry = np.concatenate([part.geometry() for part in made])
    return canonical(geometry, np.concatenate([part.value for part in made]))


@pytest.mark.parametrize("nodata", [None, 0])
@pytest.mark.parametrize("block", [16, 37])
@pytest.mark.parametrize("smooth", [0, 1, 4])
def test_polygons_equal_those_of_the_whole_array(smooth: float, block: int, nodata: int | None) -> None:
    array = patches(3, smooth)
    assert blockwise(array, nodata, block) == whole(array, nodata)


def test_a_class_around_all_others_is_one_polygon_with_their_holes_as_they_were_traced() -> None:
    array = np.where(np.random.default_rng(5).random((150, 170)) < 0.05, 2, 1).astype(np.uint8)
    made = list(
        polygons_of(lambda w: array[w.row : w.row_stop, w.col : w.col_stop], array.shape, nodata=2, block=40)
    )
    geometry = np.concatenate([part.geometry() for part in made])
    found = [shapely.geometry.shape(shape) for shape, _ in rasterio.features.shapes(array, mask=array == 1)]
    assert len(geometry) == len(found) == 1
    assert shapely.get_num_interior_rings(geometry[0]) > 500
    # Nothing has to be taken out of the rings: no border of a block has left a vertex.
    assert shapely.get_num_coordinates(geometry[0]) == shapely.get_num_coordinates(found[0])
    assert shapely.normalize(geometry[0]) == shapely.normalize(found[0])


@pytest.mark.parametrize("block", [7, 20, 45])
def test_rings_keep_their_holes(block: int) -> None:
    array = rings()
    assert blockwise(array, None, block) == whole(array, None)


def test_one_class_everywhere_is_one_polygon_and_nothing_is_none() -> None:
    array = np.ones((70, 50), np.uint8)
    assert len(blockwise(array, None, 16)) == 1
    assert blockwise(array, 1, 16) == []
    assert blockwise(array.astype(np.int64), None, 16) == whole(array, None)


@pytest.mark.parametrize("large", [7, 60, 2**17])
def test_polygons_are_the_same_as_geometries_and_as_binary(
    monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    """However many points are held at once: few polygons, one, or some of its rings."""
    monkeypatch.setattr(vectorise, "_LARGE", large)
    array = np.where(np.random.default_rng(5).random((90, 70)) < 0.1, 2, 1).astype(np.uint8)
    binary = []
    for part in polygons_of(
        lambda w: array[w.row : w.row_stop, w.col : w.col_stop], array.shape, nodata=None, block=40
    ):
        geometry = part.geometry()
        assert b"".join(part.wkb()) == b"".join(shapely.to_wkb(geometry))
        kept = part.value == 1
        assert (part.take(kept).geometry() == geometry[kept]).all()
        binary += list(zip(part.value.tolist(), shapely.to_wkb(geometry), strict=True))
    values, geometries = zip(*binary, strict=True)
    assert canonical(shapely.from_wkb(geometries), values) == whole(array, None)
