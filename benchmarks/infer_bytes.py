"""Bytes that the engine fetches, over the bytes of the blocks that it needs once.

    python benchmarks/infer_bytes.py [--size 4096] [--padding 64] [--shard-size 2048] [--read-threads 2]

A COG of ``--size`` squared pixels of 3 bytes in blocks of 512, behind an HTTP server that answers
ranges and counts; tiles of 512 px with 64 px on each side (a halo of 25 % in all), two by two to a
call; a function that costs nothing. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference_scene import use_folder
from benchmarks.scenes import make_raster

TILE = 512


class Served:
    """One file behind HTTP, served by a process of its own: opening a raster keeps Python's lock.

    Attributes:
        url: of the file.
    """

    def __init__(self, path: Path) -> None:
        context = get_context("spawn")
        self._requests, self._bytes, port = (context.Value("q", 0) for _ in range(3))
        self._process = context.Process(
            target=_serve, args=(path, self._requests, self._bytes, port), daemon=True
        )
        self._process.start()
        while not port.value:
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{port.value}/{path.name}"

    def counted(self) -> tuple[int, int]:
        """Requests answered with data, and the bytes of those answers."""
        return self._requests.value, self._bytes.value

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.join()


def _serve(path: Path, requests: Any, answered: Any, port: Any) -> None:
    data = path.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self._head(200 if self.path == f"/{path.name}" else 404, len(data), None)

        def do_GET(self) -> None:
            if self.path != f"/{path.name}":
                self._head(404, 0, None)  # side files, which readers ask for
                return
            asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            stop = min(int(asked[2]) + 1, len(data)) if asked and asked[2] else len(data)
            self._head(206 if asked else 200, stop - start, f"bytes {start}-{stop - 1}/{len(data)}")
            with requests.get_lock():
                requests.value += 1
                answered.value += stop - start
            self.wfile.write(data[start:stop])

        def _head(self, code: int, length: int, part: str | None) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(length))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", '"benchmark"')
            if part is not None and code == 206:
                self.send_header("Content-Range", part)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.value = server.server_address[1]
    server.serve_forever()


class NoFunction:
    """Stands for the host: answers at once."""

    def __init__(self, step: int) -> None:
        self.tickets = 0
        self.answer = np.ones((1, step, step), np.uint8)

    def submit(self, *_: Any, **__: Any) -> int:
        """Count the block."""
        self.tickets += 1
        return self.tickets

    def result(self, _ticket: int) -> Any:
        """Ones."""
        return self.answer


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--padding", type=int, default=64)
    parser.add_argument("--shard-size", type=int, default=2048)
    parser.add_argument("--read-threads", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="infer-bytes-") as name:
        folder = Path(name)
        use_folder(folder)
        os.environ["CHIPLINE_ALLOWED_ROOTS"] = f'["{folder}", "http://127.0.0.1"]'
        make_raster(folder / "scene.tif", chosen.size)
        _run(folder, chosen)


def _run(folder: Path, chosen: argparse.Namespace) -> None:
    import rasterio

    from tasks.imagery import GridReader, grid_of_raster, inspect_raster
    from tasks.infer.engine import Source, run_shards
    from tasks.infer.operators import PixelFormat, PixelOperator
    from tasks.infer.reading import fit_cache
    from tasks.infer.shards import Footprint, ShardStore, TileGeometry, plan_shards, tiles_per_shard
    from tasks.store import ObjectStore

    with rasterio.open(folder / "scene.tif") as dataset:
        needed = sum(
            int(dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1))
            for (row, col), _ in dataset.block_windows(1)
        )
    served = Served(folder / "scene.tif")
    info = inspect_raster(served.url)
    _, opening = served.counted()
    grid = grid_of_raster(info)
    step = 2 * (TILE - 2 * chosen.padding)
    geometry = TileGeometry(rows=step, cols=step, padding=chosen.padding)
    tiles = tiles_per_shard(step, info.block_shape[0], chosen.shard_size)
    shards = plan_shards(
        grid=0,
        region=grid.window,
        geometry=geometry,
        tiles=(tiles, tiles),
        footprints=[Footprint(grid.window, info.identity)],
        base_key="benchmark",
    )
    operator = PixelOperator(geometry, PixelFormat("uint8", 0))
    sink = ShardStore(ObjectStore(), f"{folder}/store")
    host: Any = NoFunction(step)
    requests_before, bytes_before = served.counted()
    with GridReader([info], grid, (0, 1, 2)) as reader:
        band = fit_cache([reader], shards, geometry)
        sources = {0: Source(grid, reader, pixel_bytes=4, remote=True, props={}, band=band)}
        run_shards(shards, sources, host, operator, sink, geometry=geometry, read_threads=chosen.read_threads)
    requests, fetched = served.counted()
    served.close()
    fetched -= bytes_before
    cells = {
        "raster": f"{chosen.size} x {chosen.size}, padding {chosen.padding} px",
        "reading threads": chosen.read_threads,
        "shards": f"{len(shards)} of {tiles * step} px",
        "cache, MiB": f"{reader.cache_bytes / 2**20:.0f}, for {band} shards side by side",
        "blocks, MiB": f"{needed / 2**20:.1f}",
        "fetched, MiB": f"{fetched / 2**20:.1f}",
        "fetched over blocks": f"{fetched / needed:.3f}",
        "requests": requests - requests_before,
        "looking into it, KiB": f"{opening / 1024:.0f}",
    }
    sys.stdout.write(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n")
    sys.stdout.write(f"| {' | '.join(map(str, cells.values()))} |\n")


if __name__ == "__main__":
    main()
