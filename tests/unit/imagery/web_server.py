"""A web server for tests, a process of its own: opening a raster holds Python's lock while GDAL waits.

    python web_server.py FOLDER

Serves the folder's files with ranges; ``NAME.etag`` beside a file holds its ETag. Prints its port, and every
answer's length and path into ``FOLDER/log``.
"""

from __future__ import annotations

import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = FOLDER / self.path.split("?")[0].strip("/")
        etag = path.with_name(path.name + ".etag")
        body, status, extra = (path.read_bytes(), 200, {}) if path.is_file() else (b"", 404, {})
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is not None and status == 200:
            size, start = len(body), int(asked[1])
            body = body[start : int(asked[2] or size) + 1]
            status = 206 if start < size else 416
            extra = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{size}"} if body else {}
        if etag.is_file():
            extra["ETag"] = etag.read_text()
        self.send_response(status)
        for name, value in {**extra, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            with (FOLDER / "log").open("a") as log:
                log.write(f"{len(body)} {self.path}\n")

    def log_message(self, *_: Any) -> None:
        """Quiet."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
