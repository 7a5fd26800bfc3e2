"""Chips without a place that partly show the same ground are found by their pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tasks.labels.schema import ClassSchema
from tasks.train.leakage import find_leakage
from tasks.train.overlaps import Overlaps
from tasks.train.splits import Split
from tasks.training_data import Chip

SCHEMA = ClassSchema.from_values({1: "Tree"})


def ground(seed: int, size: int = 400, dtype: str = "uint8") -> np.ndarray:
    """Something like imagery: smooth, with a little noise  # (3, size, size)"""
    random = np.random.default_rng(seed)
    smooth = gaussian_filter(random.normal(0, 1, (3, size, size)), (0, 6, 6))
    smooth = smooth / smooth.std() * 30 + 120 + random.normal(0, 2, smooth.shape)
    made: np.ndarray = np.clip(smooth, 0, 255).astype(dtype)
    return made


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("size", [64, 96])
def test_a_shared_part_is_found_at_any_offset(dtype: str, size: int) -> None:
    image = ground(1, dtype=dtype)
    random = np.random.default_rng(4)
    row = col = 150
    overlaps = Overlaps(lambda _number: image[:, row : row + size, col : col + size])
    overlaps.add(7, image[:, row : row + size, col : col + size])
    for _ in range(40):
        down, right = (int(value) for value in random.integers(-size - 8, size + 9, 2))
        chip = image[:, row + down : row + down + size, col + right : col + right + size]
        shared = max(0, size - abs(down)), max(0, size - abs(right))
        found = overlaps.shares(chip)
        # A rectangle of 40 by 40 pixels holds some ten of the windows that are kept.
        if min(shared) >= 40:
            assert found, (down, right)
        if min(shared) == 0:
            assert not found, (down, right)
    for other in range(2, 12):
        assert not overlaps.shares(ground(other, dtype=dtype)[:, :size, :size])


def test_what_has_no_texture_is_nothing_in_common() -> None:
    flat = np.zeros((3, 128, 128), np.uint8)
    flat[:, 64:] = 200
    stripes = np.zeros((3, 128, 128), np.uint8)
    stripes[:, ::2] = 9
    overlaps = Overlaps({0: flat, 1: stripes}.__getitem__)
    overlaps.add(0, flat)
    overlaps.add(1, stripes)
    assert not overlaps.shares(np.roll(flat, 16, axis=1))
    assert not overlaps.shares(stripes)
    assert not Overlaps(lambda _number: flat).shares(flat)  # nothing was added
    assert not overlaps.shares(np.zeros((3, 8, 8), np.uint8))


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def chips_of(folder: Path, encode: Callable[[np.ndarray], bytes], extension: str, stride: int) -> list[Chip]:
    """A row of eight chips of 64 pixels, without world files; then four of other ground."""
    image, other = ground(1, 640), ground(2, 640)
    places = [(image, stride * number) for number in range(8)] + [(other, 70 * n) for n in range(4)]
    chips = []
    for number, (source, col) in enumerate(places):
        path = folder / f"{number:09d}.{extension}"
        path.write_bytes(encode(source[:, 100:164, col : col + 64]))
        chips.append(Chip(path.stem, path, None, None, SCHEMA))
    return chips


# JPEG's blocks of eight pixels decode alike wherever they lie; between them nothing is the same.
@pytest.mark.parametrize(
    ("encode", "extension", "stride", "found"),
    [(_png, "png", 21, (5, 6)), (_jpeg, "jpg", 24, (5, 6)), (_jpeg, "jpg", 21, ())],
)
def test_planted_overlap_is_caught_without_world_files(
    tmp_path: Path, encode: Callable[[np.ndarray], bytes], extension: str, stride: int, found: tuple[int, ...]
) -> None:
    chips = chips_of(tmp_path, encode, extension, stride)
    split = Split((0, 1, 2, 3, 4, 5, 6, 8, 9), (7, 10, 11), ())
    leakage = find_leakage(chips, [None] * len(chips), split)
    assert (leakage.overlapping, leakage.copies) == ((), found)
    # Chips that know their places are compared by these.
    apart = [(1000.0 * number, 0.0, 1000.0 * number + 64, 64.0) for number in range(len(chips))]
    assert find_leakage(chips, apart, split).chips == ()
