"""Planted leakage is caught, planted errors of scale are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import TrainingDataError
from tasks.train import leakage as leakage_module
from tasks.train.leakage import find_leakage, refuse_leakage, without
from tasks.train.normalisation import check_scale
from tasks.train.splits import Split
from tasks.training_data import BandStats, TrainingData, open_training_data
from tests.unit.train.test_checkpoints import train

MakeData = Callable[..., TrainingData]


def copied(data: TrainingData, source: int, target: int, code: int) -> None:
    """Plant the picture of one chip as another, turned or mirrored."""
    pixels = np.asarray(Image.open(data.chips[source].image))
    turned = np.rot90(pixels, code % 4)
    Image.fromarray(turned[:, ::-1] if code > 3 else turned).save(data.chips[target].image)


@pytest.mark.parametrize("code", range(8))
def test_a_copy_is_found_however_it_is_turned(make_data: MakeData, code: int) -> None:
    data = make_data(count=6, size=64)
    copied(data, 5, 1, code)
    split = Split((0, 1, 2, 3), (4, 5), ())
    leakage = find_leakage(data.chips, [None] * 6, split)
    assert leakage.copies == (1,)
    assert without(split, leakage) == Split((0, 2, 3), (4, 5), (1,))
    with pytest.raises(TrainingDataError, match="1 of 4 training chips leak"):
        refuse_leakage(leakage, 4)


def test_empty_chips_are_no_copies_and_footprints_count(make_data: MakeData) -> None:
    data = make_data(count=4, size=64)
    for index in (0, 3):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(data.chips[index].image)
    split = Split((0, 1), (2, 3), ())
    apart = [(100.0 * i, 0.0, 100.0 * i + 64, 64.0) for i in range(4)]
    assert find_leakage(data.chips, apart, split).chips == ()
    near = [*apart[:1], (210.0, 0.0, 274.0, 64.0), *apart[2:]]
    assert find_leakage(data.chips, near, split).overlapping == (1,)


def test_a_given_split_is_judged(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data("west", metadata_format="Classified_Tiles", size=64, count=8)
    other = make_data("east", metadata_format="Classified_Tiles", size=64, count=4, seed=9)
    for chip in other.chips:  # 10 km to the east
        world = chip.image.with_suffix(".pgw")
        lines = world.read_text().split("\n")
        world.write_text("\n".join([*lines[:4], str(float(lines[4]) + 10_000), *lines[5:]]))
    other = open_training_data(other.folder)
    result = train(data, tmp_path, None, apart=[other])
    counted = {"train": 8, "validation": 4, "dropped": 0, "copies": 0, "buffer": 0.0, "split_by": "folder"}
    assert result.metrics["chips"] == counted
    shutil.copy(data.chips[2].image, other.chips[1].image)
    with pytest.raises(TrainingDataError, match=r"1 of 8 training chips leak .* 1 show the same pixels"):
        train(data, tmp_path, None, apart=[other])
    with pytest.raises(TrainingDataError, match="8 share ground"):
        train(data, tmp_path, None, apart=[data])


def test_copies_leave_our_own_split(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(metadata_format="Classified_Tiles", size=64, count=12)
    clean = train(data, tmp_path, None)
    copied(data, clean.split.validation[0], clean.split.train[0], 3)
    caught = train(data, tmp_path, None)
    assert caught.metrics["chips"]["copies"] == 1
    assert clean.split.train[0] in caught.split.dropped


def test_what_is_not_compared_is_said(
    make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage_module, "COMPARED_CHIPS", 11)
    made = train(make_data(metadata_format="Classified_Tiles", size=64, count=12), tmp_path, None)
    assert made.metrics["chips"]["copies"] is None
    assert any("are not compared" in doubt for doubt in made.metrics["doubts"])


@pytest.mark.parametrize(
    ("declared", "fits"),
    [
        (BandStats("b", 0, 255, 60, 50), True),
        (BandStats("b", 0, 200, 60, 60), True),
        (BandStats("b", 0, 1, 0.3, 0.2), False),
        (BandStats("b", 0, 65535, 15000, 12000), False),
    ],
)
def test_a_wrong_scale_is_refused(make_data: MakeData, declared: BandStats, fits: bool) -> None:
    data = replace(make_data(count=4, size=64), declared_stats=(declared,) * 3)
    if fits:
        check_scale([data])
    else:
        with pytest.raises(TrainingDataError, match="do not belong to its chips"):
            check_scale([data])
    check_scale([replace(data, declared_stats=())])
