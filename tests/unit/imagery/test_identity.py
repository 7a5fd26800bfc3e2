import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.errors import NotFoundError, RasterError
from tasks.imagery.identity import identity_of_files, on_record, unsigned
from tasks.store import ObjectStore


def identity(*paths: object) -> str:
    return identity_of_files([str(path) for path in paths], ObjectStore())


def test_it_changes_with_content_even_when_size_and_time_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"a" * 1_000_000)
    os.utime(path, ns=(1, 1))
    before = identity(path)
    assert identity(path) == before
    for changed in (b"b" + b"a" * 999_999, b"a" * 999_999 + b"b"):
        path.write_bytes(changed)
        os.utime(path, ns=(1, 1))
        assert identity(path) != before
    path.write_bytes(b"a" * 1_000_000)
    os.utime(path, ns=(2, 2))
    assert identity(path) != before


def test_order_does_not_matter_but_every_file_does(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    assert identity(tmp_path / "a", tmp_path / "b") == identity(tmp_path / "b", tmp_path / "a")
    assert identity(tmp_path / "a") != identity(tmp_path / "a", tmp_path / "b")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.tif"):
        identity(tmp_path / "gone.tif")


def test_signatures_do_not_count() -> None:
    plain = "https://host/a.tif?layer=3"
    assert unsigned(plain + "&X-Amz-Signature=1&X-Amz-Date=2&Expires=4") == plain
    assert unsigned("https://host/a.tif?sv=1&se=2&sr=b&sig=x") == "https://host/a.tif"
    assert unsigned("https://host/a.tif?sr=4326") == "https://host/a.tif?sr=4326"


class _Handler(BaseHTTPRequestHandler):
    etag: str | None = '"one"'

    def do_GET(self) -> None:
        self.send_response(404 if "gone" in self.path else 206)
        if self.etag:
            self.send_header("ETag", self.etag)
        self.send_header("Content-Range", "bytes 0-0/77")
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"x")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_http_goes_by_its_etag(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(f"{address}/a.tif?X-Amz-Signature=1")
    assert identity(f"{address}/a.tif?X-Amz-Signature=2") == before
    assert identity(f"{address}/b.tif") != before
    monkeypatch.setattr(_Handler, "etag", '"two"')
    assert identity(f"{address}/a.tif") != before
    monkeypatch.setattr(_Handler, "etag", None)
    with pytest.raises(RasterError, match="neither an ETag"):
        identity(f"{address}/a.tif")
    with pytest.raises(NotFoundError, match="gone"):
        identity(f"{address}/gone.tif")


def test_no_address_goes_on_record_with_what_signs_it() -> None:
    signed = "https://host/a.tif?v=1&X-Amz-Signature=1"
    given = {
        "mask": signed,
        "input_raster": [signed, "s3://a/b.tif"],
        "arguments": [{"name": "n", "value": signed}],
    }
    bare = "https://host/a.tif?v=1"
    assert on_record({**given, "threshold": 0.5, "extent": None}) == {
        "mask": bare,
        "input_raster": [bare, "s3://a/b.tif"],
        "arguments": [{"name": "n", "value": bare}],
        "threshold": 0.5,
        "extent": None,
    }
