from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tasks.assess.bootstrap import Floats, block_bootstrap


def mean_of(values: Floats) -> Callable[[Floats], Floats]:
    return lambda weights: np.array([(weights * values).sum() / weights.sum()])


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    interval = block_bootstrap(400, mean_of(values), replicates=2000)
    error = values.std() / 20
    assert abs(interval.low[0] - (values.mean() - 1.96 * error)) < 0.25 * error
    assert abs(interval.high[0] - (values.mean() + 1.96 * error)) < 0.25 * error


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(150):
        values = random.normal(0, 1, 60)
        interval = block_bootstrap(60, mean_of(values), replicates=200, level=0.9, seed=trial)
        covered += bool(interval.low[0] <= 0 <= interval.high[0])
    assert 0.82 <= covered / 150 <= 0.96


def test_one_seed_gives_one_interval() -> None:
    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.array([weights[0], weights[1]])

    first, again = (block_bootstrap(9, statistic, replicates=50, seed=4) for _ in range(2))
    assert np.array_equal(first.low, again.low)
    assert np.array_equal(first.high, again.high)


def test_too_little_to_tell_is_said_by_nan() -> None:
    alone = block_bootstrap(1, lambda w: w)
    assert np.isnan([alone.low, alone.high]).all()
    rarely = block_bootstrap(20, lambda w: np.array([1.0 if w[0] > 3 else np.nan, w.sum()]), replicates=100)
    assert np.isnan(rarely.low[0])
    assert rarely.low[1] == rarely.high[1] == 20
