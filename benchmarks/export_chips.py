"""How close exporting comes to its bare limit: decode the imagery once, encode every chip.

    python benchmarks/export_chips.py [--size 4096] [--tile 256] [--stride 128]

Makes a raster and labels in a temporary folder, exports them there, and does the bare work with rasterio
alone, in as many threads. Prints Markdown rows: chips per second of wall time, and of processor time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine

TRANSFORM = Affine(0.1, 0, 500_000, 0, -0.1, 5_000_000)


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="edge of the raster, px")
    parser.add_argument("--tile", type=int, default=256, help="edge of a chip, px")
    parser.add_argument("--stride", type=int, default=128, help="distance of chips, px")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="export-benchmark-") as folder:
        os.environ["CHIPLINE_ROOT"] = f"{folder}/store"
        os.environ["CHIPLINE_ALLOWED_ROOTS"] = f'["{folder}"]'
        raster, labels = _scene(Path(folder), chosen.size)
        rows = []
        for metadata_format in ("Classified_Tiles", "PASCAL_VOC_rectangles"):
            chips, plan_s, wall_s, cpu_s = _export(
                raster, labels, metadata_format, chosen.tile, chosen.stride
            )
            rows.append((f"{metadata_format}, cutting", chips, wall_s, cpu_s))
            rows.append((f"{metadata_format}, planning", chips, plan_s, plan_s))
        for name, tiles in (("image and label", True), ("image only", False)):
            wall_s, cpu_s = _timed(partial(_bare, raster, chosen.tile, chosen.stride, tiles=tiles))
            rows.append((f"bare limit, {name}", rows[0][1], wall_s, cpu_s))
    sys.stdout.write("| case | chips | chips/s | chips per processor second |\n|---|---|---|---|\n")
    for name, chips, wall_s, cpu_s in rows:
        sys.stdout.write(f"| {name} | {chips} | {chips / wall_s:.0f} | {chips / cpu_s:.0f} |\n")


def _scene(folder: Path, size: int) -> tuple[str, str]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (3, size // 16, size // 16), dtype=np.uint8)
    pixels = coarse.repeat(16, axis=1).repeat(16, axis=2)
    pixels = (pixels // 2 + random.integers(0, 30, pixels.shape, dtype=np.uint8)).astype(np.uint8)
    profile = {
        "driver": "GTiff",
        "count": 3,
        "height": size,
        "width": size,
        "dtype": "uint8",
        "crs": "EPSG:32612",
        "transform": TRANSFORM,
        "tiled": True,
        "compress": "deflate",
    }
    with rasterio.open(folder / "scene.tif", "w", **profile) as dataset:
        dataset.write(pixels)
    offsets = random.uniform(0, size * 0.1 - 5, (size * size // 20_000, 2))
    boxes = [shapely.box(500_000 + x, 4_999_995 - y, 500_005 + x, 5_000_000 - y) for x, y in offsets]
    frame = geopandas.GeoDataFrame({"classvalue": [1] * len(boxes)}, geometry=boxes, crs="EPSG:32612")
    frame.to_file(folder / "labels.gpkg", engine="pyogrio")
    return str(folder / "scene.tif"), str(folder / "labels.gpkg")


def _export(
    raster: str, labels: str, metadata_format: str, tile: int, stride: int
) -> tuple[int, float, float, float]:
    from tasks.export import cut, plan
    from tasks.export.parameters import ExportParameters
    from tasks.store import ObjectStore

    parameters = ExportParameters.model_validate(
        {
            "input_raster": [raster],
            "input_class_data": labels,
            "output_location": metadata_format,
            "metadata_format": metadata_format,
            "tile_size": tile,
            "stride_size": stride,
            "output_nofeature_tiles": "ALL_TILES",
        }
    )
    store = ObjectStore()
    started = time.perf_counter()
    made = plan.make_plan(parameters, plan.inspect_inputs(parameters))
    plan_s = time.perf_counter() - started

    def work() -> None:
        for part in range(len(made.parts)):
            cut.cut_part(store, made, part)

    return made.chips, plan_s, *_timed(work)


def _bare(raster: str, tile: int, stride: int, *, tiles: bool) -> None:
    from tasks.export.chip_grid import ChipGrid
    from tasks.training_data.images import encode_image

    with rasterio.open(raster) as dataset:
        pixels, wkt = dataset.read(), dataset.crs.to_wkt()
    grid = ChipGrid(pixels.shape[1], pixels.shape[2], tile, stride)
    mask = (pixels[:1] > 127).astype(np.uint8)

    def encode(window: list[int]) -> None:
        row, col, rows, cols = window
        transform = tuple(TRANSFORM)[:6]
        encode_image(pixels[:, row : row + rows, col : col + cols], "TIFF", transform, wkt)
        if tiles:
            encode_image(mask[:, row : row + rows, col : col + cols], "TIFF", transform, wkt)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(encode, grid.windows(0, grid.positions).tolist()))


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
