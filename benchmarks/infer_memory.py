"""Memory of Classify Pixels over rasters of growing size, with a network that costs next to nothing.

    python benchmarks/infer_memory.py [--sizes 4096 8192 16384 32768] [--classes 2 20] [--blend] [--quick]

Each case in a process of its own: plan, one part with all shards, outputs. What is shown is the highest sum
of the process tree's memory, what it is above the loaded model (which is what the same takes for one tile),
what it is over that of the first size, and the highest sum in each phase. ``--blend`` mixes tiles and keeps
probabilities, too; ``--quick`` takes 2,048 and 4,096.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference_scene import publish, run_part, say, use_folder
from benchmarks.scenes import make_raster
from benchmarks.watched import watched

TILE, PADDING, ONE_TILE = 512, 32, 448


def main() -> None:
    """Run and print, or be one of the processes of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 20])
    parser.add_argument("--blend", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.step:
        _step(*chosen.step)
        return
    sizes = [2048, 4096] if chosen.quick else chosen.sizes
    heads = (
        "classes",
        "raster",
        "wall, s",
        "peak memory, MiB",
        "above the loaded model, MiB",
        f"over that of {sizes[0]}",
        "plan / part / outputs, MiB",
    )
    sys.stdout.write(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n")
    with tempfile.TemporaryDirectory(prefix="infer-memory-") as folder:
        for size in [ONE_TILE, *sizes]:
            make_raster(_scene(Path(folder), size), size, overviews=False)
        for classes in chosen.classes:
            _one_count(Path(folder), classes, sizes, "BLEND" if chosen.blend else "TRIM")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    sys.stdout.write(f"\nLoad average {load}.\n")


def _scene(folder: Path, size: int) -> Path:
    return folder / f"{size}.tif"


def _one_count(folder: Path, classes: int, sizes: list[int], stitching: str) -> None:
    place = folder / str(classes)
    place.mkdir()

    def run(scene: str) -> dict[str, Any]:
        arguments = [str(place), scene, str(classes), stitching]
        return watched([sys.executable, __file__, "--step", *arguments], folder)

    run("")  # makes the package: torch must not be loaded in the processes that are watched
    loaded = run(str(_scene(folder, ONE_TILE)))["peak_mib"]
    sys.stdout.write(f"| {classes} | one tile: the loaded model | | {loaded:.0f} | | | |\n")
    first = 0.0
    for size in sizes:
        answer = run(str(_scene(folder, size)))
        wall, peak = answer["engine_s"] + answer["finishing_s"], answer["peak_mib"]
        first = first or peak
        phases = " / ".join(f"{memory:.0f}" for memory in answer["peaks_mib"].values())
        sys.stdout.write(
            f"| {classes} | {size} x {size} | {wall:.0f} | {peak:.0f} | {peak - loaded:.0f} "
            f"| {100 * (peak / first - 1):+.1f} % | {phases} |\n"
        )
        sys.stdout.flush()


def _step(place: str, scene: str, classes: str, stitching: str) -> None:
    folder = Path(place)
    use_folder(folder)
    os.environ["CHIPLINE_ALLOWED_ROOTS"] = f'["{folder.parent}"]'
    if not scene:
        _publish(folder, int(classes))
        say({})
        return
    blended = {"keep_probabilities": True, "stitching": stitching}
    answer = run_part(
        folder,
        scene,
        engine="TORCH",
        precision="FLOAT32",
        padding=PADDING,
        shard_size=2048,
        finish=True,
        **(blended if stitching == "BLEND" else {}),
    )
    say(answer)


def _publish(folder: Path, classes: int) -> None:
    import torch

    class OneLayer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Conv2d(3, classes, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(images)
            return scores

    torch.manual_seed(0)
    publish(folder, OneLayer().eval(), classes=classes, tile=TILE)


if __name__ == "__main__":
    main()
