"""What the inference engine costs over the bare forward pass of the same tiles.

    python benchmarks/infer_overhead.py [--size 2000] [--padding 32] [--threads 2]

Makes a mosaic of ``--size`` squared pixels of the example scenes (a VRT that repeats one of them), a
package with a randomly initialised U-Net on a ResNet-18, plans, runs the part and finishes: all in a
temporary folder.
The bare pass sends the same super-tiles, as arrays that are in memory already, through the very network of
the package, in this process, with as many threads and the same batches; a sample of them before the engine
and one after it, since other work on the machine comes and goes. Prints Markdown rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio

SCENE = Path(__file__).resolve().parents[1] / "examples" / "yellowstone_trees" / "west.tif"
TILE = 256
SAMPLE = 12  # super-tiles before, and again after


@dataclass
class Usage:
    """Wall seconds, processor seconds of this process and of its children, peak memory in MiB (PSS)."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    own_cpu_s: float = 0.0
    peak_mib: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2000, help="edge of the mosaic, px")
    parser.add_argument("--padding", type=int, default=32, help="halo of a tile of 256 px")
    parser.add_argument("--engine-only", action="store_true", help="a function that costs nothing")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the network")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="infer-benchmark-") as folder:
        os.environ["CHIPLINE_ROOT"] = f"{folder}/store"
        os.environ["CHIPLINE_CACHE"] = f"{folder}/cache"
        os.environ["CHIPLINE_ALLOWED_ROOTS"] = f'["{folder}", "{SCENE.parent}"]'
        if chosen.engine_only:
            _engine_only(Path(folder), chosen.size, chosen.padding)
        else:
            _run(Path(folder), chosen.size, chosen.padding, chosen.threads)


def _run(folder: Path, size: int, padding: int, threads: int) -> None:
    import torch

    from tasks.infer.finish import finish
    from tasks.infer.parameters import ClassifyPixelsParameters
    from tasks.infer.part import compute_part
    from tasks.infer.prepare import prepare
    from tasks.package.fetch import fetch_package
    from tasks.package.publish import publish_package
    from tasks.parameters import ModelArgument
    from tasks.store import ObjectStore

    torch.set_num_threads(threads)
    store = ObjectStore()
    mosaic = _mosaic(folder / "mosaic.vrt", size)
    uri = publish_package(store, _package(folder), made_by="benchmark")
    parameters = ClassifyPixelsParameters(
        input_raster=[str(mosaic)],
        model=uri,
        output_classified_raster="benchmark",
        model_arguments=[ModelArgument(name="padding", value=str(padding))],
        processor_type="CPU",
        shards_per_part=10_000,
    )
    with _measured() as planning:
        plan = prepare(parameters, store)
    package = fetch_package(uri, store)
    network = _bare_network(package)
    blocks = _sample_of_blocks(mosaic, plan.geometry.rows, padding)
    before = _bare(network, blocks, padding)
    with _measured() as engine:
        report = compute_part(store, plan, 0, package=package)
    after = _bare(network, blocks, padding)
    with _measured() as finishing:
        finish(store, plan, {})
    tiles = int(report.counters["tiles"])
    bare_wall = (before.wall_s + after.wall_s) / (2 * SAMPLE) * tiles
    bare_cpu = (before.cpu_s + after.cpu_s) / (2 * SAMPLE) * tiles
    gigapixels = plan.pixels / 1e9
    engine_cpu = engine.cpu_s - _starting_cpu(package)
    _print(
        ("mosaic", f"{size} x {size} px, {plan.pixels / 1e6:.0f} megapixels, {len(plan.shards)} shards"),
        ("super-tiles", f"{tiles} of {plan.geometry.rows} px + 2 x {padding}, 4 tiles of {TILE} each"),
        ("bare forward pass", f"{bare_wall:.1f} s wall, {bare_cpu:.1f} s processor"),
        ("engine", f"{report.seconds:.1f} s wall, {engine_cpu:.1f} s processor"),
        ("of it outside of the function", f"{engine.own_cpu_s:.1f} s processor"),
        ("engine over bare", f"{report.seconds / bare_wall:.3f} wall, {engine_cpu / bare_cpu:.3f} processor"),
        (
            "overhead per gigapixel",
            f"{(report.seconds - bare_wall) / gigapixels:.0f} s wall, "
            f"{(engine_cpu - bare_cpu) / gigapixels:.0f} s processor",
        ),
        ("waiting for the function", f"{report.counters['seconds_waiting_for_host']:.1f} s of the wall time"),
        ("starting the function", f"{report.seconds_starting:.1f} s"),
        ("planning (starts the function once)", f"{planning.wall_s:.1f} s"),
        ("finishing: COG, previews, manifest", f"{finishing.wall_s:.1f} s"),
        (
            "peak memory of the process tree (PSS)",
            f"{engine.peak_mib:.0f} MiB, finishing {finishing.peak_mib:.0f}",
        ),
    )


def _print(*rows: tuple[str, str]) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    sys.stdout.write("| what | value |\n|---|---|\n")
    for name, value in [*rows, ("load average", load)]:
        sys.stdout.write(f"| {name} | {value} |\n")


class _NoFunction:
    """Stands for the host: takes the pixels as the ring does, by a copy, and answers at once."""

    def __init__(self, step: int) -> None:
        self.tickets = 0
        self.answer = np.ones((1, step, step), np.uint8)

    def submit(self, _operation: Any, pixels: Any, _mask: Any, **_more: Any) -> int:
        """Count the block."""
        pixels.copy()
        self.tickets += 1
        return self.tickets

    def result(self, _ticket: int) -> Any:
        """Ones."""
        return self.answer


def _engine_only(folder: Path, size: int, padding: int) -> None:
    """Reading, tiling, stitching and storing alone."""
    from tasks.imagery import GridReader, grid_of_raster, inspect_raster
    from tasks.infer.engine import Source, run_shards
    from tasks.infer.operators import PixelFormat, PixelOperator
    from tasks.infer.shards import Footprint, ShardStore, TileGeometry, plan_shards
    from tasks.store import ObjectStore

    info = inspect_raster(str(_mosaic(folder / "mosaic.vrt", size)))
    grid = grid_of_raster(info)
    step = 2 * (TILE - 2 * padding)
    geometry = TileGeometry(rows=step, cols=step, padding=padding)
    shards = plan_shards(
        grid=0,
        region=grid.window,
        geometry=geometry,
        tiles=(5, 5),
        footprints=[Footprint(grid.window, info.identity)],
        base_key="benchmark",
    )
    operator = PixelOperator(geometry, PixelFormat("uint8", 0))
    sink = ShardStore(ObjectStore(), f"{folder}/store")
    with GridReader([info], grid, (0, 1, 2)) as reader, _measured() as usage:
        sources = {0: Source(grid, reader, pixel_bytes=4, remote=False, props={})}
        host: Any = _NoFunction(step)
        counters = run_shards(shards, sources, host, operator, sink, geometry=geometry)
    gigapixels = size * size / 1e9
    _print(
        ("mosaic", f"{size} x {size} px, {len(shards)} shards, {counters.tiles} super-tiles"),
        ("engine alone", f"{usage.wall_s:.1f} s wall, {usage.cpu_s:.1f} s processor"),
        (
            "per gigapixel",
            f"{usage.wall_s / gigapixels:.0f} s wall, {usage.cpu_s / gigapixels:.0f} s processor",
        ),
        ("peak memory (PSS)", f"{usage.peak_mib:.0f} MiB"),
    )


def _mosaic(path: Path, size: int) -> Path:
    """A VRT of size x size pixels that repeats one example scene."""
    with rasterio.open(SCENE) as scene:
        rows, cols = scene.shape
        bands, wkt = scene.count, scene.crs.to_wkt()
        a, b, c, d, e, f = tuple(scene.transform)[:6]
    text = [
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>{wkt.replace("<", "&lt;")}</SRS>',
        f"<GeoTransform>{c}, {a}, {b}, {f}, {d}, {e}</GeoTransform>",
    ]
    for band in range(1, bands + 1):
        text.append(f'<VRTRasterBand dataType="Byte" band="{band}">')
        for row in range(0, size, rows):
            for col in range(0, size, cols):
                height, width = min(rows, size - row), min(cols, size - col)
                text.append(
                    f'<SimpleSource><SourceFilename relativeToVRT="0">{SCENE}</SourceFilename>'
                    f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="{width}" '
                    f'ySize="{height}"/><DstRect xOff="{col}" yOff="{row}" xSize="{width}" '
                    f'ySize="{height}"/></SimpleSource>'
                )
        text.append("</VRTRasterBand>")
    path.write_text("".join(text) + "</VRTDataset>")
    return path


def _package(folder: Path) -> Path:
    import segmentation_models_pytorch as smp
    import torch

    from tasks.labels import ClassSchema
    from tasks.package.build import build_package
    from tasks.package.network_source import emit_network

    @dataclass(frozen=True)
    class ImageNet:
        minimum: tuple[float, ...] = (0.0,) * 3
        maximum: tuple[float, ...] = (255.0,) * 3
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)
        imagenet: bool = True

    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=2).eval()
    return build_package(
        kind="pixels",
        name="benchmark",
        network_source=emit_network(network),
        state_dict=network.state_dict(),
        classes=ClassSchema.from_values({1: "Tree"}),
        normalisation=ImageNet(),
        tile_size=TILE,
        cell_size=0.1,
        wkid=32612,
        band_names=("Red", "Green", "Blue"),
        metrics={},
        metrics_html="<html></html>",
        characteristics={},
        extra_definition={},
        into=folder,
    )


def _bare_network(package: Any) -> Any:
    """The package's own network and normalisation, in this process."""
    sys.path.insert(0, str(package.folder))
    import chipline_runtime  # the package's

    return chipline_runtime.PackagedNetwork(str(package.emd_path), -1, str(package.folder), None)


def _sample_of_blocks(mosaic: Path, step: int, padding: int) -> list[np.ndarray[Any, Any]]:
    from tasks.imagery import GridReader, Window, grid_of_raster, inspect_raster

    info = inspect_raster(str(mosaic))
    side = step + 2 * padding
    with GridReader([info], grid_of_raster(info), (0, 1, 2)) as reader:
        places = [(number * 97 % max(1, info.height - side), number * 61) for number in range(SAMPLE)]
        return [reader.read(Window(row, col, side, side)).values for row, col in places]


def _bare(network: Any, blocks: list[np.ndarray[Any, Any]], padding: int) -> Usage:
    import torch

    inner = TILE - 2 * padding
    batches = [
        np.stack(
            [
                block[:, row : row + TILE, col : col + TILE]
                for row in range(0, block.shape[1] - 2 * padding, inner)
                for col in range(0, block.shape[2] - 2 * padding, inner)
            ]
        )
        for block in blocks
    ]
    with torch.inference_mode():
        network.module(network.normalised(batches[0]))  # the first call allocates
        with _measured() as usage:
            for batch in batches:
                network.module(network.normalised(batch))
    return usage


def _starting_cpu(package: Any) -> float:
    """Processor seconds of starting the function, which the engine's wall time does not hold either."""
    from tasks.host import HostProcess

    with _measured() as usage, HostProcess(package, processor_type="CPU"):
        pass
    return usage.cpu_s


@contextmanager
def _measured() -> Iterator[Usage]:
    """Time and memory of a block, over this process and its children."""
    usage, seen = Usage(), {}
    own = psutil.Process()

    def sample() -> None:
        while True:
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                    if process.pid != own.pid:
                        times = process.cpu_times()
                        seen[process.pid] = times.user + times.system
                except psutil.Error:
                    continue  # it ended between being listed and being asked
            usage.peak_mib = max(usage.peak_mib, total / 2**20)
            # Adding up the pages costs processor time itself.
            if usage._stop.wait(1.0):
                return

    sampler = threading.Thread(target=sample, name="memory")
    start = own.cpu_times()
    started = time.perf_counter()
    sampler.start()
    try:
        yield usage
    finally:
        usage.wall_s = time.perf_counter() - started
        usage._stop.set()
        sampler.join()
        end = own.cpu_times()
        usage.own_cpu_s = end.user + end.system - start.user - start.system
        usage.cpu_s = usage.own_cpu_s + sum(seen.values())


if __name__ == "__main__":
    main()
