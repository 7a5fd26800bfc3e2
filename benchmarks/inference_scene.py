"""What the inference benchmarks share: a package whose network is sure of itself, and one run of a part."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NAME = "benchmark"
SAMPLES = 8  # batches in memory that a bare pass goes round


def use_folder(folder: Path) -> None:
    """Store and cache of this process, and what it may read, lie in ``folder``, unless a server has them."""
    if "CHIPLINE_STORES" in os.environ:
        return
    os.environ["CHIPLINE_ROOT"] = f"{folder}/store"
    os.environ["CHIPLINE_CACHE"] = f"{folder}/cache"
    os.environ["CHIPLINE_ALLOWED_ROOTS"] = f'["{folder}"]'


@dataclass(frozen=True)
class Scaled:
    """Bytes to 0-1, which is what other tools do."""

    minimum: tuple[float, ...] = (0.0,) * 3
    maximum: tuple[float, ...] = (255.0,) * 3
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    imagenet: bool = False


def publish(folder: Path, network: Any, *, classes: int, tile: int, batch: int = 4, bands: int = 3) -> None:
    """The network as a package of ours in the folder's store; its URI is written to ``folder/package``."""
    from tasks.labels import ClassSchema
    from tasks.package.build import build_package
    from tasks.package.network_source import emit_network
    from tasks.package.publish import publish_package
    from tasks.store import ObjectStore

    made = folder / "made"
    made.mkdir()
    path = build_package(
        kind="pixels",
        name=NAME,
        network_source=emit_network(network),
        state_dict=network.state_dict(),
        classes=ClassSchema.from_values({value: f"Class {value}" for value in range(1, classes)}),
        normalisation=Scaled((0.0,) * bands, (255.0,) * bands, (0.0,) * bands, (1.0,) * bands),
        tile_size=tile,
        batch_size=batch,
        cell_size=0.1,
        wkid=32612,
        band_names=[f"Band {number}" for number in range(1, bands + 1)],
        metrics={},
        metrics_html="<html></html>",
        characteristics={},
        extra_definition={},
        into=made,
    )
    (folder / "package").write_text(publish_package(ObjectStore(), path, made_by="benchmark"))


def trained_unet(raster: Path, *, steps: int, classes: int = 2, encoder: str = "resnet18") -> Any:
    """A U-Net on a ResNet that was taught for ``steps`` to tell bright from dark ground.

    Random weights would do for speed, but not for comparing precisions: their scores lie so close together
    that any rounding changes classes.
    """
    import rasterio
    import segmentation_models_pytorch as smp
    import torch
    from rasterio.windows import Window

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    with rasterio.open(raster) as dataset:
        network = smp.Unet(encoder, encoder_weights=None, in_channels=dataset.count, classes=classes)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(steps):
            places = random.integers(0, min(dataset.shape) - 128, (8, 2)).tolist()
            pixels = np.stack([dataset.read(window=Window(col, row, 128, 128)) for row, col in places])
            images = torch.from_numpy(pixels).float() / 255
            wide = torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 9, 1, 4)[:, 0]
            wanted = (wide * classes * 1.4).long().clamp(0, classes - 1)
            optimiser.zero_grad()
            loss: Any = torch.nn.functional.cross_entropy(network(images), wanted)
            loss.backward()
            optimiser.step()
    return network.eval()


def prepared_network(folder: Path, device: int = -1) -> tuple[Any, Any]:
    """``(chipline_engines, network)``: the package's own files, in this process, on the CPU or that GPU."""
    from tasks.package.fetch import fetch_package
    from tasks.store import ObjectStore

    package = fetch_package((folder / "package").read_text(), ObjectStore())
    sys.path.insert(0, str(package.folder))
    import chipline_engines
    import chipline_runtime

    network = chipline_runtime.PackagedNetwork(str(package.emd_path), device, str(package.folder), None)
    return chipline_engines, network


def bare_passes(
    folder: Path,
    engine: str,
    precision: str,
    batches: int,
    *,
    shape: tuple[int, int, int, int],
    device: int = -1,
    settled: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Forward passes of the folder's package over normalised tiles of its scene that lie in memory.

    Args:
        shape: of a batch: (n, bands, rows, cols).
        device: number of a GPU, or -1.
        settled: waits for the device.

    Returns:
        see ``benchmarks.watched.Clock``.
    """
    import rasterio
    import torch
    from rasterio.windows import Window

    from benchmarks.watched import Clock

    engines, network = prepared_network(folder, device=device)
    count, _, rows, cols = shape
    with rasterio.open(folder / "scene.tif") as dataset:
        room = min(dataset.shape) - max(rows, cols)

        def chip(number: int, sample: int) -> Any:
            return dataset.read(window=Window(37 * number % room, 61 * (number + sample) % room, cols, rows))

        images = [
            network.normalised(np.stack([chip(number, sample) for number in range(count)]))
            for sample in range(SAMPLES)
        ]
    with torch.inference_mode():
        execution = engines.Execution(network.module, shape, engine, precision)
        execution.settle([], {"execution_engine": engine, "precision": precision})
        for image in images[:2]:
            execution.logits(image)
        settled()
        clock = Clock()
        for number in range(batches):
            execution.logits(images[number % SAMPLES])
        settled()
        return clock.read()


def run_part(
    folder: Path,
    raster: str,
    *,
    engine: str,
    precision: str,
    padding: int,
    shard_size: int,
    finish: bool,
    **more: Any,
) -> dict[str, Any]:
    """Plan, one part with all shards, and perhaps the outputs; nothing of an earlier run is left over.

    ``more``: further parameters of Classify Pixels.
    """
    import psutil

    from tasks.infer.finish import finish as put_together
    from tasks.infer.parameters import ClassifyPixelsParameters
    from tasks.infer.part import compute_part
    from tasks.infer.prepare import prepare
    from tasks.package.fetch import fetch_package
    from tasks.parameters import ModelArgument
    from tasks.store import ObjectStore

    for old in ("shards", "outputs"):
        shutil.rmtree(folder / "store" / old, ignore_errors=True)
    store = ObjectStore()
    parameters: Any = {
        "execution_engine": engine, "precision": precision, "processor_type": "CPU", **more
    }  # fmt: skip
    started = time.perf_counter()
    plan = prepare(
        ClassifyPixelsParameters(
            input_raster=[raster],
            model=(folder / "package").read_text(),
            output_classified_raster=NAME,
            model_arguments=[ModelArgument(name="padding", value=str(padding))],
            shard_size=shard_size,
            shards_per_part=10_000,
            **parameters,
        ),
        store,
    )
    planning = time.perf_counter() - started
    ended = {"plan": time.time()}
    package = fetch_package(plan.package.uri, store)
    before = psutil.Process().cpu_times()
    report = compute_part(store, plan, 0, package=package)
    ended["part"] = time.time()
    after = psutil.Process().cpu_times()
    started = time.perf_counter()
    if finish:
        put_together(store, plan, {})
        ended["outputs"] = time.time()
    return {
        "ended": ended,
        "planning_s": planning,
        "starting_s": report.seconds_starting,
        "engine_s": report.seconds,
        "finishing_s": time.perf_counter() - started,
        "own_cpu_s": after.user + after.system - before.user - before.system,
        "waiting_s": report.counters["seconds_waiting_for_host"],
        "blocks": int(report.counters["tiles"]),
        "shards": len(plan.shards),
        "block_px": plan.geometry.rows,
        "execution": report.execution,
        "device": report.device,
        "folder": plan.folder,
    }


def say(answer: dict[str, Any]) -> None:
    """Print for ``benchmarks/watched.py``."""
    sys.stdout.write(json.dumps(answer) + "\n")
