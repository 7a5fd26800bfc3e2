"""Variations keep geometry true: masks and boxes go where an independent calculation puts them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.train.normalisation import Normalisation
from tasks.train.recipes import Recipe, steps_of
from tasks.train.variations import View, crop, resize, vary, view_of

ROWS, COLS = 60, 80
Box = tuple[float, float, float, float]


def ramp() -> View:
    """Every pixel of picture, labels and mask of what is unknown tells its column."""
    columns = torch.arange(COLS).expand(ROWS, COLS)
    image = (columns / 100.0).float()[None].contiguous()
    return view_of(image, columns[None].to(torch.uint8).contiguous(), columns[None].int().contiguous())


def recipe(*pairs: list[str], upright: bool = False) -> Recipe:
    return Recipe(False, upright, 0.0, 0.0, 0.0, 0.0, steps=steps_of(pairs))


def scale(bands: int) -> Normalisation:
    return Normalisation((0.0,) * bands, (200.0,) * bands, (0.4,) * bands, (0.2,) * bands, imagenet=False)


def drawn(box: Box, bands: int = 5) -> View:
    """A bright box on a dark ground, its mask, and itself."""
    left, top, right, bottom = (int(edge) for edge in box)
    mask = torch.zeros((1, ROWS, COLS), dtype=torch.int32)
    mask[0, top:bottom, left:right] = 70_000  # more than 16 bits
    pixels = np.full((bands, ROWS, COLS), 40, np.uint16)
    pixels[:, top:bottom, left:right] = 190
    image = torch.from_numpy(scale(bands).apply(pixels))
    return view_of(image, None, mask, torch.tensor([box], dtype=torch.float32))


def bounds(mask: torch.Tensor) -> list[int]:
    rows, cols = np.flatnonzero(mask.any(dim=1).numpy()), np.flatnonzero(mask.any(dim=0).numpy())
    return [int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1]


inner_boxes = st.tuples(st.integers(24, 36), st.integers(18, 26), st.integers(44, 56), st.integers(34, 42))


@settings(deadline=None, max_examples=40)
@given(box=inner_boxes, degrees=st.floats(-180, 180))
def test_a_rotation_is_the_one_about_the_middle(box: Box, degrees: float) -> None:
    view = vary(drawn(box), recipe(["rotate", f"({degrees},{degrees})"]), scale(5), rng(), outside=0)
    assert view.layers is not None
    assert view.boxes is not None
    # The oracle: each pixel's centre turned back, anticlockwise as seen, with y downwards.
    angle = math.radians(degrees)
    y, x = np.mgrid[:ROWS, :COLS] + 0.5
    dx, dy = x - COLS / 2, y - ROWS / 2
    back_x = COLS / 2 + dx * math.cos(angle) - dy * math.sin(angle)
    back_y = ROWS / 2 + dx * math.sin(angle) + dy * math.cos(angle)
    left, top, right, bottom = box
    expected = (back_x > left) & (back_x < right) & (back_y > top) & (back_y < bottom)
    found = view.layers[0].numpy() == 70_000
    assert set(np.unique(view.layers[0])) <= {0, 70_000}
    edge = np.abs(back_x - left) < 1e-3
    for value, line in ((back_x, right), (back_y, top), (back_y, bottom)):
        edge |= np.abs(value - line) < 1e-3  # a centre on the very edge may fall to either side
    np.testing.assert_array_equal(found[~edge], expected[~edge])
    # The box is the bounds of what the mask has become.
    np.testing.assert_allclose(view.boxes[0].numpy(), bounds(torch.from_numpy(found)), atol=1.0)
    # What no chip shows is unknown, and looks as it does in inference.
    outside = (back_x < 0) | (back_x > COLS) | (back_y < 0) | (back_y > ROWS)
    unknown = view.unknown[0].numpy() == 1
    assert (unknown != outside).mean() < 0.02
    np.testing.assert_allclose(view.image[:, unknown].numpy(), scale(5).nothing[0])


@settings(deadline=None, max_examples=40)
@given(box=inner_boxes, factor=st.floats(1, 3), seed=st.integers(0, 99))
def test_a_zoom_enlarges_about_some_place(box: Box, factor: float, seed: int) -> None:
    view = vary(drawn(box), recipe(["zoom", f"{factor};1"]), scale(5), rng(seed), outside=0)
    assert view.layers is not None
    assert view.boxes is not None
    assert view.shape == (ROWS, COLS)
    left, top, right, bottom = view.boxes[0].tolist()
    grown = [(right - left) / (box[2] - box[0]), (bottom - top) / (box[3] - box[1])]
    np.testing.assert_allclose(grown, factor, rtol=0.03)
    assert view.area == pytest.approx(grown[0] * grown[1], rel=1e-3)
    cut = [max(left, 0), max(top, 0), min(right, COLS), min(bottom, ROWS)]
    if cut[2] - cut[0] > 2 and cut[3] - cut[1] > 2:
        np.testing.assert_allclose(bounds(view.layers[0] > 0), cut, atol=1.0)
        inside = view.image[0][view.layers[0] > 0]
        assert (inside > 0).float().mean() > 0.8  # 190 of 200 is bright, 40 is dark


@settings(deadline=None, max_examples=30)
@given(box=inner_boxes, seed=st.integers(0, 99), upright=st.booleans())
def test_turns_and_crops_move_what_is_there(box: Box, seed: int, upright: bool) -> None:
    steps = recipe(["dihedral", "1"], ["crop", "32;1;(0.2,0.8);0.5"], upright=upright)
    view = vary(drawn(box), steps, scale(5), rng(seed), outside=0)
    assert view.layers is not None
    assert view.boxes is not None
    assert view.shape == (32, 32)
    assert view.cropped
    cut = np.clip(view.boxes[0].numpy(), 0, 32)
    if (cut[2:] > cut[:2]).all():
        assert bounds(view.layers[0] > 0) == cut.astype(int).tolist()
    np.testing.assert_array_equal((view.image[2] > 0).numpy(), (view.layers[0] > 0).numpy())


def test_upright_pictures_are_mirrored_left_to_right_only() -> None:
    seen = set()
    for seed in range(20):
        view = vary(
            drawn((4, 4, 20, 30)), recipe(["dihedral", "1"], upright=True), scale(5), rng(seed), outside=0
        )
        assert view.layers is not None
        seen.add(tuple(bounds(view.layers[0] > 0)))
    assert seen == {(4, 4, 20, 30), (60, 4, 76, 30)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def undone(view: View) -> np.ndarray:
    return scale(len(view.image)).undo(view.image.numpy())


@pytest.mark.parametrize(("change", "expected"), [("0", 0.0), ("0.5", 40.0), ("1", 200.0), ("0.25", 20.0)])
def test_brightness_goes_from_black_to_white(change: str, expected: float) -> None:
    view = vary(drawn((4, 4, 5, 5)), recipe(["brightness", change]), scale(5), rng(), outside=0)
    np.testing.assert_allclose(undone(view)[:, 30:], expected, atol=1e-3)


def test_contrast_is_about_the_mean_of_what_is_known() -> None:
    pixels = np.random.default_rng(0).integers(20, 180, (4, ROWS, COLS)).astype(np.float32)
    known = np.ones(pixels.shape, bool)
    known[:, :, :30] = False
    known[2] = False  # a band that shows nothing at all
    image = torch.from_numpy(scale(4).apply(pixels, known=known))
    for factor in (0.0, 1.0, 1.5):
        view = view_of(image, torch.from_numpy((~known).astype(np.uint8)))
        view = vary(view, recipe(["contrast", str(factor)]), scale(4), rng(), outside=0)
        found = undone(view)
        for band in (0, 1, 3):
            before = pixels[band, :, 30:]
            expected = (before - before.mean()) * factor + before.mean()
            np.testing.assert_allclose(found[band, :, 30:], expected, atol=0.02)
        np.testing.assert_allclose(found[~known], 0.0, atol=1e-3)


def test_a_probability_is_one() -> None:
    turned = 0
    for seed in range(400):
        view = vary(drawn((24, 18, 44, 34)), recipe(["dihedral", "0.25"]), scale(5), rng(seed), outside=0)
        turned += not torch.equal(view.image, drawn((24, 18, 44, 34)).image)
    assert turned / 400 == pytest.approx(0.25 * 7 / 8, abs=0.06)


def test_a_window_is_cut_from_all_alike() -> None:
    view = crop(drawn((24, 18, 44, 34)), 10, 20, 30, 40)
    assert view.layers is not None
    assert view.boxes is not None
    assert bounds(view.layers[0] > 0) == view.boxes[0].int().tolist() == [4, 8, 24, 24]


# Of no two of these widths does a centre fall between two pixels, where either would be right.
@pytest.mark.parametrize("cols", [48, 80, 97, 112])
def test_labels_and_what_is_unknown_lie_where_the_picture_does(cols: int) -> None:
    view = resize(ramp(), 48, cols)
    assert view.layers is not None
    picture = 100.0 * view.image[0, 0, 2:-2]
    for layer in (view.layers, view.unknown):
        assert layer.shape == (1, 48, cols)
        apart = layer[0, 0, 2:-2] - picture
        assert abs(float(apart.mean())) < 0.02
        assert float(apart.abs().max()) <= 0.51
    assert view.layers.dtype == torch.int32
    assert view.unknown.dtype == torch.uint8
