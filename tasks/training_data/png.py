"""PNGs made in memory, several times faster than through Pillow, and of 16 bits in three bands too.

Every line is held as its difference to the one above (filter "Up"), which suits pictures and masks and costs
least. Format: Portable Network Graphics specification, third edition (W3C 2025).
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.training_data.tiff import deflated

_UP = 2
_GREY, _RGB = 0, 2


def encode_png(values: npt.NDArray[Any]) -> bytes:  # (bands, rows, cols)
    """A PNG of one band (grey) or three (red, green, blue), ``uint8`` or ``uint16``."""
    bands, rows, cols = values.shape
    size = values.dtype.itemsize
    samples = np.empty((rows, cols, bands), values.dtype.newbyteorder(">"))
    for band in range(bands):
        samples[:, :, band] = values[band]
    flat = samples.view(np.uint8).reshape(rows, cols * bands * size)
    lines = np.empty((rows, 1 + flat.shape[1]), np.uint8)
    lines[:, 0] = _UP
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])
    header = struct.pack(">IIBBBBB", cols, rows, 8 * size, _GREY if bands == 1 else _RGB, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", deflated(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
        for name, data in chunks
    )
