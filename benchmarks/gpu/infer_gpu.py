"""The inference engine over the bare forward pass on a GPU, and how much of the device both use.

    python benchmarks/gpu/infer_gpu.py [--device cuda] [--size 40000] [--batch 64] [--runs TORCH/BFLOAT16 …]
    python benchmarks/gpu/infer_gpu.py --device cpu --size 2048 --batch 4     the same code without a GPU

A U-Net on a ResNet-34, tiles of 512 px, over a COG of ``--size`` squared pixels of 4 bands. The bare pass
sends as many batches of normalised tiles through the same network as the engine will, from the device's own
memory, in a process of its own: half of them before the engine runs and half after it. The goal is an engine
that reaches 90 % of the bare pass. Device use is what the driver reports (nvidia-smi, every half second): the
part of the time in which a kernel ran, and its mean from the first to the last kernel. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.inference_scene import bare_passes, publish, run_part, say, trained_unet, use_folder
from benchmarks.scenes import make_raster
from benchmarks.watched import watched

TILE, BANDS = 512, 4
GOAL = 0.9


def main() -> None:
    """Run and print, or be one of the processes of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, default=40_000, help="edge of the raster, px")
    parser.add_argument("--batch", type=int, default=64, help="tiles per call of the network")
    parser.add_argument("--runs", nargs="+", default=["TORCH/BFLOAT16"], help="execution engine/precision")
    parser.add_argument("--padding", type=int, default=64, help="halo on each side of a tile, px")
    parser.add_argument("--shard-size", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=60, help="of teaching the network")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.step:
        _step(chosen)
        return
    if chosen.device == "cuda":
        _insist_on_a_gpu()
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as name:
        folder = Path(name)
        _run_step(chosen, folder, "make")
        rows = [_measure(chosen, folder, *run.split("/")) for run in chosen.runs]
        _print(chosen, rows)


def _insist_on_a_gpu() -> None:
    from tasks.host import visible_gpus

    if not visible_gpus():
        raise SystemExit(
            "This machine shows no NVIDIA GPU to this process, and nothing was measured. Run on one that has "
            "one (driver, CUDA build of torch, CUDA_VISIBLE_DEVICES), or try the code with --device cpu "
            "--size 2048 --batch 4."
        )


# -- steps, each in a process of its own -------------------------------------------------------------------


def _step(chosen: argparse.Namespace) -> None:
    name, folder = chosen.step[0], Path(chosen.step[1])
    use_folder(folder)
    if name == "make":
        make_raster(folder / "scene.tif", chosen.size, bands=BANDS)
        network = trained_unet(folder / "scene.tif", steps=chosen.steps, encoder="resnet34")
        publish(folder, network, classes=2, tile=TILE, batch=chosen.batch, bands=BANDS)
        say({})
    elif name == "bare":
        say(_bare(chosen, folder, chosen.step[2], chosen.step[3], int(chosen.step[4])))
    else:
        say(
            run_part(
                folder,
                str(folder / "scene.tif"),
                engine=chosen.step[2],
                precision=chosen.step[3],
                padding=chosen.padding,
                shard_size=chosen.shard_size,
                finish=False,
                processor_type="GPU" if chosen.device == "cuda" else "CPU",
            )
        )


def _bare(
    chosen: argparse.Namespace, folder: Path, engine: str, precision: str, batches: int
) -> dict[str, Any]:
    import torch

    on_gpu = chosen.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("The driver shows a GPU, and torch finds none: install torch's CUDA build.")
    answer: dict[str, Any] = bare_passes(
        folder,
        engine,
        precision,
        batches,
        shape=(int(chosen.batch**0.5) ** 2, BANDS, TILE, TILE),
        device=0 if on_gpu else -1,
        settled=torch.cuda.synchronize if on_gpu else lambda: None,
    )
    if on_gpu:
        answer["device_mib"] = torch.cuda.max_memory_reserved() / 2**20
    return answer


# -- the measurement ---------------------------------------------------------------------------------------


class DeviceUse:
    """What nvidia-smi says of the device while a block of code runs; nothing without it."""

    def __init__(self) -> None:
        self.busy: list[float] = []
        self.mib: list[float] = []
        self._program = shutil.which("nvidia-smi")

    def __enter__(self) -> DeviceUse:
        if self._program is None:
            return self
        asked = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        self._process = subprocess.Popen(
            [self._program, *asked, "--loop-ms=500", "--id=0"], stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._program is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            parts = line.strip().split(",")
            if len(parts) == 2 and all(part.strip().isdigit() for part in parts):
                self.busy.append(float(parts[0]))
                self.mib.append(float(parts[1]))

    def words(self) -> tuple[str, str]:
        """Mean use in percent over the busy half of the samples' time, and the most memory in MiB."""
        # Starting, planning and ending leave the device idle; they are not what is measured.
        first = next((n for n, value in enumerate(self.busy) if value > 0), len(self.busy))
        last = len(self.busy) - next((n for n, value in enumerate(self.busy[::-1]) if value > 0), 0)
        during = self.busy[first:last]
        if not during:
            return "", ""
        return f"{sum(during) / len(during):.0f}", f"{max(self.mib):.0f}"


def _run_step(chosen: argparse.Namespace, folder: Path, *step: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--device", chosen.device]
    for name in ("size", "batch", "padding", "shard-size", "steps"):
        command += [f"--{name}", str(getattr(chosen, name.replace("-", "_")))]
    return watched([*command, "--step", step[0], str(folder), *step[1:]], folder)


def _measure(chosen: argparse.Namespace, folder: Path, engine: str, precision: str) -> dict[str, Any]:
    side = int(chosen.batch**0.5) * (TILE - 2 * chosen.padding)
    batches = (-(-chosen.size // side)) ** 2
    half = batches // 2
    with DeviceUse() as bare_use:
        before = _run_step(chosen, folder, "bare", engine, precision, str(half))
    with DeviceUse() as use:
        part = _run_step(chosen, folder, "part", engine, precision)
    after = _run_step(chosen, folder, "bare", engine, precision, str(batches - half))
    if part["blocks"] != batches:
        raise SystemExit(f"the engine sent {part['blocks']} batches, not {batches}")
    used = part["execution"]
    return {
        **part,
        "asked": f"{engine}/{precision}",
        "used": f"{used['execution_engine']}/{used['precision']}",
        "bare_s": before["wall_s"] + after["wall_s"],
        "bare_use": bare_use.words(),
        "use": use.words(),
        "pixels": batches * int(chosen.batch**0.5) ** 2 * TILE**2,
    }


def _print(chosen: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    heads = (
        "execution",
        "computed by",
        "bare, s",
        "bare, Mpx/s",
        "engine, s",
        f"engine's part of the bare rate (goal {GOAL:.0%})",
        "device use, bare / engine, %",
        "device memory, bare / engine, MiB",
        "waiting for the function, s",
        "starting, s",
        "processor time outside of the function, s",
        "peak memory (PSS), MiB",
    )
    sys.stdout.write(
        f"{chosen.size} x {chosen.size} x {BANDS} bytes, tiles of {TILE} px with {chosen.padding} px of "
        f"padding, {chosen.batch} to a batch, {os.cpu_count()} processors, device {rows[0]['device']}\n"
        f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"
    )
    for row in rows:
        cells = (
            row["asked"],
            row["used"],
            f"{row['bare_s']:.1f}",
            f"{row['pixels'] / 1e6 / row['bare_s']:.2f}",
            f"{row['engine_s']:.1f}",
            f"{row['bare_s'] / row['engine_s']:.1%}",
            " / ".join(pair[0] for pair in (row["bare_use"], row["use"])),
            " / ".join(pair[1] for pair in (row["bare_use"], row["use"])),
            f"{row['waiting_s']:.1f}",
            f"{row['starting_s']:.1f}",
            f"{row['own_cpu_s']:.1f}",
            f"{row['peak_mib']:.0f}",
        )
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
