"""What a sample of tiles makes sure of: an engine is judged by the lower end of an interval."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

import tasks.package.functions as home

sys.path.append(str(Path(home.__file__).parent))
agreement: Any = importlib.import_module("chipline_agreement")

TILE = 64


def judged(wanted: Any, found: Any) -> Any:
    judge = agreement.Classes()
    return judge.judged(judge.compare(wanted, found))


def tiles(count: int, wrong: Any, classes: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """Tiles of random classes, and the same with so many wrong pixels in each."""
    generator = np.random.default_rng(seed)
    wanted = generator.integers(0, classes, (count, TILE, TILE)).astype(np.uint16)
    found = wanted.copy()
    for tile, number in zip(found, np.broadcast_to(wrong, count).tolist(), strict=True):
        places = generator.choice(TILE * TILE, number, replace=False)
        tile.reshape(-1)[places] = (tile.reshape(-1)[places] + 1) % classes
    return wanted, found


def test_the_point_is_the_mean_iou_and_rare_classes_count_by_pixels() -> None:
    wanted, found = tiles(4, 900, classes=3)
    oracle = jaccard_score(wanted.ravel(), found.ravel(), average="macro")
    assert judged(wanted, found).point == pytest.approx(oracle)
    # A class of three pixels, all wrong: its IoU of 0 says little, the three pixels count.
    rare = np.zeros((1, 100, 100), np.uint16)
    other = rare.copy()
    other[0, 0, :3] = 1
    assert judged(rare, other).point == pytest.approx(0.9997)


def test_rare_classes_count_together() -> None:
    wanted = np.zeros((8, 200, 200), np.uint16)
    # Thirty classes of 48 pixels each, half of them lost: too rare each, not together.
    wanted[:, :3, :20] = 1 + np.arange(60).reshape(3, 20) // 2
    wanted[:, 3:6, :20] = wanted[:, :3, :20]
    wanted[:, 6:9, :20] = wanted[:, :3, :20]
    found = wanted.copy()
    found[:, :, :10] = 0
    seen = judged(wanted, found)
    assert seen.point == pytest.approx((0.5 + seen.classes["0"]) / 2, abs=1e-3)
    assert not seen.passes


def test_errors_in_one_tile_make_the_rest_unsure() -> None:
    # 0.1 % of all pixels: an IoU of 0.998 in both cases, if it stood alone.
    even, uneven = (judged(*tiles(32, wrong)) for wrong in (1, np.where(np.arange(32) == 7, 32, 0)))
    assert even.point == pytest.approx(uneven.point, abs=1e-5)
    assert even.low == pytest.approx(even.point, abs=1e-5)
    assert uneven.low < even.low - 0.0005
    assert uneven.high == 1
    assert (even.passes, uneven.passes) == (True, False)
    assert not uneven.clear
    assert "makes sure of 0.99" in uneven.words()


def test_the_interval_holds_what_other_tiles_show() -> None:
    """Of many samples out of one work, the lower ends lie above the work's own agreement in few."""
    generator = np.random.default_rng(1)
    everything = generator.gamma(0.5, 8, 1000).astype(int)  # unevenly hard tiles
    wanted, found = tiles(1000, everything)
    judge = agreement.Classes()
    entries = judge.compare(wanted, found)
    whole = judge.judged([tuple(np.sum([entry[part] for entry in entries], axis=0) for part in (0, 1))]).point
    above = 0
    for _ in range(60):
        sample = [entries[number] for number in generator.choice(1000, 32, replace=False)]
        above += judge.judged(sample).low > whole
    assert above <= 4


def test_objects_are_judged_by_tiles_too() -> None:
    right, every = np.array([10.0] * 19 + [9.0]), np.full(20, 10.0)
    seen = agreement.ratio(right, every)
    assert seen.point == pytest.approx(0.995)
    assert seen.low < 0.99
    assert seen.high == 1
    assert seen.size == 200
    perfect = agreement.ratio(every, every)
    assert (perfect.low, perfect.passes) == (1, True)


def test_a_class_that_few_tiles_hold_counts() -> None:
    wanted, found = tiles(32, 0)
    wanted[3, :40, :40] = 2
    found[3, :40, :40] = 2
    found[3, :4, :40] = 1  # a tenth of the only place of a class
    seen = judged(wanted, found)
    assert seen.classes["2"] == pytest.approx(0.9)
    assert seen.low < 0.97
    assert not seen.passes
