"""The protocol between the host and its child: length-prefixed JSON frames on a Unix socketpair.

Standard library only: the child loads this file by path with whatever interpreter its framework needs.
Pixels and results never travel in frames; they lie in memory file descriptors that both sides hold.
Neither side unpickles anything, and the host never maps memory that the child could shrink.

Frames, host to child (``op``):
    start      what to contain, which function, which device; answered by ``contained``
    load       load and initialise the function; answered by ``loaded`` (its parameters)
    configure  all scalars; answered by ``ready`` (configuration, output, fields)
    settle     decide on the execution engine; answered by ``settled`` (its report)
    keep       put what makes the engine quicker to make again into the parcel; answered by ``kept``
    call       one block in one slot; answered by ``result``
    close      end
Frames, child to host (``event``): the answers above, or ``failed`` with the function's own traceback.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

PROTOCOL_VERSION = 1
FRAME_LIMIT = 32 * 1024 * 1024
_HEADER = struct.Struct(">I")


class WireError(Exception):
    """A frame that breaks the protocol."""


class FrameBuffer:
    """Turns a stream of bytes into frames; keeps what is incomplete."""

    def __init__(self, limit: int = FRAME_LIMIT) -> None:
        self._limit = limit
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The frames that ``data`` completes, in order.

        Raises:
            WireError: a frame is longer than the limit or is no JSON object.
        """
        self._bytes += data
        frames = []
        while len(self._bytes) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._bytes)
            if length > self._limit:
                raise WireError(f"a frame of {length} bytes is over the limit of {self._limit}")
            if len(self._bytes) < _HEADER.size + length:
                break
            frames.append(_decode(bytes(self._bytes[_HEADER.size : _HEADER.size + length])))
            del self._bytes[: _HEADER.size + length]
        return frames


def _decode(payload: bytes) -> dict[str, Any]:
    try:
        frame = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame is no JSON: {error}") from error
    if not isinstance(frame, dict):
        raise WireError("a frame is no JSON object")
    return frame


def send_frame(connection: socket.socket, frame: dict[str, Any]) -> None:
    """Sends one frame whole."""
    payload = json.dumps(frame, default=_number_or_list).encode()
    if len(payload) > FRAME_LIMIT:
        raise WireError(f"a frame of {len(payload)} bytes is over the limit of {FRAME_LIMIT}")
    connection.sendall(_HEADER.pack(len(payload)) + payload)


def _number_or_list(value: Any) -> Any:
    """numpy's scalars and arrays as JSON's numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot travel in a frame")


def receive_frame(connection: socket.socket) -> dict[str, Any] | None:
    """The next frame, waiting for it; None when the other side has closed."""
    header = _receive(connection, _HEADER.size)
    if header is None:
        return None
    (length,) = _HEADER.unpack(header)
    if length > FRAME_LIMIT:
        raise WireError(f"a frame of {length} bytes is over the limit of {FRAME_LIMIT}")
    payload = _receive(connection, length)
    return None if payload is None else _decode(payload)


def _receive(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)
