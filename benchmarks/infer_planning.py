"""Planning a raster of 100,000 x 100,000 pixels, and what a shard costs besides its tiles.

    python benchmarks/infer_planning.py [--size 100000] [--rounds 5] [--scene 2048]

Planning, in tiles of 512 px: the raster as one (empty) GeoTIFF, as a VRT of 100 files, and as a mosaic of 100
files. All of ``prepare``, as the tool's run does it (addresses, inspection, a look into the pixels, package,
grid, shards, keys), and then the plan in the store. A package that the store has not seen starts its function
once, which is stated apart.

Orchestration: one scene as many shards and as one, with the same tiles and a network that costs next to
nothing. The difference per shard is what a shard costs: looking for it, its own reads, writing it; fetching
it at the end. What Prefect adds per part, and not per shard, is part of ``infer_scaling.py``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference_scene import publish, run_part, use_folder

TILE, SMALL_TILE, PADDING, PIECES = 512, 128, 16, 10


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scene", type=int, default=2048)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="infer-planning-") as folder:
        _plan(Path(folder) / "planning", chosen.size, chosen.rounds)
    with tempfile.TemporaryDirectory(prefix="infer-shards-") as folder:
        _orchestrate(Path(folder) / "shards", chosen.scene, chosen.rounds)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    sys.stdout.write(f"\nLoad average {load}.\n")


def _plan(folder: Path, size: int, rounds: int) -> None:
    from tasks.infer.parameters import ClassifyPixelsParameters
    from tasks.infer.part import save_plan
    from tasks.infer.prepare import prepare
    from tasks.store import ObjectStore

    folder.mkdir()
    use_folder(folder)
    _publish(folder, TILE)
    inputs = _scenes(folder, size)
    store = ObjectStore()

    def once(rasters: list[str]) -> tuple[float, Any]:
        started = time.perf_counter()
        plan = prepare(
            ClassifyPixelsParameters(
                input_raster=rasters,
                model=(folder / "package").read_text(),
                output_classified_raster="planned",
                processor_type="CPU",
            ),
            store,
        )
        save_plan(store, plan)
        return time.perf_counter() - started, plan

    first, _ = once(inputs["one GeoTIFF"])
    sys.stdout.write(
        f"| raster of {size} x {size} | shards | parts | plan, KiB | s, median | least to most, s |\n"
        "|---|---|---|---|---|---|\n"
    )
    for name, rasters in inputs.items():
        times = []
        for _ in range(rounds):
            took, plan = once(rasters)
            times.append(took)
        written = len(plan.model_dump_json()) / 1024
        sys.stdout.write(
            f"| {name} | {len(plan.shards)} | {len(plan.parts)} | {written:.0f} "
            f"| {statistics.median(times):.2f} | {min(times):.2f}-{max(times):.2f} |\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"\nThe very first time, with imports and the start of the function: {first:.1f} s.\n\n")


def _scenes(folder: Path, size: int) -> dict[str, list[str]]:
    """The same ground in one file, as a VRT and as a mosaic; nothing is in the files but their headers."""
    import rasterio
    from affine import Affine

    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32612", "tiled": True}
    profile |= {"blockxsize": TILE, "blockysize": TILE, "SPARSE_OK": "TRUE", "BIGTIFF": "YES", "nodata": 0}

    def write(name: str, side: int, row: int, col: int) -> str:
        path = folder / name
        place = Affine(0.1, 0, 500_000 + 0.1 * col, 0, -0.1, 5_000_000 - 0.1 * row)
        with rasterio.open(path, "w", **profile, width=side, height=side, transform=place):
            return str(path)

    step = size // PIECES
    mosaic = [
        write(f"{row}_{col}.tif", step, row, col)
        for row in range(0, step * PIECES, step)
        for col in range(0, step * PIECES, step)
    ]
    virtual = folder / "mosaic.vrt"
    virtual.write_text(_virtual(mosaic, step, size))
    return {
        "one GeoTIFF": [write("one.tif", size, 0, 0)],
        f"a VRT of {len(mosaic)} files": [str(virtual)],
        f"a mosaic of {len(mosaic)} files": mosaic,
    }


def _virtual(paths: list[str], step: int, size: int) -> str:
    bands = []
    for band in (1, 2, 3):
        sources = "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{escape(Path(path).name)}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand>"
            f'<SourceProperties RasterXSize="{step}" RasterYSize="{step}" DataType="Byte" '
            f'BlockXSize="{TILE}" BlockYSize="{TILE}"/>'
            f'<SrcRect xOff="0" yOff="0" xSize="{step}" ySize="{step}"/>'
            f'<DstRect xOff="{number % PIECES * step}" yOff="{number // PIECES * step}" '
            f'xSize="{step}" ySize="{step}"/></SimpleSource>'
            for number, path in enumerate(paths)
        )
        bands.append(
            f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>0</NoDataValue>{sources}'
            "</VRTRasterBand>"
        )
    return (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>EPSG:32612</SRS>'
        f"<GeoTransform>500000, 0.1, 0, 5000000, 0, -0.1</GeoTransform>{''.join(bands)}</VRTDataset>"
    )


def _orchestrate(folder: Path, size: int, rounds: int) -> None:
    from benchmarks.scenes import make_raster
    from tasks.settings import settings

    folder.mkdir()
    use_folder(folder)
    settings.cache_clear()
    _publish(folder, SMALL_TILE)
    scene = folder / "scene.tif"
    make_raster(scene, size, overviews=False)
    names = ("engine_s", "finishing_s")
    answers: dict[int, dict[str, Any]] = {}
    for shard_size in (64, 32_768):
        runs = [
            run_part(
                folder,
                str(scene),
                engine="TORCH",
                precision="FLOAT32",
                padding=PADDING,
                shard_size=shard_size,
                finish=True,
            )
            for _ in range(rounds)
        ]
        medians = {name: statistics.median(run[name] for run in runs) for name in names}
        answers[shard_size] = {**medians, "shards": runs[0]["shards"], "blocks": runs[0]["blocks"]}
    many, one = answers[64], answers[32_768]
    more = many["shards"] - one["shards"]
    sys.stdout.write(
        f"| {size} x {size}, {one['blocks']} tiles | {many['shards']} shards, s | {one['shards']} shards, s "
        "| per shard, ms |\n|---|---|---|---|\n"
    )
    for name, label in zip(names, ("computing", "finishing"), strict=True):
        each = 1000 * (many[name] - one[name]) / more
        sys.stdout.write(f"| {label} | {many[name]:.2f} | {one[name]:.2f} | {each:.1f} |\n")


def _publish(folder: Path, tile: int) -> None:
    import torch

    class OneLayer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Conv2d(3, 2, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(images)
            return scores

    torch.manual_seed(0)
    publish(folder, OneLayer().eval(), classes=2, tile=tile)


if __name__ == "__main__":
    main()
