"""Augmentation keeps labels true: boxes follow the pixels that they were drawn around."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tasks.train import augmentation, datasets
from tasks.train.augmentation import DEFAULT, NONE, VISIBLE_AT_LEAST, Recipe


def painted(rows: int, cols: int, boxes: np.ndarray) -> np.ndarray:
    """The oracle: one mask per box  # (n, rows, cols)."""
    masks = np.zeros((len(boxes), rows, cols), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return masks


def extent(mask: np.ndarray) -> list[int]:
    """Box of a mask: xmin, ymin, xmax, ymax, max edges exclusive."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1]


def random_boxes(rng: np.random.Generator, count: int, rows: int, cols: int) -> np.ndarray:
    left, top = rng.integers(0, cols - 8, count), rng.integers(0, rows - 8, count)
    right = np.minimum(left + rng.integers(2, 20, count), cols)
    bottom = np.minimum(top + rng.integers(2, 20, count), rows)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


@pytest.mark.parametrize("code", range(8))
def test_turned_boxes_enclose_the_turned_pixels(code: int) -> None:
    rng = np.random.default_rng(code)
    rows, cols = 40, 56
    boxes = random_boxes(rng, 12, rows, cols)
    turned = augmentation.dihedral(painted(rows, cols, boxes), code)
    moved = augmentation.dihedral_boxes(boxes, code, rows, cols)
    assert [extent(mask) for mask in turned] == moved.astype(int).tolist()


def test_the_eight_codes_are_the_eight_symmetries() -> None:
    image = np.arange(9).reshape(1, 3, 3)
    assert len({augmentation.dihedral(image, code).tobytes() for code in range(8)}) == 8


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_cropped_boxes_enclose_the_cropped_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 20, 60, 60)
    row, col = int(rng.integers(0, 30)), int(rng.integers(0, 30))
    cut, kept = augmentation.crop_boxes(boxes, row, col, 30, 30)
    whole = painted(60, 60, boxes)
    inside = whole[:, row : row + 30, col : col + 30]
    for index in range(len(boxes)):
        seen = inside[index].sum() / whole[index].sum()
        if kept[index]:
            assert seen >= VISIBLE_AT_LEAST
            assert extent(inside[index]) == cut[index].astype(int).tolist()
        else:
            sides = cut[index, 2:] - cut[index, :2]
            assert seen < VISIBLE_AT_LEAST or sides.min() <= 1


def test_windows_stay_inside_the_chip() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        row, col, edge = augmentation.draw_window(100, 120, 96, DEFAULT, rng)
        assert 0 <= row <= 100 - edge
        assert 0 <= col <= 120 - edge
        assert 78 <= edge <= 100
    assert augmentation.draw_window(96, 96, 96, NONE, rng) == (0, 0, 96)


def test_no_augmentation_changes_no_value() -> None:
    assert augmentation.draw_code(NONE, np.random.default_rng(1)) == 0
    contrast, shift = augmentation.draw_colours(NONE, 3, np.random.default_rng(1))
    assert contrast == 1.0
    assert not shift.any()


def test_colours_vary_within_their_bounds() -> None:
    drawn = [augmentation.draw_colours(DEFAULT, 3, np.random.default_rng(seed)) for seed in range(200)]
    contrasts = np.array([contrast for contrast, _ in drawn])
    shifts = np.array([shift for _, shift in drawn])
    assert np.abs(contrasts - 1).max() <= DEFAULT.contrast
    assert DEFAULT.brightness < np.abs(shifts).max() <= DEFAULT.brightness + DEFAULT.tint
    assert np.ptp(shifts, axis=1).min() > 0  # one shift per band


def test_pictures_with_an_up_are_mirrored_only() -> None:
    codes = {augmentation.draw_code(Recipe(upright=True), np.random.default_rng(seed)) for seed in range(30)}
    assert codes == {0, 1}


@pytest.mark.parametrize(("rows", "cols"), [(7, 5), (16, 16), (40, 24), (17, 11)])
def test_nearest_is_torchs_that_knows_of_centres(rows: int, cols: int) -> None:
    layers = np.random.default_rng(0).integers(0, 250, (2, 16, 12)).astype(np.uint8)
    expected = functional.interpolate(
        torch.from_numpy(layers)[None], size=(rows, cols), mode="nearest-exact"
    )[0]
    np.testing.assert_array_equal(augmentation.nearest(layers, rows, cols), expected)


@pytest.mark.parametrize("old", [210, 233, 256, 280, 300])
def test_labels_lie_where_the_picture_does(old: int) -> None:
    """Both show the number of their column: what is told apart is by how much they are shifted."""
    ramp = np.tile(np.arange(old, dtype=np.float32), (8, 1))
    picture = datasets._resized(torch.from_numpy(ramp)[None], 8, 256)[0, 0].numpy()
    labels = augmentation.nearest(ramp.astype(np.int32), 8, 256)[0]
    inner = slice(2, -2)  # beyond the outermost columns nothing can be interpolated
    assert abs((labels - picture)[inner].mean()) < 0.02
    assert np.abs(labels - picture)[inner].max() <= 0.51


def test_padding_fills_to_the_right_and_below() -> None:
    array = np.ones((2, 3, 5), np.uint8)
    filled = augmentation.padded(array, 4, 4, 9)
    assert filled.shape == (2, 4, 5)
    assert (filled[:, :3] == 1).all()
    assert (filled[:, 3] == 9).all()
    assert augmentation.padded(array, 3, 2, 9) is array
