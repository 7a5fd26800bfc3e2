"""The curves of a training as an event file, which TensorBoard reads: scalars over epochs.

The format (docs/training.md, "TensorBoard") is records of protocol buffers, small enough to be written here;
the package ``tensorboard`` is needed where the file is looked at, not where it is written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence

FILE = "tensorboard/events.out.tfevents.chipline"

_VERSION = b"brain.Event:2"
_MASK = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


def event_file(history: Sequence[Mapping[str, float]], times: Sequence[float]) -> bytes:
    """An event file.

    Args:
        history: one row per epoch, values by name; ``epoch`` is its number.
        times: seconds since 1970 at which each row was made.
    """
    first = times[0] if times else 0.0
    records = [_record(_double(1, first) + _bytes(3, _VERSION))]
    for row, time in zip(history, times, strict=True):
        values = b"".join(
            _bytes(1, _bytes(1, name.encode()) + _float(2, value))
            for name, value in row.items()
            if name != "epoch" and math.isfinite(value)
        )
        records.append(_record(_double(1, time) + _number(2, int(row["epoch"])) + _bytes(5, values)))
    return b"".join(records)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    return struct.pack("<I", (((value >> 15) | (value << 17)) + _MASK) & 0xFFFFFFFF)


def _table() -> Iterator[int]:
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        yield value


_TABLE = tuple(_table())


# Fields of a protocol buffer: number and wire type, then the value.
def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
