"""The inference engine over the bare forward pass: the same tiles, engine of execution and precision.

    python benchmarks/infer_engine.py [--size 8192] [--runs TORCH/FLOAT32 …] [--padding 64] [--threads 2]
        [--naive] [--geoai-python PYTHON] [--s3 OPENVINO/BFLOAT16 …]

A U-Net on a ResNet-18, tiles of 512 px, four to a call, over a COG of ``--size`` squared pixels of 3 bytes.
The bare pass sends as many batches of normalised tiles as the engine will through the same network and
execution engine, from memory, in a process of its own: half of them before the engine runs and half after it,
since other work on the machine comes and goes. Start-up (torch, making and comparing the execution engine) is
apart. ``--s3`` names runs that are repeated with the raster, the package, shards and outputs in the S3 server
of the local stack. ``--naive`` adds a plain loop with the same weights, ``--geoai-python`` geoai's, with the
interpreter of an environment that holds it; all classes are compared with those of torch in float32. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference_scene import bare_passes, publish, run_part, say, trained_unet, use_folder
from benchmarks.s3_server import s3_server
from benchmarks.scenes import make_raster
from benchmarks.watched import watched

TILE, BATCH = 512, 4
RUNS = ("TORCH/FLOAT32", "TORCH/BFLOAT16", "ONNXRUNTIME/FLOAT32", "OPENVINO/FLOAT32", "OPENVINO/BFLOAT16")
S3_SCENE = "s3://chipline/imagery/scene.tif"


def main() -> None:
    """Run and print, or be one of the processes of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=8192, help="edge of the raster, px")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), help="execution engine and precision")
    parser.add_argument("--padding", type=int, default=64, help="halo on each side of a tile, px")
    parser.add_argument("--shard-size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=60, help="of teaching the network")
    parser.add_argument("--naive", action="store_true", help="also a plain loop over windows")
    parser.add_argument("--geoai-python", help="interpreter of an environment with geoai-py")
    parser.add_argument("--s3", nargs="+", default=[], help="runs to repeat from and into S3")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    if chosen.step:
        _step(chosen)
        return
    with tempfile.TemporaryDirectory(prefix="infer-benchmark-") as name:
        folder = Path(name)
        _run_step(chosen, folder, "make")
        rows = [_measure(chosen, folder, run) for run in chosen.runs]
        if chosen.s3:
            with s3_server(folder, "admin"):
                _run_step(chosen, folder, "publish")
                rows += [_measure(chosen, folder, run, "from S3") for run in chosen.s3]
            for name in [name for name in os.environ if name.startswith("CHIPLINE_")]:
                del os.environ[name]
        _print(chosen, rows)
        _others(chosen, folder)


# -- steps, each in a process of its own -------------------------------------------------------------------


def _step(chosen: argparse.Namespace) -> None:
    name, folder = chosen.step[0], Path(chosen.step[1])
    use_folder(folder)
    if name == "make":
        make_raster(folder / "scene.tif", chosen.size)
        network = trained_unet(folder / "scene.tif", steps=chosen.steps)
        import torch

        torch.save(network.state_dict(), folder / "weights.pth")
        publish(folder, network, classes=2, tile=TILE, batch=BATCH)
        say({})
    elif name == "publish":
        _publish_to_s3(folder)
        say({})
    elif name == "bare":
        engine, precision, batches = chosen.step[2:5]
        say(bare_passes(folder, engine, precision, int(batches), shape=(BATCH, 3, TILE, TILE)))
    else:
        engine, precision = chosen.step[2:4]
        say(
            run_part(
                folder,
                S3_SCENE if "CHIPLINE_STORES" in os.environ else str(folder / "scene.tif"),
                engine=engine,
                precision=precision,
                padding=chosen.padding,
                shard_size=chosen.shard_size,
                finish=True,
            )
        )


def _publish_to_s3(folder: Path) -> None:
    import segmentation_models_pytorch as smp
    import torch

    from tasks.store import ObjectStore

    ObjectStore().upload(folder / "scene.tif", S3_SCENE)
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=2).eval()
    network.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    shutil.rmtree(folder / "made")
    publish(folder, network, classes=2, tile=TILE, batch=BATCH)


# -- the measurement ---------------------------------------------------------------------------------------


def _run_step(chosen: argparse.Namespace, folder: Path, *step: str) -> dict[str, Any]:
    command = [sys.executable, __file__]
    for name in ("size", "padding", "shard-size", "threads", "steps"):
        command += [f"--{name}", str(getattr(chosen, name.replace("-", "_")))]
    return watched([*command, "--step", step[0], str(folder), *step[1:]], folder)


def _measure(chosen: argparse.Namespace, folder: Path, run: str, place: str = "") -> dict[str, Any]:
    engine, precision = run.split("/")
    side = 2 * (TILE - 2 * chosen.padding)
    batches = (-(-chosen.size // side)) ** 2
    half = batches // 2
    before = _run_step(chosen, folder, "bare", engine, precision, str(half))
    part = _run_step(chosen, folder, "part", engine, precision)
    after = _run_step(chosen, folder, "bare", engine, precision, str(batches - half))
    if part["blocks"] != batches:
        raise SystemExit(f"the engine sent {part['blocks']} batches, not {batches}")
    used = part["execution"]
    if not place:
        (result,) = Path(part["folder"]).glob("*.tif")
        result.rename(folder / f"{run.replace('/', '-')}.tif")
    return {
        **part,
        "asked": f"{run} {place}".strip(),
        "used": f"{used['execution_engine']}/{used['precision']}",
        "agreement": used.get("agreement"),
        "bare_s": before["wall_s"] + after["wall_s"],
        "batches": batches,
    }


def _print(chosen: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    gigapixels = chosen.size**2 / 1e9
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    heads = (
        "execution",
        "computed by",
        "agreement",
        "bare, s",
        "Mpx/s",
        "engine, s",
        "engine over bare",
        "overhead, s per gigapixel",
        "processor time outside of the function, s per gigapixel",
        "planning / starting / finishing, s",
        "peak memory (PSS), MiB",
    )
    sys.stdout.write(
        f"{chosen.size} x {chosen.size} x 3 bytes, tiles of {TILE} px with {chosen.padding} px of padding, "
        f"shards of about {chosen.shard_size} px, {chosen.threads} threads, load average at the end {load}\n"
        f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"
    )
    for row in rows:
        pixels = row["batches"] * BATCH * TILE**2
        agreement = "" if row["agreement"] is None else f"{row['agreement']:.5f}"
        cells = (
            row["asked"],
            row["used"],
            agreement,
            f"{row['bare_s']:.1f}",
            f"{pixels / 1e6 / row['bare_s']:.2f}",
            f"{row['engine_s']:.1f}",
            f"{row['engine_s'] / row['bare_s']:.3f}",
            f"{(row['engine_s'] - row['bare_s']) / gigapixels:.0f}",
            f"{row['own_cpu_s'] / gigapixels:.0f}",
            f"{row['planning_s']:.1f} / {row['starting_s']:.1f} / {row['finishing_s']:.1f}",
            f"{row['peak_mib']:.0f}",
        )
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


def _others(chosen: argparse.Namespace, folder: Path) -> None:
    interpreters = {"loop": sys.executable} if chosen.naive else {}
    if chosen.geoai_python:
        interpreters["geoai"] = chosen.geoai_python
    if not interpreters:
        return
    sys.stdout.write("\n| tool | s, without imports | peak memory (PSS), MiB | IoU with torch in float32 |\n")
    sys.stdout.write("|---|---|---|---|\n")
    reference = folder / "TORCH-FLOAT32.tif"
    for tool, python in interpreters.items():
        output = folder / f"{tool}.tif"
        files = [str(folder / "scene.tif"), str(output), str(folder / "weights.pth")]
        command = [python, str(Path(__file__).with_name("infer_loops.py")), tool, *files]
        answer = watched([*command, str(TILE), str(chosen.padding), str(BATCH)], folder)
        iou = _iou(reference, output) if reference.exists() else float("nan")
        sys.stdout.write(
            f"| {tool} {answer['version']} | {answer['wall_s']:.1f} | {answer['peak_mib']:.0f} "
            f"| {iou:.5f} |\n"
        )
    for run in chosen.runs:
        path = folder / f"{run.replace('/', '-')}.tif"
        if path.exists() and reference.exists():
            sys.stdout.write(f"| ours, {run} | | | {_iou(reference, path):.5f} |\n")


def _iou(wanted: Path, found: Path) -> float:
    """Mean IoU of the classes; ours writes 0 where nothing is, which the scene has nowhere."""
    import numpy as np
    import rasterio

    with rasterio.open(wanted) as one, rasterio.open(found) as other:
        together = np.zeros((256, 256), np.int64)
        for row in range(0, one.height, 1024):
            window = ((row, min(row + 1024, one.height)), (0, one.width))
            pairs = (
                one.read(1, window=window).astype(np.int64).ravel() * 256
                + other.read(1, window=window).ravel()
            )
            together += np.bincount(pairs, minlength=65536).reshape(256, 256)
    right = together.diagonal()
    union = together.sum(axis=0) + together.sum(axis=1) - right
    return float((right[union > 0] / union[union > 0]).mean())


if __name__ == "__main__":
    main()
