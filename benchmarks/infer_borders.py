"""How memory grows with features that touch borders of blocks, tiles and shards.

    python benchmarks/infer_borders.py [--quick]

Three places hold features: vectorising a classified raster (block by block, joined along the borders),
reconciling detections (tile row by tile row), and the layer as it is written. Each case runs in a process of
its own, once with few and once with many features; what is shown is the difference of the peaks (PSS of the
process tree) by the number of features. What is made is dropped at once, so that only what a step itself
keeps counts; for the layer that is all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.watched import watched

BLOCK, COLS = 2048, 16384
DASH, GAP = 64, 4  # rows of a dash, columns from one to the next
PER_ROW = COLS // GAP

# Case, what it shows, rows of blocks or of shards: few, many.
CASES = (
    ("polygons-inside", "polygons of a raster, none on a border", 2, 8),
    ("polygons-across", "polygons, each across one row of block borders", 2, 8),
    ("polygons-through", "polygons through the whole raster; per block crossed", 2, 8),
    ("objects-inside", "detections, none near a tile border", 2, 16),
    ("objects-across", "detections at tile borders, where they are open", 2, 16),
    ("layer", "the layer while it is written, borders or not", 1, 20),
)


def main() -> None:
    """Run and print, or be one of the processes of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half of the features")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.step:
        _step(chosen.step[0], int(chosen.step[1]))
        return
    sys.stdout.write(
        "| what is held | features: few, many | peak, MiB: few, many | bytes per feature |\n"
        "|---|---|---|---|\n"
    )
    with tempfile.TemporaryDirectory(prefix="infer-borders-") as folder:
        for case, title, few, many in CASES:
            many = max(few + 1, many // 2) if chosen.quick else many
            one, other = (
                watched([sys.executable, __file__, "--step", case, str(rows)], Path(folder))
                for rows in (few, many)
            )
            rate = (other["peak_mib"] - one["peak_mib"]) * 2**20 / (other["features"] - one["features"])
            counts = f"{one['features']:,}, {other['features']:,}"
            peaks = f"{one['peak_mib']:.0f}, {other['peak_mib']:.0f}"
            sys.stdout.write(f"| {title} | {counts} | {peaks} | {rate:,.0f} |\n")
            sys.stdout.flush()


def _step(case: str, rows: int) -> None:
    kind, _, where = case.partition("-")
    steps: dict[str, Callable[[int, str], int]] = {
        "polygons": _polygons,
        "objects": _objects,
        "layer": _layer,
    }
    sys.stdout.write(json.dumps({"features": steps[kind](rows, where)}) + "\n")


def _polygons(rows: int, where: str) -> int:
    from tasks.infer.vectorise import polygons_of

    def read(window: Any) -> Any:
        line = np.arange(window.row, window.row_stop)
        # Distance to the nearest row of borders, or to the nearest middle of a block.
        middle = (line + BLOCK // 2) % BLOCK - BLOCK // 2 if where == "across" else line % BLOCK - BLOCK // 2
        there = np.ones(len(line), bool) if where == "through" else np.abs(middle) < DASH // 2
        stripes = np.arange(window.col, window.col_stop) % GAP < GAP // 2
        return (there[:, None] & stripes[None]).astype(np.uint8)

    made = sum(len(part.value) for part in polygons_of(read, (rows * BLOCK, COLS), nodata=0, block=BLOCK))
    return made * rows if where == "through" else made


def _objects(rows: int, where: str) -> int:
    import shapely

    from tasks.infer.objects import Objects
    from tasks.infer.reconcile import reconciled
    from tasks.infer.shards import TileGeometry

    geometry = TileGeometry(rows=448, cols=448, padding=32)
    tiles = 4  # rows of tiles per shard

    def tables() -> Iterator[tuple[int, Objects]]:
        for row in range(rows):
            stop = (row + 1) * tiles
            # The last tile row's lower border, or the middle of a tile.
            y = stop * 448 - (10.0 if where == "across" else 200.0)
            x = np.arange(PER_ROW) * 12.0
            n = len(x)
            yield (
                stop,
                Objects(
                    tile_row=np.full(n, stop - 1, np.int32),
                    tile_col=(x // 448).astype(np.int32),
                    class_name=np.full(n, "Tree", object),
                    confidence=np.full(n, 90.0),
                    owned=np.ones(n, np.bool_),
                    at_border=np.full(n, where == "across"),
                    cut=np.zeros(n, np.bool_),
                    attributes=np.full(n, "{}", object),
                    geometry=shapely.box(x, y, x + 8, y + 8),
                ),
            )

    return sum(len(table) for table in reconciled(tables(), geometry))


def _layer(rows: int, _: str) -> int:
    import pyproj
    import shapely

    from tasks.infer.outputs_features import Features, write_features

    n = rows * 5000
    x = np.arange(n) % 1000 * 10.0 + 500_000
    y = np.arange(n) // 1000 * 10.0 + 4_900_000
    features = Features(
        geometry=shapely.box(x, y, x + 8, y + 8),
        class_name=["Tree"] * n,
        class_value=[1] * n,
        confidence=np.full(n, 90.0),
        source_raster=["s3://imagery/scene.tif"] * n,
        package="trees 0123456789ab",
        run="0" * 64,
    )
    with tempfile.TemporaryDirectory() as folder:
        return write_features(Path(folder), "layer", pyproj.CRS.from_epsg(32612).to_wkt(), features).count


if __name__ == "__main__":
    main()
