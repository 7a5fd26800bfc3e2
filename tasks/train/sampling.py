"""The order in which chips are learnt from, and where in it a training stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

Draw = tuple[int, int]  # index of the chip, number that decides the augmentation


class DrawSampler(Sampler[Draw]):
    """Every chip once per pass, in an order and with draws that follow from the seed and the pass.

    Args:
        count: chips.
        seed: of the training.
        rank, world: this process, and how many learn together: each takes every ``world``-th chip of the one
            order, and what does not come out even is left out of the pass.
    """

    def __init__(self, count: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count = count
        self.rank = rank
        self.world = world
        self.generator = np.random.default_rng([seed, 0xC41])
        self._begun: dict[str, Any] = dict(self.generator.bit_generator.state)
        self._skipped = 0

    def __len__(self) -> int:
        return self.count // self.world

    def __iter__(self) -> Iterator[Draw]:
        self._begun = dict(self.generator.bit_generator.state)
        order = self.generator.permutation(self.count)
        draws = self.generator.integers(0, 2**31, size=self.count)
        pairs = [(int(index), int(draw)) for index, draw in zip(order, draws, strict=True)]
        skipped, self._skipped = self._skipped, 0
        return iter(pairs[: len(self) * self.world][self.rank :: self.world][skipped:])

    def position(self, taken: int | None) -> dict[str, Any]:
        """Where the training stands, for :meth:`go_to`.

        Args:
            taken: chips of the present pass that this process has learnt from; None: the pass is over.
        """
        if taken is None:
            return {"pass": dict(self.generator.bit_generator.state), "taken": 0}
        return {"pass": self._begun, "taken": taken}

    def go_to(self, position: dict[str, Any]) -> None:
        """The next pass goes on from there."""
        self.generator.bit_generator.state = position["pass"]
        self._skipped = int(position["taken"])
