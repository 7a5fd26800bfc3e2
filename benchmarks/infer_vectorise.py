"""Polygons of a classified raster, block by block, against ``rasterio.features.shapes`` on the whole array.

python benchmarks/infer_vectorise.py [--size 16384] [--polygons 100000] [--runs 3] [--ways whole blocks]

All read the same COG, in processes of their own, and write every polygon as WKB into a file. The number, area
and vertices of what the files hold must be equal. ``blocks`` writes the polygons as they are vectorised;
``geometries`` makes each a geometry first, as the finish of a run does. ``filled``: the ground between the
objects is a class of its own, one polygon with a hole for each object.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import rasterio
import rasterio.features
import rasterio.shutil
import shapely

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scenes import CRS, TRANSFORM
from benchmarks.watched import Clock, watched

if TYPE_CHECKING:
    from tasks.infer.vectorise import Polygons

BLOCK = 1024
LARGE = 1_000_000  # vertices
RINGS_AT_ONCE = 1000


def make_classes(path: Path, size: int, count: int) -> None:
    """About ``count`` ragged objects of classes 1 to 4 on ground of class 5; a COG of uint8."""
    random = np.random.default_rng(3)
    cell = int(size / count**0.5)
    strip = np.empty((cell, size), np.uint8)
    rows, cols = np.mgrid[:cell, :cell]
    distance = np.hypot(rows - cell / 2, cols - cell / 2)
    profile = {"driver": "GTiff", "count": 1, "height": size, "width": size, "dtype": "uint8", "crs": CRS}
    tiling = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "transform": TRANSFORM,
        "compress": "deflate",
    }
    plain = path.with_suffix(".plain.tif")
    with rasterio.open(plain, "w", **profile, **tiling) as dataset:
        for top in range(0, size, cell):
            strip[:] = 5
            for left in range(0, size - cell + 1, cell):
                coarse = np.kron(random.random((cell // 4 + 1, cell // 4 + 1)) * 6, np.ones((4, 4)))
                ragged = distance + coarse[:cell, :cell] < random.uniform(0.2, 0.5) * cell
                strip[:, left : left + cell][ragged] = random.integers(1, 5)
            height = min(cell, size - top)
            dataset.write(strip[None, :height], window=rasterio.windows.Window(0, top, size, height))
    rasterio.shutil.copy(plain, path, driver="COG", compress="deflate", blocksize=512)
    plain.unlink()


def whole(path: Path, nodata: int | None, target: Path) -> None:
    """The whole array at once."""
    with rasterio.open(path) as dataset:
        values = dataset.read(1)
    mask = None if nodata is None else values != nodata
    found = list(rasterio.features.shapes(values, mask=mask))
    geometry = np.array([shapely.geometry.shape(shape) for shape, _ in found], dtype=object)
    with target.open("wb") as stream:
        _write(stream, geometry)


def blocks(path: Path, nodata: int | None, target: Path) -> None:
    """Block by block, nothing kept that is done."""
    with target.open("wb") as stream:
        for part in _parts(path, nodata):
            stream.writelines(part.wkb())


def geometries(path: Path, nodata: int | None, target: Path) -> None:
    """The same, each polygon as a geometry of shapely."""
    with target.open("wb") as stream:
        for part in _parts(path, nodata):
            _write(stream, part.geometry())


def _parts(path: Path, nodata: int | None) -> Iterator[Polygons]:
    from tasks.imagery import Window
    from tasks.infer.vectorise import polygons_of

    # Blocks are read once: a large cache would only count as memory.
    with rasterio.Env(GDAL_CACHEMAX=8 * 2**20), rasterio.open(path) as dataset:

        def read(window: Window) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
            place = rasterio.windows.Window(window.col, window.row, window.cols, window.rows)
            values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = dataset.read(1, window=place)
            return values

        yield from polygons_of(read, dataset.shape, nodata=nodata, block=BLOCK)


def _write(stream: BinaryIO, geometry: np.ndarray[tuple[int, ...], np.dtype[np.object_]]) -> None:
    """Polygons as WKB; a large one some rings at a time: GEOS holds several copies of what it writes."""
    large = shapely.get_num_coordinates(geometry) > LARGE
    stream.writelines(shapely.to_wkb(geometry[~large]))
    for polygon in geometry[large]:
        holes = shapely.get_num_interior_rings(polygon)
        stream.write(struct.pack("<BII", 1, 3, 1 + holes))
        parts = np.array_split(np.arange(holes), max(1, holes // RINGS_AT_ONCE))
        for rings in ([polygon.exterior], *(shapely.get_interior_ring(polygon, part) for part in parts)):
            for ring in rings:
                points = shapely.get_coordinates(ring)
                stream.write(struct.pack("<I", len(points)) + points.tobytes())


def content_of(written: Path) -> tuple[int, float, int]:
    """Polygons, their area in pixels, and vertices of a file of WKB; of each ring, however it runs."""
    data = written.read_bytes()
    at = polygons = vertices = 0
    area = 0.0
    while at < len(data):
        order, kind, rings = struct.unpack_from("<BII", data, at)
        if (order, kind) != (1, 3):
            raise SystemExit(f"{written.name} holds no polygon at byte {at}.")
        at += 9
        for ring in range(rings):
            (size,) = struct.unpack_from("<I", data, at)
            x, y = np.frombuffer(data, "<f8", 2 * size, at + 4).reshape(-1, 2).T
            # Whole numbers of pixels: the sum is exact.
            enclosed = abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
            area += -enclosed if ring else enclosed
            vertices += size
            at += 4 + 16 * size
        polygons += 1
    return polygons, float(area), vertices


def main() -> None:
    """Measure, or be the process that is measured."""
    ways = {way.__name__: way for way in (whole, blocks, geometries)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--polygons", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=list(ways), default=list(ways))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way, path, nodata, target = given.one
        clock = Clock()
        ways[way](Path(path), None if nodata == "none" else int(nodata), Path(target))
        sys.stdout.write(json.dumps(clock.read()) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder, "classes.tif"), Path(folder, "polygons.wkb")
        make_classes(path, given.size, given.polygons)
        sys.stdout.write("| raster | way | wall s, each run | processor s | peak MiB | polygons |\n")
        sys.stdout.write("|---|---|---|---|---|---|\n")
        for kind, nodata in (("objects", "5"), ("filled", "none")):
            content = set()
            for way in given.ways:
                command = [sys.executable, __file__, "--one", way, str(path), nodata, str(target)]
                runs = []
                for _ in range(given.runs):
                    runs.append(watched(command, Path(folder)))
                    content.add(content_of(target))
                walls, cpu = (", ".join(f"{run[of]:.1f}" for run in runs) for of in ("wall_s", "cpu_s"))
                peak, count = max(run["peak_mib"] for run in runs), max(content)[0]
                sys.stdout.write(f"| {kind} | {way} | {walls} | {cpu} | {peak:.0f} | {count} |\n")
                sys.stdout.flush()
            if len(content) != 1:
                raise SystemExit(f"The ways differ: {content}")


if __name__ == "__main__":
    main()
