"""Statistics equal numpy's on all pixels together, however the pixels come."""

from __future__ import annotations

import json
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.training_data import statistics
from tasks.training_data.statistics import BandStatistics, ClassStatistics


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
)
def test_merged_statistics_equal_numpy_on_everything(seed: int, pieces: list[int], dtype: str) -> None:
    random = np.random.default_rng(seed)
    chips = [random.uniform(0, 250, (3, rows, 7)).astype(dtype) + np.dtype(dtype).type(3) for rows in pieces]
    valid = [random.random(chip.shape[1:]) < 0.7 for chip in chips]
    merged = reduce(
        BandStatistics.merge,
        [BandStatistics.of(chip, mask) for chip, mask in zip(chips, valid, strict=True)],
        BandStatistics.empty(3),
    )
    for band in range(3):
        values = np.concatenate([chip[band][mask] for chip, mask in zip(chips, valid, strict=True)])
        values = values.astype(np.float64)
        assert merged.count[band] == values.size
        if values.size:
            assert merged.mean[band] == pytest.approx(values.mean(), rel=1e-12)
            assert merged.std[band] == pytest.approx(values.std(), rel=1e-9, abs=1e-9)
            assert (merged.minimum[band], merged.maximum[band]) == (values.min(), values.max())


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("at_once", [1 << 20, 1])
def test_small_integers_are_counted_without_rounding(
    dtype: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_AT_ONCE", at_once)
    limits = np.iinfo(dtype)
    # Among the largest squares that there are, then everything.
    random = np.random.default_rng(3)
    largest = limits.min if limits.min < 0 else limits.max - 1
    values = (random.integers(0, 2, (2, 90, 95)) + largest).astype(dtype)
    values[1] = random.integers(limits.min, limits.max, (90, 95), dtype, endpoint=True)
    for band, row in zip(values, BandStatistics.of(values).to_rows(), strict=True):
        exact = [int(value) for value in band.ravel()]
        total, squares = sum(exact), sum(value * value for value in exact)
        spread = (squares * band.size - total * total) / band.size
        assert row == [band.size, total / band.size, spread, min(exact), max(exact)]


def test_small_differences_on_a_large_mean_are_kept() -> None:
    values = np.float64(1e9) + np.arange(8, dtype=np.float64).reshape(1, 2, 4)
    merged = BandStatistics.of(values[:, :1]).merge(BandStatistics.of(values[:, 1:]))
    assert merged.m2[0] == pytest.approx(42.0, rel=1e-12)


def test_a_chip_without_valid_pixels_changes_nothing() -> None:
    some = BandStatistics.of(np.arange(12, dtype=np.uint8).reshape(1, 3, 4))
    none = BandStatistics.of(np.zeros((1, 3, 4), np.uint8), np.zeros((3, 4), dtype=bool))
    assert some.merge(none).to_rows() == some.to_rows() == none.merge(some).to_rows()


@pytest.mark.parametrize("value", [True, False])
def test_validity_may_be_one_value_for_all(value: bool) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    validity = np.broadcast_to(np.bool_(value), (3, 4))
    written_out = BandStatistics.of(values, validity.copy())
    assert BandStatistics.of(values, validity).to_rows() == written_out.to_rows()


def test_values_that_are_not_finite_do_not_count() -> None:
    values = np.array([[[1.0, np.nan, 3.0, np.inf]]])
    assert BandStatistics.of(values).to_rows() == [[2, 2.0, 2.0, 1.0, 3.0]]


def test_rows_survive_json() -> None:
    stats = BandStatistics.of(np.random.default_rng(1).random((2, 5, 5)))
    again = BandStatistics.from_rows(json.loads(json.dumps(stats.to_rows())))
    assert again.to_rows() == stats.to_rows()


def test_a_class_that_is_not_in_a_tile_counts_as_no_pixels() -> None:
    contents = ClassStatistics([1, 2])
    contents.add_pixels({1: 10})
    contents.add_pixels({1: 4, 2: 6})
    assert contents.images_per_class == {1: 2, 2: 1}
    assert contents.count_per_class == {1: 14, 2: 6}
    assert (contents.size_per_class[2].low, contents.size_per_class[2].mean) == (0, 3)
    assert (contents.classes_per_image.low, contents.classes_per_image.mean) == (1, 1.5)


def test_features_are_counted_with_their_areas() -> None:
    contents = ClassStatistics([1, 2])
    contents.add_features({1: [2.0, 4.0], 2: [1.0]})
    contents.add_features({})
    assert (contents.images, contents.features) == (2, 3)
    assert contents.images_per_class == {1: 1, 2: 1}
    assert contents.size_per_class[1].mean == 3.0
    assert (contents.features_per_image.low, contents.features_per_image.high) == (0, 3)
