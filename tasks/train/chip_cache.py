"""Decoded chips in memory, shared by the processes that load them, within a bound.

Loader processes are forked for every pass: what one of them has decoded must not be lost with it, nor kept
once by each.
"""

from __future__ import annotations

import mmap
import multiprocessing
import pickle
from typing import Any

import numpy as np


class ChipCache:
    """What was read of each chip, by its number; processes that are forked later share it.

    Memory is taken as chips come, not before. A chip that no longer fits is not kept.

    Args:
        chips: how many there are.
        limit: bytes that all of them may take together.
    """

    def __init__(self, chips: int, limit: int) -> None:
        self._made_of = (chips, limit)
        self._arena = mmap.mmap(-1, max(limit, 1))
        # By chip: where it begins and how long it is, 0 while it is not there; in the last row how much of
        # the arena is taken.
        self._table = np.frombuffer(mmap.mmap(-1, 16 * (chips + 1)), np.int64).reshape(-1, 2)
        self._lock = multiprocessing.get_context("fork").Lock()

    @property
    def bytes(self) -> int:
        """How much is taken."""
        return int(self._table[-1, 0])

    def __len__(self) -> int:
        return int(np.count_nonzero(self._table[:-1, 1]))

    def get(self, index: int) -> Any:
        """What was put there, a copy of one's own; None where nothing was."""
        start, length = (int(number) for number in self._table[index])
        return pickle.loads(memoryview(self._arena)[start : start + length]) if length else None

    def put(self, index: int, content: Any) -> None:
        """Keep something, unless it is there already or does not fit."""
        if self._table[index, 1]:
            return
        packed = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            start = self.bytes
            if self._table[index, 1] or start + len(packed) > self._made_of[1]:
                return
            self._arena[start : start + len(packed)] = packed
            self._table[-1, 0] = start + len(packed)
            self._table[index, 0] = start
            self._table[index, 1] = len(packed)  # last: from now on it is there

    def __reduce__(self) -> tuple[type[ChipCache], tuple[int, int]]:
        return ChipCache, self._made_of  # a process that is not forked begins with none
