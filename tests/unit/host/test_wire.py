"""Frames survive any cutting of the stream; what is no frame is refused."""

from __future__ import annotations

import json
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.host.wire import FrameBuffer, WireError, receive_frame, send_frame


def _frame(value: object) -> bytes:
    payload = json.dumps(value).encode()
    return struct.pack(">I", len(payload)) + payload


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3), max_size=5),
    st.data(),
)
def test_frames_survive_any_cutting(frames: list[dict[str, object]], data: st.DataObject) -> None:
    stream = b"".join(map(_frame, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    buffer, found = FrameBuffer(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += buffer.feed(stream[start:end])
    assert found == frames


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", _frame([1]), struct.pack(">I", 2) + b"{{"])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        FrameBuffer().feed(data)


def test_sent_frames_are_received_and_an_end_is_none() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            send_frame(ours, {"op": "call", "text": "ö" * 1000})
            assert receive_frame(theirs) == {"op": "call", "text": "ö" * 1000}
            ours.sendall(b"\x00\x00")
        assert receive_frame(theirs) is None
