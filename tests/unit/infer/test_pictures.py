"""Pictures of several bands: each tile in its place, and a mask that says which pixels count."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.errors import HostError
from tasks.imagery import Window
from tasks.infer.engine import Tile
from tasks.infer.operators import PixelFormat
from tasks.infer.pictures import PictureOperator, picture_format, read_picture
from tasks.infer.shards import Shard, TileGeometry

GEOMETRY = TileGeometry(rows=8, cols=8, padding=2)


def shard() -> Shard:
    place = {"grid": 0, "row": 0, "col": 0, "tile_row": 0, "tile_col": 0, "tile_rows": 2, "tile_cols": 2}
    return Shard.model_validate({**place, "window": (3, 0, 13, 12), "key": "k"})


def tile(row: int, col: int, valid: np.ndarray | None = None) -> Tile:
    inner = Window(8 * row, 8 * col, 8, 8)
    return Tile(row=row, col=col, inner=inner, valid=np.ones((8, 8), bool) if valid is None else valid)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int16"])
def test_tiles_fill_a_shard(dtype: str) -> None:
    operator = PictureOperator(GEOMETRY, picture_format(dtype, 2))
    whole = np.random.default_rng(0).integers(0, 200, (2, 16, 16)).astype(dtype)
    state = operator.begin(shard())
    hole = np.ones((8, 8), bool)
    hole[6:, :2] = False
    for row in (0, 1):
        for col in (0, 1):
            part = whole[:, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8]
            operator.accept(state, tile(row, col, hole if (row, col) == (1, 0) else None), part)
    values, counts = read_picture(operator.finish(state))
    expected = np.ones((16, 16), bool)
    expected[14:, :2] = False
    np.testing.assert_array_equal(counts, expected[3:, :12])
    np.testing.assert_array_equal(values, np.where(expected, whole, 0)[:, 3:, :12])
    assert values.dtype == dtype


def test_what_is_no_number_does_not_count() -> None:
    operator = PictureOperator(GEOMETRY, picture_format("float64", 1))
    state = operator.begin(shard())
    made = np.full((1, 8, 8), 2.5, np.float32)
    made[0, 5, 5] = np.nan
    operator.accept(state, tile(0, 0), made)
    values, counts = read_picture(operator.finish(state))
    assert counts.sum() == 5 * 8 - 1
    assert not np.isnan(values).any()
    assert values.dtype == np.float32


@pytest.mark.parametrize("made", [np.zeros((1, 8, 8), np.uint8), np.zeros((2, 8, 8), np.float32)])
def test_another_shape_or_type_is_refused(made: np.ndarray) -> None:
    operator = PictureOperator(GEOMETRY, picture_format("uint8", 2))
    with pytest.raises(HostError, match="Mend the function"):
        operator.accept(operator.begin(shard()), tile(0, 0), made)


def test_bands_decide_a_shard_and_classes_keep_their_keys() -> None:
    assert picture_format("uint8", 2).identity != picture_format("uint8", 3).identity
    assert PixelFormat("uint8", 0.0).identity == ["uint8", "0.0"]
    assert picture_format("uint8", 2).of_values
