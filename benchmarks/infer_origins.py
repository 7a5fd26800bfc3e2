"""How long it takes to tell which raster of a large mosaic each object comes from.

python benchmarks/infer_origins.py [--items 1000] [--objects 100000] [--runs 3]

Scenes of 1,024 x 1,024 x 3 bytes that overlap by a quarter on each side, with a slanted collar of nodata:
more than half of all objects lie in several rectangles, and are looked up in the imagery. Once on the grid of
the scenes, once on that of another zone, onto which they are resampled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference_scene import use_folder
from benchmarks.scenes import CRS, TRANSFORM
from benchmarks.watched import Clock

SIDE, STEP, COLLAR = 1024, 768, 64
OTHER_ZONE = "EPSG:32613"


def make_scenes(folder: Path, count: int) -> list[str]:
    """The scenes, row by row; pixels differ, the headers' places too."""
    random = np.random.default_rng(5)
    rows, cols = np.mgrid[:SIDE, :SIDE]
    # A scene that lies askew in its rectangle.
    slant = COLLAR / SIDE
    inside = (
        (cols >= slant * rows)
        & (cols < SIDE - COLLAR + slant * rows)
        & (rows >= COLLAR - slant * cols)
        & (rows < SIDE - slant * cols)
    )
    pixels = np.kron(random.integers(1, 255, (3, SIDE // 8, SIDE // 8)), np.ones((8, 8))).astype(np.uint8)
    pixels[:, ~inside] = 0
    profile = {"driver": "GTiff", "count": 3, "height": SIDE, "width": SIDE, "dtype": "uint8", "crs": CRS}
    tiling = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "nodata": 0}
    across = round(count**0.5)
    made = []
    for number in range(count):
        path = folder / f"scene_{number}.tif"
        place = TRANSFORM @ Affine.translation(number % across * STEP, number // across * STEP)
        with rasterio.open(path, "w", **profile, **tiling, transform=place) as dataset:
            dataset.write(pixels)
        made.append(str(path))
    return made


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="infer-origins-") as name:
        folder = Path(name)
        use_folder(folder)
        _run(make_scenes(folder, chosen.items), chosen.objects, chosen.runs)


def _run(scenes: list[str], objects: int, runs: int) -> None:
    from tasks.imagery import grid_of_collection, inspect_raster
    from tasks.imagery.collection import bounds_in
    from tasks.infer.origins import origins_of
    from tasks.infer.planned import PlannedGrid

    infos = [inspect_raster(uri) for uri in scenes]
    sys.stdout.write(
        "| grid | scenes | objects | in several scenes | wall s, each run | processor s | ms per object |\n"
        f"{'|---' * 7}|\n"
    )
    for title, zone in (("of the scenes", None), ("of another zone", OTHER_ZONE)):
        grid = grid_of_collection(infos, out_sr=zone)
        windows = [grid.window_of_bounds(bounds_in(info, grid.crs_wkt)) for info in infos]
        planned = PlannedGrid(
            name="mosaic",
            crs_wkt=grid.crs_wkt or "",
            transform=grid.transform,
            rows=grid.rows,
            cols=grid.cols,
            region=(0, 0, grid.rows, grid.cols),
            rasters=list(range(len(infos))),
            footprints=[(window.row, window.col, window.rows, window.cols) for window in windows],
        )
        # Nothing else of a plan is asked for.
        plan: Any = SimpleNamespace(rasters=infos, extract_bands=[0, 1, 2])
        places = np.random.default_rng(7).random((objects, 2)) * (grid.cols, grid.rows)
        points = np.asarray(shapely.points(places))
        boxes = shapely.box(*np.array([(w.col, w.row, w.col_stop, w.row_stop) for w in windows]).T)
        held = np.bincount(shapely.STRtree(boxes).query(points, predicate="intersects")[0])
        times = []
        for _ in range(runs):
            clock = Clock()
            origins_of(plan, planned, points)
            times.append(clock.read())
        each = 1000 * statistics.median(took["wall_s"] for took in times) / objects
        walls, cpu = (", ".join(f"{took[of]:.1f}" for took in times) for of in ("wall_s", "cpu_s"))
        sys.stdout.write(
            f"| {title} | {len(scenes):,} | {objects:,} | {(held > 1).sum():,} "
            f"| {walls} | {cpu} | {each:.2f} |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
