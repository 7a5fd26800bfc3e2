"""Blocks of chips, intervals over them, calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.assess.calibration import BINS, Calibration
from tasks.assess.chips import ALL, blocks_of, object_intervals, pixel_intervals
from tasks.assess.objects import Matches


def test_blocks_are_squares_of_two_chips_and_strangers_stand_alone() -> None:
    grid = [(64.0 * x, 64.0 * y, 64.0 * x + 64, 64.0 * y + 64) for y in range(2) for x in range(6)]
    blocks = blocks_of([*grid, None, None])
    assert blocks.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 3, 4]
    assert blocks_of([]).tolist() == []


def test_the_interval_holds_the_value_and_narrows_with_more_ground() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for chips in (12, 120):
        shares = rng.uniform(0.5, 0.9, chips)
        confusions = np.zeros((chips, 3, 3), np.int64)
        for part, share in zip(confusions, shares, strict=True):
            part[0, 0], part[1, 1], part[1, 0] = 500, int(100 * share), 100 - int(100 * share)
        found = pixel_intervals(confusions, np.arange(chips), ["Background", "Tree", "Absent"])
        low, high = found["Tree"]["recall"]
        assert low < confusions[:, 1, 1].sum() / (100 * chips) < high
        assert found["Tree"] == found[ALL]
        assert all(math.isnan(end) for end in found["Absent"]["iou"])
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_intervals_of_average_precision_follow_the_chips() -> None:
    def chip(found: bool) -> Matches:
        truth = np.array([0 if found else -1], np.intp)
        one, score = np.ones(1, np.int64), np.array([0.9 if found else 0.8])
        return Matches(one, score, truth, np.ones(1, bool), one, np.ones(1, bool))

    chips = [chip(found) for found in (True, False, True, False, True, True)]
    low, high = object_intervals(chips, np.arange(6), [1], ["Tree"])["Tree"]["ap"]
    assert low < 4 / 6 < high
    same = object_intervals([chip(True)] * 6, np.arange(6), [1], ["Tree"])
    assert same["Tree"]["ap"] == same[ALL]["ap"] == (1.0, 1.0)
    one_block = object_intervals(chips, np.zeros(6, np.int64), [1], ["Tree"])
    assert math.isnan(one_block["Tree"]["ap"][0])


def test_calibration_is_the_weighted_distance_per_bin() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random(5000)
    right = rng.random(5000) < confidence**2
    measured = Calibration()
    for part in np.array_split(np.arange(5000), 7):
        measured.add(confidence[part], right[part])
    expected = 0.0
    for index in range(BINS):
        inside = (confidence > index / BINS) & (confidence <= (index + 1) / BINS)
        expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert measured.error == pytest.approx(expected)
    assert math.isnan(Calibration().error)
