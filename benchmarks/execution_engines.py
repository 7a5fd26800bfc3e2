"""Bare forward passes of one network by each execution engine, in turns, in one process.

    python benchmarks/execution_engines.py [--rounds 7] [--threads 2] [--batch 4]

A U-Net on a ResNet-18, tiles of 512 px. ``as it comes`` is what a script gets that loads the network and
calls it: torch in float32, images and weights in torch's own order of axes; the others are what a package's
``execution_engine`` and ``precision`` stand for. Each round calls every row once, so that other work on the
machine meets all of them; the ratio is taken within each round. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference_scene import prepared_network, publish, trained_unet, use_folder
from benchmarks.scenes import make_raster

TILE = 512
PLAIN = "torch in float32, as it comes"
ROWS = (
    ("TORCH", "FLOAT32"),
    ("TORCH", "BFLOAT16"),
    ("ONNXRUNTIME", "FLOAT32"),
    ("OPENVINO", "FLOAT32"),
    ("OPENVINO", "BFLOAT16"),
)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=4)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="execution-engines-") as folder:
        seconds = _measured(Path(folder), chosen.rounds, chosen.batch)
    megapixels = chosen.batch * TILE**2 / 1e6
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    sys.stdout.write(
        f"{chosen.batch} tiles of {TILE} px a call, {chosen.threads} threads, {chosen.rounds} rounds, "
        f"load average at the end {load}\n\n"
        "| forward pass | Mpx/s, median (range) | times the speed of the first row, median (quartiles) |\n"
        "|---|---|---|\n"
    )
    for name, times in seconds.items():
        ratios = [first / own for first, own in zip(seconds[PLAIN], times, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        rates = [megapixels / own for own in times]
        sys.stdout.write(
            f"| {name} | {median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f}) "
            f"| {median(ratios):.2f} ({low:.2f} to {high:.2f}) |\n"
        )


def _measured(folder: Path, rounds: int, batch: int) -> dict[str, list[float]]:
    import torch

    use_folder(folder)
    make_raster(folder / "scene.tif", 1024)
    plain = trained_unet(folder / "scene.tif", steps=1)
    publish(folder, plain, classes=2, tile=TILE, batch=batch)
    engines, network = prepared_network(folder)
    torch.manual_seed(0)
    images = torch.rand(batch, 3, TILE, TILE)
    calls: dict[str, Callable[[], Any]] = {PLAIN: lambda: plain(images)}
    with torch.inference_mode():
        for engine, precision in ROWS:
            execution = engines.Execution(network.module, tuple(images.shape), engine, precision)
            # Followed without comparing: agreement is infer_engine.py's to tell.
            execution.settle([], {"execution_engine": engine, "precision": precision})
            given = images.contiguous(memory_format=torch.channels_last) if engine == "TORCH" else images
            name = f"{engine} in {precision}"
            calls[name] = lambda execution=execution, given=given: execution.logits(given)  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            call()
        for _ in range(rounds):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
