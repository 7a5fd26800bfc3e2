"""How fast an export is beside its bare limit and beside geoai, on one raster, one after the other.

    python benchmarks/export_chips.py [--size 10000] [--labels 20000] [--stride 256] [--large 32768]

Makes a COG and polygons in a temporary folder (10 GB, most of it geoai's environment), then runs in a
process of its own each: our export (plan, cut, finish, with the processes that it starts for cutting) into a
local folder; the bare limit, which decodes every block once and encodes every chip in as many threads as
there are cores, and writes nothing, once with our encoder, once with GDAL's through rasterio (deflate level
1, which is what most tools would do);
``geoai.export_geotiff_tiles``. Ours and the limits run twice, since other work on the machine comes and
goes; the faster run counts. ``--large`` adds one export of a larger raster with as many polygons per area,
to show what memory does. Prints Markdown rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from exporting import exported
from scenes import TRANSFORM, decoded, make_labels, make_raster
from watched import Clock, watched

GEOAI = "geoai-py==0.40.1"
# geoai writes label rasters with any format; of those that it does not know, nothing else.
FORMATS = {"PASCAL_VOC_rectangles": "PASCAL_VOC", "Classified_Tiles": "none"}


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10_000, help="edge of the raster, px")
    parser.add_argument("--labels", type=int, default=20_000, help="polygons on it")
    parser.add_argument("--tile", type=int, default=256, help="edge of a chip, px")
    parser.add_argument("--stride", type=int, default=256, help="distance of chips, px")
    parser.add_argument("--processes", type=int, default=0, help="that cut; 0: one for each core")
    parser.add_argument("--large", type=int, default=0, help="edge of a second, larger raster, px")
    parser.add_argument("--geoai", default="", help="a Python that has geoai; else an environment is made")
    parser.add_argument("--without-geoai", action="store_true")
    parser.add_argument("--folder", default=None, help="where the temporary folder is made")
    parser.add_argument("--case", nargs=3, metavar=("CASE", "FORMAT", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        case, metadata_format, folder = chosen.case
        sizes = Path(folder), metadata_format, chosen.tile, chosen.stride
        if case == "ours":
            answer = exported(*sizes, processes=chosen.processes)
        else:
            answer = _bare(*sizes, by_gdal=case == "bare-gdal")
        sys.stdout.write(json.dumps(answer) + "\n")
        return
    with tempfile.TemporaryDirectory(prefix="export-benchmark-", dir=chosen.folder) as folder:
        for line in _table(Path(folder), chosen):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def _table(folder: Path, chosen: argparse.Namespace) -> Iterator[str]:
    make_raster(folder / "scene.tif", chosen.size)
    make_labels(folder / "labels.gpkg", chosen.size, chosen.labels)
    geoai = None if chosen.without_geoai else chosen.geoai or _geoai_environment(folder)
    yield (
        "| case | chips | seconds | chips/s | chips per processor second "
        "| time over the limits (ours / GDAL's) | chips/s over geoai's | peak memory, MiB |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for metadata_format, theirs in FORMATS.items():
        runs: dict[str, list[dict[str, Any]]] = {}
        for case in ("bare", "bare-gdal", "ours", "ours", "bare-gdal", "bare"):
            runs.setdefault(case, []).append(_case(case, metadata_format, folder, chosen))
        best = {case: min(answers, key=lambda answer: answer["wall_s"]) for case, answers in runs.items()}
        ours, limit, common = best["ours"], best["bare"], best["bare-gdal"]
        peer = None
        if geoai:
            command = [geoai, str(Path(__file__).with_name("export_geoai.py"))]
            command += [
                str(folder / "scene.tif"),
                str(folder / "labels.gpkg"),
                str(folder / f"geoai-{theirs}"),
            ]
            peer = watched([*command, theirs, str(chosen.tile), str(chosen.stride)], folder)
        yield _row(f"{metadata_format}, ours", ours, [limit, common], peer)
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in ours["phases"].items())
        yield f"| … of it {phases} | | | | | | | |"
        yield _row(f"{metadata_format}, bare limit, our encoder", limit, [], None)
        yield _row(f"{metadata_format}, bare limit, GDAL's encoder", common, [], None)
        if peer:
            yield _row(f"{metadata_format}, geoai {peer['version']} ({theirs})", peer, [limit, common], None)
    if chosen.large:
        large = folder / "large"
        large.mkdir()
        make_raster(large / "scene.tif", chosen.large, overviews=False)
        count = round(chosen.labels * (chosen.large / chosen.size) ** 2)
        make_labels(large / "labels.gpkg", chosen.large, count)
        ours = _case("ours", "Classified_Tiles", large, chosen)
        yield _row(f"Classified_Tiles, ours, {chosen.large} px, {count} polygons", ours, [], None)


def _case(case: str, metadata_format: str, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", case, metadata_format, str(folder)]
    sizes = ["--tile", str(chosen.tile), "--stride", str(chosen.stride)]
    sizes += ["--processes", str(chosen.processes)]
    environment = {
        "CHIPLINE_ROOT": f"{folder}/store/{uuid.uuid4().hex}",
        "CHIPLINE_CACHE": f"{folder}/cache",
        "CHIPLINE_ALLOWED_ROOTS": json.dumps([str(folder)]),
    }
    return watched([*command, *sizes], folder, environment)


def _row(name: str, answer: dict[str, Any], limits: list[dict[str, Any]], peer: dict[str, Any] | None) -> str:
    speed = answer["chips"] / answer["wall_s"]
    over = " / ".join(f"{answer['wall_s'] / limit['wall_s']:.2f}" for limit in limits)
    times = f"{speed * peer['wall_s'] / peer['chips']:.1f}" if peer else ""
    return (
        f"| {name} | {answer['chips']} | {answer['wall_s']:.1f} | {speed:.0f} "
        f"| {answer['chips'] / answer['cpu_s']:.0f} | {over} | {times} | {answer['peak_mib']:.0f} |"
    )


def _geoai_environment(folder: Path) -> str:
    """geoai in an environment of its own: it brings 200 packages."""
    python = folder / "geoai" / "bin" / "python"
    subprocess.run(["uv", "venv", "-q", "--python", "3.11", str(folder / "geoai")], check=True)
    subprocess.run(["uv", "pip", "install", "-q", "--python", str(python), GEOAI], check=True)
    return str(python)


def _bare(
    folder: Path, metadata_format: str, tile: int, stride: int, *, by_gdal: bool = False
) -> dict[str, Any]:
    import numpy as np
    import pyogrio
    import rasterio
    from rasterio.features import rasterize

    from tasks.training_data.images import encode_image

    threads = len(os.sched_getaffinity(0))
    with rasterio.open(folder / "scene.tif") as dataset:
        size, crs, wkt = dataset.width, dataset.crs, dataset.crs.to_wkt()
    mask = None
    if metadata_format == "Classified_Tiles":
        # The labels' pixels are given: burning them is no part of the limit.
        frame = pyogrio.read_dataframe(folder / "labels.gpkg")
        shapes = zip(frame.geometry, frame.classvalue, strict=True)
        mask = rasterize(shapes, (size, size), transform=TRANSFORM, dtype=np.uint8)[None]
    last = size - tile
    starts = sorted({min(start, last) for start in range(0, last + stride, stride)})
    clock = Clock()
    pixels = decoded(folder / "scene.tif", threads)

    def encode(window: tuple[int, int]) -> None:
        row, col = window
        place = TRANSFORM @ TRANSFORM.translation(col, row)
        for values in (pixels, mask):
            if values is not None:
                chip = values[:, row : row + tile, col : col + tile]
                if by_gdal:
                    _encode_by_gdal(chip, place, crs)
                else:
                    encode_image(chip, "TIFF", tuple(place)[:6], wkt)

    windows = [(row, col) for row in starts for col in starts]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(encode, windows))
    return {"chips": len(windows), **clock.read()}


def _encode_by_gdal(values: Any, place: Any, crs: Any) -> bytes:
    from rasterio.io import MemoryFile

    bands, rows, cols = values.shape
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            count=bands,
            height=rows,
            width=cols,
            dtype=values.dtype,
            crs=crs,
            transform=place,
            compress="deflate",
            zlevel=1,
            predictor=2,
            interleave="pixel",
        ) as dataset:
            dataset.write(values)
        return bytes(memory.read())


if __name__ == "__main__":
    main()
