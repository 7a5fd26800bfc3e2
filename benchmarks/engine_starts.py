"""What a start of a function costs by each execution engine, with and without what an earlier start left.

    python benchmarks/engine_starts.py [--rounds 3] [--size 4096] [--runs OPENVINO/BFLOAT16 …] [--threads 2]

A U-Net on a ResNet-18, tiles of 512 px, four to a call. A start is the process, its imports and the network;
the engine, made or taken from the cache; and for the first part of a run the comparison with torch in
float32. Each round makes every kind of start once, so that other work on the machine meets all of them:

* first, nothing kept: the first part of a run on a machine that does not know the package;
* later, nothing kept: every further part of it, before there was a cache;
* first, kept: the first part of another run over the same imagery (another output, another threshold);
* later, kept: every further part now.

Prints Markdown; the ratio is taken within each round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference_scene import publish, trained_unet, use_folder
from benchmarks.scenes import make_raster

TILE, BATCH = 512, 4
RUNS = ("TORCH/BFLOAT16", "ONNXRUNTIME/FLOAT32", "OPENVINO/FLOAT32", "OPENVINO/BFLOAT16")
KINDS = ("first, nothing kept", "later, nothing kept", "first, kept", "later, kept")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=4096, help="edge of the raster, px")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), help="execution engine/precision")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=60, help="of teaching the network")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="engine-starts-") as name:
        folder = Path(name)
        use_folder(folder)
        make_raster(folder / "scene.tif", chosen.size)
        publish(folder, trained_unet(folder / "scene.tif", steps=chosen.steps), classes=2, tile=TILE)
        rows = [_measured(folder, chosen.rounds, *run.split("/")) for run in chosen.runs]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    sys.stdout.write(
        f"{chosen.threads} threads, {chosen.rounds} rounds, load average at the end {load}\n\n"
        f"| execution | computed by | agreement (at least) on tiles | {' | '.join(f'{k}, s' for k in KINDS)} "
        "| later starts: times as fast | kept, MiB |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    for row in rows:
        sys.stdout.write("| " + " | ".join(row) + " |\n")


def _measured(folder: Path, rounds: int, engine: str, precision: str) -> list[str]:
    from tasks.infer.execution import decided_engine
    from tasks.infer.parameters import ClassifyPixelsParameters
    from tasks.infer.prepare import prepare
    from tasks.package.fetch import fetch_package
    from tasks.store import ObjectStore

    store = ObjectStore()
    parameters: Any = {"execution_engine": engine, "precision": precision, "processor_type": "CPU"}
    plan = prepare(
        ClassifyPixelsParameters(
            input_raster=[str(folder / "scene.tif")],
            model=(folder / "package").read_text(),
            output_classified_raster="starts",
            **parameters,
        ),
        store,
    )
    package = fetch_package(plan.package.uri, store)
    cache = folder / "cache" / "engines"
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            if kind == "first, nothing kept":
                shutil.rmtree(cache, ignore_errors=True)
            elif kind == "later, nothing kept":
                for path in cache.glob("*/*.engine"):
                    path.unlink()
            if kind.startswith("first"):
                Path(plan.folder, "execution.json").unlink(missing_ok=True)
            seconds[kind].append(_start(store, plan, package))
    used: dict[str, Any] = decided_engine(store, plan) or {}
    held = sum(path.stat().st_size for path in cache.glob("*/*.engine")) / 2**20
    ratios = [before / now for before, now in zip(seconds[KINDS[1]], seconds[KINDS[3]], strict=True)]
    agreement = ""
    if used.get("agreement") is not None:
        agreement = f"{used['agreement']:.5f} ({used['at_least']:.5f}) on {used['tiles']}"
    elif used.get("refused"):
        refused = used["refused"][0]
        agreement = f"refused: {refused['agreement']:.5f} ({refused['at_least']:.5f}) on {refused['tiles']}"
    return [
        f"{engine}/{precision}",
        f"{used.get('execution_engine')}/{used.get('precision')}",
        agreement,
        *(
            f"{median(seconds[kind]):.1f} ({min(seconds[kind]):.1f}–{max(seconds[kind]):.1f})"
            for kind in KINDS
        ),
        f"{median(ratios):.1f}",
        f"{held:.0f}",
    ]


def _start(store: Any, plan: Any, package: Any) -> float:
    from tasks.host import HostProcess
    from tasks.infer.execution import settle_engine
    from tasks.infer.part import read_window

    begun = time.perf_counter()
    with HostProcess(package, arguments=plan.arguments, foreign=plan.package.foreign) as host:
        settle_engine(store, plan, host, partial(read_window, plan))
        pad = plan.geometry.padding
        # One block: engines make the last of themselves for the first shape that they see.
        block = np.full((3, plan.geometry.rows + 2 * pad, plan.geometry.cols + 2 * pad), 99, np.uint8)
        host.run("updatePixels", block, shape=(plan.geometry.rows, plan.geometry.cols))
        return time.perf_counter() - begun


if __name__ == "__main__":
    main()
