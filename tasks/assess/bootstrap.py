"""Confidence intervals by resampling spatial blocks.

Neighbouring objects and pixels resemble each other, so resampling them one by one would make intervals too
narrow; whole blocks of ground are drawn with replacement instead (block bootstrap, percentile interval).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Lower and upper ends, one per statistic; NaN where too few draws define the statistic."""

    low: Floats
    high: Floats


def block_bootstrap(
    blocks: int,
    statistic: Callable[[Floats], Floats],
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of a vector of statistics.

    Args:
        blocks: number of blocks.
        statistic: from how often each block was drawn, (blocks,), to the statistics, (k,); NaN if undefined.
        replicates: number of draws.
        level: share of the draws inside the interval.
        seed: the same seed gives the same interval.

    Returns:
        The interval; NaN with fewer than two blocks, or where fewer than half of the draws are defined.
    """
    width = len(statistic(np.ones(max(blocks, 1))))
    nothing = np.full(width, np.nan)
    if blocks < 2 or replicates < 1:
        return Interval(nothing, nothing.copy())
    random = np.random.default_rng(seed)
    share = np.full(blocks, 1.0 / blocks)
    values = np.stack(
        [statistic(random.multinomial(blocks, share).astype(np.float64)) for _ in range(replicates)]
    )
    defined = np.isfinite(values).sum(axis=0) * 2 >= replicates
    low, high = nothing, nothing.copy()
    tail = 50.0 * (1.0 - level)
    if defined.any():
        low[defined] = np.nanpercentile(values[:, defined], tail, axis=0)
        high[defined] = np.nanpercentile(values[:, defined], 100.0 - tail, axis=0)
    return Interval(low, high)
