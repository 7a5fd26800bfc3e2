"""Thinning keeps what is connected, takes nothing away for good, and looks no further than it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from tasks.package.functions.chipline_lines import REACH, thinned

ALL = np.ones((3, 3))


def thin(mask: NDArray[np.bool_], rounds: int = 100) -> NDArray[np.bool_]:
    made: NDArray[np.bool_] = thinned(torch.from_numpy(mask)[None], rounds)[0].numpy()
    return made


def blobs(seed: int, width: float, size: int = 96) -> NDArray[np.bool_]:
    noise = np.random.default_rng(seed).normal(size=(size, size))
    mask: NDArray[np.bool_] = ndimage.gaussian_filter(noise, width) > 0
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_thin_lines_are_connected_as_the_areas_were(seed: int) -> None:
    mask = blobs(seed, 1 + seed % 3)
    lines = thin(mask)
    assert not (lines & ~mask).any()
    before, count = ndimage.label(mask, ALL)
    _, left = ndimage.label(lines, ALL)
    assert left == count == len(np.unique(before[lines]))  # every area keeps one line
    # Holes stay: what is not of a line is connected by sides.
    holes = [ndimage.label(np.pad(~part, 1, constant_values=True))[1] for part in (mask, lines)]
    assert holes[0] == holes[1]
    np.testing.assert_array_equal(thin(lines), lines)
    # One pixel wide, but for a few crossings.
    squares = lines[:-1, :-1] & lines[1:, :-1] & lines[:-1, 1:] & lines[1:, 1:]
    assert squares.sum() < 0.01 * lines.sum()


def test_a_bar_becomes_its_middle_line() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:19, 5:50] = True
    lines = thin(mask)
    assert set(np.flatnonzero(lines[:, 20:40].any(axis=1))) == {14}
    assert lines[14, 10:45].all()


def test_nothing_further_than_it_says_changes_a_pixel() -> None:
    mask, rounds = blobs(9, 3, 120), 5
    reach = rounds * REACH
    whole = thin(mask, rounds)
    for row, col in ((0, 0), (17, 31), (40, 64)):
        part = thin(mask[row : row + 56, col : col + 56], rounds)
        inner = (slice(reach, -reach),) * 2
        np.testing.assert_array_equal(part[inner], whole[row : row + 56, col : col + 56][inner])


def test_many_at_once_are_thinned_one_by_one() -> None:
    masks = np.stack([blobs(seed, 2, 48) for seed in range(3)])
    together = thinned(torch.from_numpy(masks), 50).numpy()
    for mask, lines in zip(masks, together, strict=True):
        np.testing.assert_array_equal(thin(mask, 50), lines)
