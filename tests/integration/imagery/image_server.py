"""A small image server for tests: WMS, XYZ tiles and an ArcGIS ImageServer, all from arrays in memory."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile

TOKEN = "s3cret"
HALF_WORLD = 20_037_508.342789244


@dataclass
class Image:
    """Pixels on a north-up grid.  # (bands, rows, cols)"""

    values: NDArray[Any]
    corner: tuple[float, float]
    cell: float
    crs: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        x, y = self.corner
        _, rows, cols = self.values.shape
        return (x, y - rows * self.cell, x + cols * self.cell, y)

    def cut(self, box: tuple[float, float, float, float], cols: int, rows: int) -> tuple[Any, Any]:
        """Nearest pixels (bands, rows, cols) of a box, and where the image holds some."""
        xs = box[0] + (np.arange(cols) + 0.5) * (box[2] - box[0]) / cols
        ys = box[3] - (np.arange(rows) + 0.5) * (box[3] - box[1]) / rows
        col = np.floor((xs - self.corner[0]) / self.cell).astype(int)
        row = np.floor((self.corner[1] - ys) / self.cell).astype(int)
        _, height, width = self.values.shape
        inside = ((row >= 0) & (row < height))[:, None] & ((col >= 0) & (col < width))
        found = self.values[:, row.clip(0, height - 1)][:, :, col.clip(0, width - 1)]
        return np.where(inside, found, 0).astype(self.values.dtype), inside


@dataclass
class ImageServer:
    """What the server serves, and what was asked of it."""

    port: int = 0
    layers: dict[str, Image] = field(default_factory=dict)  # of the WMS
    services: dict[str, tuple[Image, dict[str, Any]]] = field(default_factory=dict)  # ImageServers
    tiles: Image | None = None  # in EPSG:3857, whole tiles of `tile_px` at `zoom`
    tile_px: int = 256
    tile_format: str = "png"
    zoom: int = 0
    requests: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)  # statuses that the next requests get
    garbage: bytes = b""  # what every request gets instead of an answer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def encoded(values: NDArray[Any], driver: str, **options: Any) -> bytes:
    with MemoryFile() as file:
        bands, rows, cols = values.shape
        with file.open(
            driver=driver, count=bands, height=rows, width=cols, dtype=values.dtype, **options
        ) as dataset:
            dataset.write(values)
        return bytes(file.read())


CAPABILITIES = """<?xml version="1.0"?>
<!DOCTYPE WMT_MS_Capabilities SYSTEM "http://schemas.opengis.net/wms/1.1.1/capabilities_1_1_1.dtd">
<WMT_MS_Capabilities version="1.1.1"><Service><Name>OGC:WMS</Name></Service><Capability>
<Layer><Title>all</Title><SRS>EPSG:32612 EPSG:4326</SRS>
<LatLonBoundingBox minx="-112" miny="45" maxx="-111" maxy="46"/>
<Layer><Name>photo</Name><Title>Photo</Title>
<BoundingBox SRS="EPSG:32612" minx="{0}" miny="{1}" maxx="{2}" maxy="{3}"/></Layer>
</Layer></Capability></WMT_MS_Capabilities>"""


def _wms(server: ImageServer, query: dict[str, str]) -> tuple[int, str, bytes]:
    if query["request"].lower() == "getcapabilities":
        text = CAPABILITIES.format(*server.layers["photo"].bounds)
        return 200, "text/xml", text.encode()
    name = query["layers"]
    if name not in server.layers:
        report = f"<ServiceExceptionReport><ServiceException>no layer {name}</ServiceException>"
        return 200, "text/xml", f"<?xml version='1.0'?>{report}</ServiceExceptionReport>".encode()
    image = server.layers[name]
    first, second, third, fourth = (float(number) for number in query["bbox"].split(","))
    new = query["version"].startswith("1.3")
    if query["crs" if new else "srs"] != f"EPSG:{image.crs}":
        return 400, "text/plain", b"unknown reference system"
    box = (second, first, fourth, third) if new and image.crs == 4326 else (first, second, third, fourth)
    values, inside = image.cut(box, int(query["width"]), int(query["height"]))
    if query["format"] == "image/tiff":
        return 200, "image/tiff", encoded(values, "GTiff")
    if query["transparent"] == "TRUE":
        values = np.concatenate([values, np.where(inside, 255, 0)[None].astype(np.uint8)])
    return 200, "image/png", encoded(values, "PNG")


def _tile(server: ImageServer, zoom: int, col: int, row: int) -> tuple[int, str, bytes]:
    assert server.tiles is not None
    side = 2 * HALF_WORLD / 2**zoom
    box = (
        -HALF_WORLD + col * side,
        HALF_WORLD - (row + 1) * side,
        -HALF_WORLD + (col + 1) * side,
        HALF_WORLD - row * side,
    )
    values, _ = server.tiles.cut(box, server.tile_px, server.tile_px)
    xmin, ymin, xmax, ymax = server.tiles.bounds
    margin = server.tiles.cell / 100
    if box[0] > xmax - margin or box[1] > ymax - margin or box[2] < xmin + margin or box[3] < ymin + margin:
        return 404, "text/html", b"<html>nothing here</html>"
    if server.tile_format == "jpg":
        return 200, "image/jpeg", encoded(values, "JPEG", QUALITY=100)
    return 200, "image/png", encoded(values, "PNG")


def _arcgis(server: ImageServer, name: str, operation: str, query: dict[str, str]) -> tuple[int, str, bytes]:
    if name not in server.services:
        error = {"error": {"code": 404, "message": "Service not found"}}
        return 200, "application/json", json.dumps(error).encode()
    image, facts = server.services[name]
    if facts.get("secured") and query.get("token") != TOKEN:
        error = {"error": {"code": 499, "message": "Token Required"}}
        return 200, "application/json", json.dumps(error).encode()
    if not operation:
        xmin, ymin, xmax, ymax = image.bounds
        extent = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
        described = {
            "name": name,
            "extent": {**extent, "spatialReference": {"wkid": image.crs, "latestWkid": image.crs}},
            "pixelSizeX": image.cell,
            "pixelSizeY": image.cell,
            "bandCount": image.values.shape[0],
            "maxImageHeight": 4100,
            "maxImageWidth": 4100,
            **{key: value for key, value in facts.items() if key != "secured"},
        }
        return 200, "application/json", json.dumps(described).encode()
    cols, rows = (int(number) for number in query["size"].split(","))
    if cols > facts.get("maxImageWidth", 4100) or rows > facts.get("maxImageHeight", 4100):
        error = {"error": {"code": 400, "message": "The requested image exceeds the size limit."}}
        return 200, "application/json", json.dumps(error).encode()
    first, second, third, fourth = (float(number) for number in query["bbox"].split(","))
    values, _ = image.cut((first, second, third, fourth), cols, rows)
    return 200, "image/tiff", encoded(values, "GTiff")


@contextmanager
def serving() -> Iterator[ImageServer]:
    """The server, on a port of the system's choice."""
    what = ImageServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            what.requests.append(self.path)
            status, kind, data = (
                self._answer() if not what.failures else (what.failures.pop(0), "text/plain", b"")
            )
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _answer(self) -> tuple[int, str, bytes]:
            if what.garbage:
                return 200, "image/png", what.garbage
            parts = urlsplit(self.path)
            query = {name.lower(): values[0] for name, values in parse_qs(parts.query).items()}
            if parts.path == "/wms":
                return _wms(what, query)
            if found := re.fullmatch(r"/tiles/(\d+)/(\d+)/(\d+)\.\w+", parts.path):
                return _tile(what, *(int(number) for number in found.groups()))
            if found := re.fullmatch(r"/tms/(\d+)/(\d+)/(\d+)", parts.path):
                zoom, col, row = (int(number) for number in found.groups())
                return _tile(what, zoom, col, 2**zoom - 1 - row)
            if found := re.fullmatch(r"/rest/services/(\w+)/ImageServer(/exportImage)?", parts.path):
                return _arcgis(what, found[1], found[2] or "", query)
            if parts.path.startswith("/html"):
                return 200, "text/html", b"<!DOCTYPE html><html><body>Please <b>sign in</b></body></html>"
            return 404, "text/plain", b"not found"

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    what.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield what
    finally:
        server.shutdown()
        server.server_close()
