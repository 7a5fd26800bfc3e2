"""Rasters of any size with real content, and polygons on them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio.windows import Window

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "yellowstone_trees" / "west.tif"
CELL = 0.1
TRANSFORM = Affine(CELL, 0, 500_000, 0, -CELL, 5_000_000)
CRS = "EPSG:32612"
_BLOCK = 512


def make_raster(path: Path, size: int, *, overviews: bool = True, bands: int = 3) -> None:
    """``size`` x ``size`` x 3 bytes in blocks of 512, deflated: pieces of the example scene in random order.

    Args:
        bands: more than the scene's three repeat them.
        overviews: a COG; without, a tiled GeoTIFF, which is made faster.
    """
    with rasterio.open(EXAMPLE) as example:
        scene = example.read([1 + number % 3 for number in range(bands)])
    random = np.random.default_rng(0)
    plain = path.with_suffix(".plain.tif") if overviews else path
    profile = {
        "driver": "GTiff",
        "count": bands,
        "height": size,
        "width": size,
        "dtype": "uint8",
        "crs": CRS,
        "transform": TRANSFORM,
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "interleave": "pixel",
        "photometric": "RGB" if bands == 3 else "MINISBLACK",
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 1,
        "num_threads": "all_cpus",
        "bigtiff": "if_safer",
    }
    with rasterio.open(plain, "w", **profile) as dataset:
        for row in range(0, size, _BLOCK):
            strip = np.empty((bands, min(_BLOCK, size - row), size), np.uint8)
            for col in range(0, size, _BLOCK):
                top = int(random.integers(0, scene.shape[1] - _BLOCK))
                left = int(random.integers(0, scene.shape[2] - _BLOCK))
                rows, cols = strip.shape[1], min(_BLOCK, size - col)
                strip[:, :, col : col + cols] = scene[:, top : top + rows, left : left + cols]
            dataset.write(strip, window=Window(0, row, size, strip.shape[1]))
    if overviews:
        options = {"compress": "deflate", "predictor": "yes", "blocksize": _BLOCK, "num_threads": "all_cpus"}
        rasterio.shutil.copy(plain, path, driver="COG", level=1, **options)
        plain.unlink()


def make_labels(path: Path, size: int, count: int) -> None:
    """``count`` ragged polygons of 1 to 4 m, in three classes, as a GeoPackage."""
    random = np.random.default_rng(1)
    corners = 10
    centres = random.uniform(5, size * CELL - 5, (count, 1, 2))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radii = random.uniform(0.5, 2.0, (count, 1)) * random.uniform(0.7, 1.3, (count, corners))
    rings = centres + radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rings = rings * (1, -1) + (TRANSFORM.c, TRANSFORM.f)
    frame = geopandas.GeoDataFrame(
        {"classvalue": random.integers(1, 4, count)}, geometry=list(shapely.polygons(rings)), crs=CRS
    )
    frame.to_file(path, engine="pyogrio")


def decoded(path: Path, threads: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """All pixels, every block decoded once  # (bands, rows, cols)."""
    with rasterio.open(path) as dataset:
        pixels = np.empty((dataset.count, dataset.height, dataset.width), np.uint8)
        rows = sorted({window.row_off for _, window in dataset.block_windows(1)})

    def read(part: int) -> None:
        with rasterio.open(path) as dataset:
            for row in rows[part::threads]:
                height = min(_BLOCK, dataset.height - row)
                window = Window(0, row, dataset.width, height)
                dataset.read(window=window, out=pixels[:, row : row + height])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    return pixels
