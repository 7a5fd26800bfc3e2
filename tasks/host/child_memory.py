"""The child's side of the memory files that it shares with the host; see ``ring.py``.

Standard library and numpy only: the child loads this file by path.
"""

from __future__ import annotations

import mmap
import os
from typing import Any


class Slot:
    """One place of the ring: an input and an output memory file."""

    def __init__(self, input_fd: int, output_fd: int) -> None:
        self.output_fd = output_fd
        self._input_fd = input_fd
        self._map: mmap.mmap | None = None

    def array(self, description: dict[str, Any]) -> Any:
        """A writable array on the input memory, shape and dtype as described."""
        import numpy

        dtype = numpy.dtype(description["dtype"])
        count = 1
        for length in description["shape"]:
            count *= length
        end = description["offset"] + count * dtype.itemsize
        if self._map is None or len(self._map) < end:
            # The host has made the file longer; older arrays keep the older map alive by themselves.
            self._map = mmap.mmap(self._input_fd, os.fstat(self._input_fd).st_size)
        flat = numpy.frombuffer(self._map, dtype=dtype, count=count, offset=description["offset"])
        return flat.reshape(description["shape"])

    def write(self, data: memoryview) -> int:
        """Puts a result into the output memory; its length in bytes."""
        return write(self.output_fd, data)


def write(descriptor: int, data: memoryview) -> int:
    """Puts bytes into a memory file, from its start; their number."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], done)
    return done


def content(descriptor: int, size: int) -> bytes:
    """A copy of the first ``size`` bytes of a memory file.

    Raises:
        EOFError: there are fewer.
    """
    data = bytearray()
    while len(data) < size:
        piece = os.pread(descriptor, size - len(data), len(data))
        if not piece:
            raise EOFError("the memory file is shorter than the host said")
        data += piece
    return bytes(data)
