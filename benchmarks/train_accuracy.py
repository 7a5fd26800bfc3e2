"""What a training on a CPU reaches: export, train within a time, infer, score, without any server.

    python benchmarks/train_accuracy.py --model FCOS --minutes 2.5 [--area south] [--threads 2]

Areas: ``south`` and ``north`` hold out that third of the western example scene and train on the rest: for
every choice of the recipe. ``east`` trains on the whole western scene and scores the two eastern ones: once,
at the end. ``--minutes 0`` trains one step only: the untrained model. Prints a Markdown row with intervals
from a bootstrap over blocks of ground.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rasterio
from rasterio.windows import Window
from steps import exported, inferred, settle_in, trained

SCENES = Path(__file__).resolve().parents[1] / "examples" / "yellowstone_trees"
LABELS = str(SCENES / "trees.gpkg")
# Pixels between the two parts of a scene, so that no chip shares a crown's core with the held-out part.
MARGIN = 24


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["FCOS", "RETINANET", "UNET"], required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training; 0: one step")
    parser.add_argument("--area", choices=["south", "north", "east"], default="south")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tile-size", type=int, default=384)
    parser.add_argument("--chip-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=None)
    parser.add_argument("--validation-percent", type=float, default=10.0)
    parser.add_argument("--threshold", type=float, default=0.05, help="least confidence of a detection")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processor", choices=["AUTO", "CPU", "GPU"], default="CPU")
    parser.add_argument("--argument", action="append", default=[], metavar="NAME=VALUE")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="train-benchmark-") as folder:
        settle_in(Path(folder), SCENES)
        _run(Path(folder), chosen)


def _run(folder: Path, chosen: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(chosen.threads)
    train_rasters, test_rasters = areas(folder, chosen.area)
    pixels = chosen.model == "UNET"
    data = export(train_rasters, chosen, "Classified_Tiles" if pixels else "PASCAL_VOC_rectangles")
    record = _train(data, chosen)
    started = time.monotonic()
    results = _infer(test_rasters, record.package, chosen, pixels=pixels)
    seconds = time.monotonic() - started
    _print(chosen, record, score(results, test_rasters, pixels=pixels), seconds)


def areas(folder: Path, area: str) -> tuple[list[str], list[str]]:
    """The scenes to train on and those to score, cut where one scene is parted."""
    west = SCENES / "west.tif"
    if area == "east":
        return [str(west)], [str(SCENES / f"{name}.tif") for name in ("northeast", "southeast")]
    with rasterio.open(west) as scene:
        third = scene.height // 3
        if area == "south":
            held = (2 * third, scene.height)
            kept = (0, 2 * third - MARGIN)
        else:
            held = (0, third)
            kept = (third + MARGIN, scene.height)
        files = []
        for name, (top, bottom) in (("train", kept), ("test", held)):
            window = Window(0, top, scene.width, bottom - top)  # type: ignore[call-arg, unused-ignore]
            profile = {
                **scene.profile,
                "height": bottom - top,
                "transform": scene.window_transform(window),
                "compress": "deflate",
                "photometric": "rgb",
            }
            path = folder / f"{name}.tif"
            with rasterio.open(path, "w", **profile) as target:
                target.write(scene.read(window=window))
            files.append(str(path))
    return [files[0]], [files[1]]


def export(rasters: list[str], chosen: argparse.Namespace, metadata_format: str) -> str:
    """The folder of the chips."""
    return exported(
        input_raster=rasters,
        input_class_data=LABELS,
        output_location="benchmark",
        tile_size=chosen.tile_size,
        stride_size=chosen.tile_size // 2,
        metadata_format=metadata_format,
    )


def _train(data: str, chosen: argparse.Namespace) -> Any:
    return trained(
        data,
        dict(argument.split("=", 1) for argument in chosen.argument),
        output_name="benchmark",
        model_type=chosen.model,
        max_epochs=100_000 if chosen.minutes else 1,
        time_limit_minutes=chosen.minutes or 1e-6,
        chip_size=chosen.chip_size,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate if chosen.minutes else 1e-9,
        validation_percent=chosen.validation_percent,
        seed=chosen.seed,
        processor_type=chosen.processor,
    )


def _infer(rasters: list[str], package_uri: str, chosen: argparse.Namespace, *, pixels: bool) -> str:
    from tasks.infer.parameters import ClassifyPixelsParameters, DetectObjectsParameters

    shared: dict[str, Any] = {
        "input_raster": rasters,
        "model": package_uri,
        "processing_mode": "PROCESS_ITEMS_SEPARATELY",
        "processor_type": "CPU",
    }
    if pixels:
        return inferred(ClassifyPixelsParameters(output_classified_raster="benchmark", **shared))
    threshold = [{"name": "threshold", "value": str(chosen.threshold)}]
    return inferred(DetectObjectsParameters(output_objects="benchmark", model_arguments=threshold, **shared))


def score(result: str, rasters: list[str], *, pixels: bool) -> dict[str, Any]:
    """The row of the trees, at an IoU of 0.4."""
    from tasks.assess.parameters import AccuracyParameters
    from tasks.assess.run import compute
    from tasks.store import ObjectStore

    parameters = AccuracyParameters.model_validate(
        {
            "ground_truth_features": LABELS,
            "out_accuracy_table": "benchmark",
            "classified_raster" if pixels else "detected_features": [result],
            "extent_rasters": rasters,
            "min_iou": 0.4,
        }
    )
    rows = compute(ObjectStore(), parameters).rows
    return next(row for row in rows if row["Class"] == "Tree")


def _print(chosen: argparse.Namespace, record: Any, row: dict[str, Any], inference_seconds: float) -> None:
    measure = "IoU" if chosen.model == "UNET" else "AP"
    interval = [row.get(f"{measure}_{end}") for end in ("Low", "High")]
    validation = record.metrics.get("miou" if chosen.model == "UNET" else "average_precision")
    sys.stdout.write(
        f"| {chosen.model} | {chosen.area} | {chosen.minutes:g} min, {chosen.threads} threads, "
        f"{record.metrics['steps']} steps of {chosen.batch_size} | "
        f"{record.effort['chips_per_second']:.1f} chips/s | validation {validation:.3f} | "
        f"{measure} {row[measure]:.3f} {interval} | F1 {row['F1_Score']:.3f} | "
        f"inference {inference_seconds:.0f} s | load {os.getloadavg()[1]:.1f} |\n"
    )
    sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
