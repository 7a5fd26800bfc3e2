"""What the boundary to the inference function costs: with a function that does nothing, and with a U-Net.

    python benchmarks/host_boundary.py [--blocks 2000] [--rounds 12]

Prints a Markdown row per case: milliseconds per 512 x 512 x 4 tile of bytes, and of a start; then, for one
and for two threads per process, the speed of a packaged U-Net (ResNet-18, four tiles of 256 pixels per block)
through the boundary as a share of the same function's speed in this process. Both take the same blocks in
turns, a few blocks each, so that other work on the machine meets both; a ratio is of one turn of each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tasks.host import HostLimits, HostProcess
from tasks.package import Package, read_definition

FUNCTION = """
import numpy as np

class Nothing:
    def initialize(self, **kwargs):
        self.answer = np.zeros((1, 512, 512), np.uint8)

    def getParameterInfo(self):
        return [{"name": "raster", "dataType": "raster"}]

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": self.answer}

    def vectorize(self, **pixelBlocks):
        return {"output_vectors": '{"features": []}'}
"""
DEFINITION = {
    "Framework": "PyTorch",
    "ModelType": "ImageClassification",
    "InferenceFunction": "Nothing.py",
    "ExtractBands": [0, 1, 2, 3],
    "ImageHeight": 512,
    "ImageWidth": 512,
    "Classes": [{"Value": 1, "Name": "thing", "Color": [0, 255, 0]}],
}


def _package(folder: Path) -> Package:
    (folder / "Nothing.py").write_text(FUNCTION)
    text = json.dumps(DEFINITION)
    (folder / "Nothing.emd").write_text(text)
    return Package(folder=folder, definition=read_definition(text), digest="0" * 64, name="Nothing")


def _milliseconds(host: HostProcess, operation: Any, blocks: int, ahead: int, *, whole_mask: bool) -> float:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 512, 512), dtype=np.uint8)
    plane = np.ones((512, 512), np.uint8)
    mask = np.repeat(plane[None], 4, axis=0) if whole_mask else plane
    tickets: deque[int] = deque()
    started = time.perf_counter()
    for _ in range(blocks):
        tickets.append(host.submit(operation, pixels, mask))
        if len(tickets) > ahead:
            host.result(tickets.popleft())
    while tickets:
        host.result(tickets.popleft())
    return (time.perf_counter() - started) / blocks * 1e3


def _unet_package(folder: Path) -> Package:
    import segmentation_models_pytorch as smp
    import torch

    from benchmarks.inference_scene import Scaled
    from tasks.labels import ClassSchema
    from tasks.package import open_package
    from tasks.package.build import build_package
    from tasks.package.network_source import emit_network

    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=3).eval()
    path = build_package(
        kind="pixels",
        name="unet",
        network_source=emit_network(network),
        state_dict=network.state_dict(),
        classes=ClassSchema.from_values({1: "One", 2: "Two"}),
        normalisation=Scaled((0.0,) * 4, (255.0,) * 4, (0.0,) * 4, (1.0,) * 4),
        tile_size=256,
        batch_size=4,
        padding=0,
        cell_size=0.5,
        wkid=32612,
        band_names=("Red", "Green", "Blue", "NIR"),
        metrics={},
        metrics_html="",
        characteristics={},
        extra_definition={},
        into=folder,
    )
    return open_package(path, folder / "unpacked")


def _function_here(package: Package) -> Any:
    """The package's own function in this process, configured with its defaults."""
    sys.path.insert(0, str(package.folder))
    function = importlib.import_module("ChiplineImageClassifier").ChiplineImageClassifier()
    function.initialize(model=str(package.emd_path), device=-1)
    skipped = ("raster", "model", "device")
    scalars = {
        item["name"]: item["value"] for item in function.getParameterInfo() if item["name"] not in skipped
    }
    function.getConfiguration(model=str(package.emd_path), device=-1, **scalars)
    return function


def _unet_rows(folder: Path, rounds: int, limits: HostLimits) -> None:
    import torch

    package = _unet_package(folder)
    here = _function_here(package)
    blocks = list(np.random.default_rng(0).integers(0, 255, (3, 4, 512, 512), dtype=np.uint8))
    plane = np.ones((512, 512), np.uint8)

    def in_process() -> tuple[float, list[Any]]:
        started = time.perf_counter()
        answers = []
        for block in blocks:
            mask = np.broadcast_to(plane, block.shape).copy()
            props = {"pixelType": "u1"}
            answer = here.updatePixels(
                (0, 0), (512, 512), props, raster_pixels=block.copy(), raster_mask=mask
            )
            answers.append(answer["output_pixels"])
        return time.perf_counter() - started, answers

    def through(host: HostProcess) -> tuple[float, list[Any]]:
        started = time.perf_counter()
        tickets = [host.submit("updatePixels", block, plane) for block in blocks]
        answers = [host.result(ticket) for ticket in tickets]
        return time.perf_counter() - started, answers

    say = sys.stdout.write
    say("\n| U-Net | in this process, ms | through the boundary, ms | speed, median (quartiles) |\n")
    say("|---|---|---|---|\n")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the child's; it gets these variables
        with HostProcess(package, limits=limits) as host:
            same = zip(in_process()[1], through(host)[1], strict=True)  # and both are warm now
            if not all(np.array_equal(one, other) for one, other in same):
                raise SystemExit("The two processes give different pixels.")
            inside, outside = [], []
            for number in range(rounds):
                if number % 2:
                    outside.append(through(host)[0])
                    inside.append(in_process()[0])
                else:
                    inside.append(in_process()[0])
                    outside.append(through(host)[0])
        ratios = np.array(inside) / np.array(outside)
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        per_block = [float(np.median(times)) / len(blocks) * 1e3 for times in (inside, outside)]
        say(
            f"| {threads} thread{'s' * (threads > 1)}, {rounds} turns "
            f"| {per_block[0]:.0f} | {per_block[1]:.0f} | {middle:.3f} ({low:.3f} to {high:.3f}) |\n"
        )
    say(f"\nLoad average at the end: {os.getloadavg()[0]:.1f}\n")


def main() -> None:
    """Runs all cases on this machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--blocks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=12, help="turns of each process with the U-Net")
    chosen = parser.parse_args()
    limits = HostLimits(start_timeout_s=60, block_timeout_s=60, memory_mb=4000)
    with tempfile.TemporaryDirectory() as folder:
        _nothing_rows(Path(folder), chosen.blocks, limits)
    if chosen.rounds:
        with tempfile.TemporaryDirectory() as folder:
            _unet_rows(Path(folder), chosen.rounds, limits)


def _nothing_rows(folder: Path, blocks: int, limits: HostLimits) -> None:
    say = sys.stdout.write
    say("| case | ms |\n|---|---|\n")
    package = _package(folder)
    starts = []
    for _ in range(5):
        started = time.perf_counter()
        with HostProcess(package, limits=limits):
            starts.append(time.perf_counter() - started)
    say(f"| start, contained, ready for blocks | {min(starts) * 1e3:.0f} |\n")
    with HostProcess(package, limits=limits) as host:
        _milliseconds(host, "updatePixels", 50, 2, whole_mask=False)
        for operation in ("updatePixels", "vectorize"):
            for ahead in (0, 2):
                for whole_mask in (False, True):
                    cost = min(
                        _milliseconds(host, operation, blocks // 4, ahead, whole_mask=whole_mask)
                        for _ in range(4)
                    )
                    mask = "a mask per band" if whole_mask else "one mask for all bands"
                    say(f"| {operation}, {ahead + 1} in flight, {mask} | {cost:.2f} |\n")


if __name__ == "__main__":
    main()
