"""The learning rate over a training that ends by steps or by time, whichever comes first."""

from __future__ import annotations

import math
import time

_WARM_UP = 0.15
_FIRST = 0.1
_LAST = 0.01


def one_cycle(fraction: float) -> float:
    """Factor of the largest learning rate after a fraction of the training, 0 to 1.

    A linear warm-up, then a cosine (Smith, "Super-Convergence", 2018, in the form without momentum).
    """
    fraction = min(max(fraction, 0.0), 1.0)
    if fraction < _WARM_UP:
        return _FIRST + (1.0 - _FIRST) * fraction / _WARM_UP
    cosine = 0.5 * (1.0 + math.cos(math.pi * (fraction - _WARM_UP) / (1.0 - _WARM_UP)))
    return _LAST + (1.0 - _LAST) * cosine


class Budget:
    """How much of a training is over.

    Args:
        steps: optimiser steps until max_epochs; None before it is known.
        seconds: wall time; None for no limit.
    """

    def __init__(self, *, steps: int, seconds: float | None) -> None:
        self.steps = max(1, steps)
        self.seconds = seconds
        self._started: float | None = None
        self._told: float | None = None

    def start(self, *, spent_s: float = 0.0) -> None:
        """Time runs from here; ``spent_s`` seconds of it are over already."""
        self._started = time.monotonic() - spent_s

    def clock_s(self) -> float:
        """Seconds since the start, by this machine's clock."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def set_clock(self, seconds: float) -> None:
        """From here on it is so late, until the next call: processes that learn together share one time."""
        self._told = seconds

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self.clock_s() if self._told is None else self._told

    def fraction(self, step: int) -> float:
        """0 at the start, 1 at the end; with a time limit, the nearer of both ends decides."""
        by_steps = step / self.steps
        return by_steps if self.seconds is None else max(by_steps, self.elapsed_s / self.seconds)

    @property
    def spent(self) -> bool:
        """Whether the time is over."""
        return self.seconds is not None and self.elapsed_s >= self.seconds
