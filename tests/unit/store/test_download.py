"""Downloads whose bodies break off. The server is a small one that counts and keeps to Range and If-Match."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import StoreError
from tasks.settings import settings
from tasks.store import ObjectStore, _s3

CONTENT = np.random.default_rng(0).bytes(3_000_001)


@dataclass
class Server:
    """What it holds, after how many bytes each answer breaks off, how, and what it was asked for."""

    content: bytes = CONTENT
    etag: str = '"one"'
    breaks: list[int] = field(default_factory=list)  # per answer, in turn; what is left out is whole
    reset: bool = False
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)
    replace_after: int = -1  # so many answers; then the object is another one

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if len(self.asked) == self.replace_after:
            self.etag = '"two"'
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        wanted = handler.headers.get("If-Match")
        assert (wanted is None) == (asked is None)  # a rest is of the same object, or none
        if wanted is not None and wanted != self.etag:
            handler.send_response(412)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = 0
        if asked is not None and self.ranges:
            found = re.fullmatch(r"bytes=(\d+)-", asked)
            assert found is not None
            start = int(found[1])
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            end = len(self.content)
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("ETag", self.etag)
        handler.end_headers()
        stop = self.breaks.pop(0) if self.breaks else len(body)
        handler.wfile.write(body[:stop])
        if stop < len(body):
            handler.wfile.flush()
            if self.reset:
                linger = struct.pack("ii", 1, 0)  # closing sends a reset
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.close_connection = True


@contextmanager
def served(**how: Any) -> Iterator[tuple[Server, str]]:
    server = Server(**how)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{listener.server_address[1]}"
    finally:
        listener.shutdown()
        listener.server_close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("time.sleep", lambda _: None)
    yield
    settings.cache_clear()


def downloaded(url: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    access = {"prefix": "s3://unit", "endpoint_url": url, "anonymous": True}
    monkeypatch.setenv("CHIPLINE_STORES", json.dumps([access]))
    settings.cache_clear()
    ObjectStore().download("s3://unit/a", path)
    return path.read_bytes()


@pytest.mark.parametrize("reset", [False, True])
def test_the_rest_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reset: bool) -> None:
    with served(breaks=[1_000_000, 0, 1_500_000], reset=reset) as (server, url):
        assert downloaded(url, tmp_path / "a", monkeypatch) == CONTENT
    starts = [int(asked[6:-1]) if asked else 0 for asked in server.asked]
    assert starts[0] == 0
    assert len(starts) == 4
    assert starts == sorted(starts)
    # A reset may take with it what the network still held.
    if not reset:
        assert 1_000_000 - starts[1] < 65_536
        assert starts[1] == starts[2]
        assert 2_500_000 - starts[3] < 2 * 65_536


def test_a_body_may_break_off_often_as_long_as_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_s3, "_PROGRESS_BYTES", 150_000)
    with served(breaks=[200_000] * 14) as (server, url):
        assert downloaded(url, tmp_path / "a", monkeypatch) == CONTENT
    assert len(server.asked) >= 14


def test_a_body_that_does_not_go_on_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(breaks=[500_000, *[0] * 20]) as (server, url):
        with pytest.raises(StoreError, match=r"breaks off after \d+ of 3000001 bytes.*Check the network"):
            downloaded(url, tmp_path / "a", monkeypatch)
        assert len(server.asked) == 4
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_replaced_meanwhile_is_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in (1_000_000, 0):
        with (
            served(breaks=[first], replace_after=1) as (_, url),
            pytest.raises(StoreError, match="was replaced while it was downloaded"),
        ):
            downloaded(url, tmp_path / "a", monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_ranges_gives_the_whole_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(breaks=[1_000_000], ranges=False) as (server, url):
        assert downloaded(url, tmp_path / "a", monkeypatch) == CONTENT
    assert len(server.asked) == 2


def test_an_empty_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(content=b"") as (server, url):
        assert downloaded(url, tmp_path / "a", monkeypatch) == b""
    assert len(server.asked) == 1
