"""A TCP proxy before an HTTP server that does to connections what networks and tired servers do."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Fault = Literal["none", "slow", "reset", "truncate", "error"]

_ERROR = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends a reset


class FaultyProxy:
    """Forwards connections; a share of the pieces of data that pass meets a fault.

    Attributes:
        fault: what happens. slow: half a second of waiting; reset: the connection is reset within an answer;
            truncate: the answer ends in its middle; error: 503 to a request, without asking the server.
        share: of the pieces that meet it, 0-1.
        met: pieces by fault.
    """

    def __init__(self, port: int) -> None:
        self.fault: Fault = "none"
        self.share = 1.0
        self.met: Counter[str] = Counter()
        self._target = port
        self._random = random.Random(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No new connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _meets(self, *faults: Fault) -> Fault:
        if self.fault not in faults or self._random.random() >= self.share:
            return "none"
        self.met[self.fault] += 1
        return self.fault

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            try:
                self._down(server, client)
            finally:
                # Closing alone would not reach the client while the other direction still listens to it.
                client.shutdown(socket.SHUT_RDWR)

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 15):
                if self._meets("error") == "error":
                    client.sendall(_ERROR)
                    client.shutdown(socket.SHUT_WR)
                    server.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        while data := server.recv(1 << 15):
            fault = self._meets("slow", "reset", "truncate")
            if fault == "slow":
                time.sleep(0.5)
            elif fault != "none":
                client.sendall(data[: len(data) // 2])
                if fault == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                    client.shutdown(socket.SHUT_RD)  # wakes the other direction; then closing resets
                    client.close()
                return
            client.sendall(data)


@contextmanager
def faulty_proxy(port: int) -> Iterator[FaultyProxy]:
    """A proxy before ``127.0.0.1:port``."""
    proxy = FaultyProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
