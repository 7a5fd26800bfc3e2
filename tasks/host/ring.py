"""The ring of memory files through which pixels reach the child and results come back.

The host only reads and writes the files, it never maps them: a child that shortens or rewrites a file can
spoil its own result, not the host's memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 64


class Ring:
    """``count`` slots, each with a memory file for the input and one for the output; they grow as needed."""

    def __init__(self, count: int) -> None:
        self._slots = [
            (os.memfd_create(f"chipline-in-{number}", 0), os.memfd_create(f"chipline-out-{number}", 0))
            for number in range(count)
        ]

    @property
    def descriptors(self) -> list[tuple[int, int]]:
        """(input, output) file descriptors by slot."""
        return list(self._slots)

    def write(self, slot: int, arrays: Sequence[npt.NDArray[Any]]) -> list[dict[str, Any]]:
        """Puts arrays into a slot; what the child needs to see them as arrays again."""
        offset, described = 0, []
        for array in arrays:
            whole = np.ascontiguousarray(array)
            described.append({"offset": offset, "shape": list(whole.shape), "dtype": whole.dtype.str})
            if whole.size:
                _write_all(self._slots[slot][0], whole.data.cast("B"), offset)
            offset += -(-whole.nbytes // _ALIGNMENT) * _ALIGNMENT
        return described

    def read_array(self, slot: int, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
        """A copy of the result array; None when the file is shorter than the child said."""
        array: npt.NDArray[Any] = np.empty(tuple(shape), dtype)
        if array.size == 0:
            return array
        view = array.data.cast("B")
        return array if _read_all(self._slots[slot][1], view) else None

    def read_bytes(self, slot: int, count: int) -> bytes | None:
        """A copy of the result bytes; None when the file is shorter than the child said."""
        data = bytearray(count)
        return bytes(data) if _read_all(self._slots[slot][1], memoryview(data)) else None

    def close(self) -> None:
        """Closes the host's side of the files."""
        for pair in self._slots:
            for descriptor in pair:
                os.close(descriptor)
        self._slots = []


class Parcel:
    """One memory file for bytes that a function gives at the end of its start, or gets at its beginning.

    Apart from the ring, so that what is as large as a network's weights does not stay in one of its slots.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("chipline-parcel", 0)

    def write(self, data: bytes) -> None:
        """Puts bytes into it."""
        _write_all(self.descriptor, memoryview(data), 0)

    def read(self, count: int) -> bytes | None:
        """A copy of what the child put into it; None when that is shorter than the child said."""
        data = bytearray(count)
        return bytes(data) if _read_all(self.descriptor, memoryview(data)) else None

    def clear(self) -> None:
        """Gives the memory back. The child reads it and never maps it."""
        os.ftruncate(self.descriptor, 0)

    def close(self) -> None:
        """Closes the host's side of it."""
        os.close(self.descriptor)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _read_all(descriptor: int, into: memoryview) -> bool:
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], done)
        if count == 0:
            return False
        done += count
    return True
