"""The spatial split: never a leak, every chip placed once, its share of labels."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.errors import TrainingDataError
from tasks.train.splits import Footprint, Split, check_no_leak, split_by_lot, split_spatially


def grid(columns: int, rows: int, *, tile: float, stride: float, jitter: float = 0.0) -> list[Footprint]:
    """Chips on a grid, row by row."""
    corners = [(c * stride + jitter * r, r * stride) for r in range(rows) for c in range(columns)]
    return [(x, y, x + tile, y + tile) for x, y in corners]


def overlapping_pairs(footprints: list[Footprint], split: Split) -> list[tuple[int, int]]:
    """The oracle: every pair of a training and a validation chip, one by one."""
    boxes = [shapely.box(*footprint) for footprint in footprints]
    return [
        (t, v) for t in split.train for v in split.validation if boxes[t].intersection(boxes[v]).area > 1e-4
    ]


@settings(deadline=None, max_examples=60)
@given(
    columns=st.integers(2, 12),
    rows=st.integers(2, 12),
    stride=st.sampled_from([25.6, 38.4, 51.2, 60.0]),
    percent=st.floats(1, 60),
    seed=st.integers(0, 5),
    jitter=st.sampled_from([0.0, 7.3]),
)
def test_no_training_chip_overlaps_a_validation_chip(
    columns: int, rows: int, stride: float, percent: float, seed: int, jitter: float
) -> None:
    footprints = grid(columns, rows, tile=51.2, stride=stride, jitter=jitter)
    try:
        split = split_spatially(footprints, percent, seed=seed)
    except TrainingDataError:
        # Right only where a validation area as large as asked for leaves no chip untouched.
        assume(percent < 20 and columns * rows >= 60)
        raise
    assert sorted(split.train + split.validation + split.dropped) == list(range(len(footprints)))
    assert split.train
    assert split.validation
    assert not overlapping_pairs(footprints, split)
    check_no_leak(footprints, split)
    wanted = max(1, round(len(footprints) * percent / 100))
    assert len(split.validation) == min(wanted, len(footprints) - 1)


def test_dropped_chips_are_exactly_those_that_overlap_validation_chips() -> None:
    footprints = grid(10, 10, tile=2, stride=1)
    split = split_spatially(footprints, 20, seed=3, buffer=0)
    validation = shapely.union_all([shapely.box(*footprints[i]) for i in split.validation])
    touched = {
        i
        for i, footprint in enumerate(footprints)
        if shapely.box(*footprint).intersection(validation).area > 1e-6
    }
    assert set(split.dropped) == touched - set(split.validation)


def test_chips_that_only_touch_are_not_dropped() -> None:
    # World files round to ten decimals, so that shared edges may differ a little.
    footprints = [(x + 1e-9, y, x2 - 2e-9, y2) for x, y, x2, y2 in grid(6, 6, tile=38.4, stride=38.4)]
    assert not split_spatially(footprints, 25, seed=1, buffer=0).dropped


def test_a_chips_width_lies_between_training_and_validation() -> None:
    for stride in (1.0, 0.5, 0.7):
        footprints = grid(14, 11, tile=1.0, stride=stride)
        split = split_spatially(footprints, 12, seed=2)
        boxes = [shapely.box(*footprint) for footprint in footprints]
        validation = shapely.union_all([boxes[i] for i in split.validation])
        assert split.buffer == 1
        # Chebyshev distance: a buffer with square corners.
        wide = [
            shapely.box(*(b.bounds[0] - 1, b.bounds[1] - 1, b.bounds[2] + 1, b.bounds[3] + 1)) for b in boxes
        ]
        for index in split.train:
            assert wide[index].intersection(validation).area < 1e-4
        assert min(wide[index].intersection(validation).area for index in split.dropped) > 1e-4
        assert len(split.train) >= 0.5 * (len(footprints) - len(split.validation))


def test_a_buffer_that_costs_too_much_is_not_kept_and_that_is_told() -> None:
    split = split_spatially(grid(2, 2, tile=1, stride=1), 25, seed=1)
    assert (split.buffer, len(split.train), split.dropped) == (0.0, 3, ())


def test_chips_without_a_place_are_drawn_by_kind() -> None:
    groups = ["a"] * 40 + ["b"] * 20 + ["c"] * 5 + ["d"]
    split = split_by_lot(groups, 20, seed=1)
    assert split == split_by_lot(groups, 20, seed=1)
    assert split != split_by_lot(groups, 20, seed=2)
    assert (split.by, split.dropped) == ("lot", ())
    assert sorted((*split.train, *split.validation)) == list(range(66))
    kept = [groups[index] for index in split.validation]
    assert [kept.count(name) for name in "abcd"] == [8, 4, 1, 0]
    assert len(split_by_lot(["a"] * 3, 1, seed=1).validation) == 1
    with pytest.raises(TrainingDataError, match="2 chips of 2 kinds"):
        split_by_lot(["a", "b"], 50, seed=1)


def test_the_same_arguments_give_the_same_split() -> None:
    footprints = grid(9, 7, tile=2, stride=1)
    assert split_spatially(footprints, 15, seed=4) == split_spatially(footprints, 15, seed=4)


def test_validation_chips_hold_their_share_of_the_labels() -> None:
    footprints = grid(12, 12, tile=2, stride=1)
    amounts = [1.0 if index % 12 >= 6 else 0.0 for index in range(144)]  # labels in the east only
    split = split_spatially(footprints, 15, seed=1, amounts=amounts)
    share = sum(amounts[i] for i in split.validation) / sum(amounts)
    assert 0.07 <= share <= 0.25
    assert split.buffer == 1
    assert len(split.dropped) < 60


def test_large_sets_get_several_clusters() -> None:
    footprints = grid(60, 60, tile=1, stride=1)
    split = split_spatially(footprints, 10, seed=1)
    union = shapely.union_all([shapely.box(*footprints[i]) for i in split.validation])
    assert len(split.validation) == 360
    assert len(shapely.get_parts(union)) > 1
    # Compact: squares have far shorter borders than scattered chips.
    assert union.length < 4 * 360 / 3


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_chips_are_refused(count: int) -> None:
    with pytest.raises(TrainingDataError, match="Export more chips"):
        split_spatially(grid(1, 1, tile=1, stride=1)[:count], 10, seed=1)


def test_chips_that_all_overlap_are_refused() -> None:
    with pytest.raises(TrainingDataError, match="stride_size"):
        split_spatially([(0.0, 0.0, 1.0, 1.0)] * 5, 20, seed=1)


def test_the_leak_check_sees_a_leak() -> None:
    footprints = grid(3, 1, tile=2, stride=1)
    with pytest.raises(TrainingDataError, match="overlap validation"):
        check_no_leak(footprints, Split(train=(0, 2), validation=(1,), dropped=()))
    with pytest.raises(TrainingDataError, match="every chip once"):
        check_no_leak(footprints, Split(train=(0,), validation=(2,), dropped=()))


def test_many_chips_are_split_quickly() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1000, size=(20_000, 2))
    footprints = [(x, y, x + 2.0, y + 2.0) for x, y in corners.tolist()]
    split = split_spatially(footprints, 5, seed=1)
    assert len(split.validation) == 1000
