"""The event file that TensorBoard reads."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tasks.train.event_file import _checksum, event_file

HISTORY = [
    {"epoch": 1.0, "train_loss": 0.5, "valid_loss": float("nan")},
    {"epoch": 200.0, "train_loss": 0.25, "valid_loss": 0.75},
]
TIMES = [1700000000.5, 1700000060.25]


def test_the_checksum_is_the_masked_castagnoli_one() -> None:
    # CRC-32C of 32 zeros is 0x8A9136AA (RFC 3720, B.4).
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _checksum(bytes(32)) == struct.pack("<I", masked)


def test_the_events_say_what_the_history_says() -> None:
    found = list(events(event_file(HISTORY, TIMES)))
    assert found == [
        (TIMES[0], 0, {}),
        (TIMES[0], 1, {"train_loss": 0.5}),
        (TIMES[1], 200, {"train_loss": 0.25, "valid_loss": 0.75}),
    ]


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "events.out.tfevents.chipline").write_bytes(event_file(HISTORY, TIMES))
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(item.step, item.value) for item in read.Scalars("train_loss")] == [(1, 0.5), (200, 0.25)]
    assert [item.wall_time for item in read.Scalars("valid_loss")] == [TIMES[1]]


def events(data: bytes) -> list[tuple[float, int, dict[str, float]]]:
    """Wall time, step and scalars of every record; a reader of protocol buffers of its own."""
    result = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body, data = data[12 : 12 + length], data[16 + length :]
        time, step, values = 0.0, 0, {}
        for field, value in fields(body):
            if field == 1:
                (time,) = struct.unpack("<d", value)
            elif field == 2:
                step = int.from_bytes(value, "little")
            elif field == 5:
                for _, entry in fields(value):
                    inside = dict(fields(entry))
                    (values[inside[1].decode()],) = struct.unpack("<f", inside[2])
        result.append((time, step, values))
    return result


def fields(data: bytes) -> list[tuple[int, bytes]]:
    result = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            number = varint()
            result.append((tag >> 3, number.to_bytes(8, "little")))
            continue
        length = {1: 8, 5: 4}.get(kind) or varint()
        result.append((tag >> 3, data[at : at + length]))
        at += length
    return result
