"""One worker against two, each pinned to a core of its own; and what orchestration costs per shard.

    python benchmarks/infer_scaling.py [--size 4096] [--parts 8] [--bare-seconds 10]

Boots a stack of its own, replaces its worker of the pool ``gpu`` by workers that are pinned to one core each
(affinity of the worker and of all that it starts; one torch thread), and runs the same Classify Pixels (U-Net
on a ResNet-18, torch, float32, 512 px tiles) with two of them and with one, as a deployment, from and to the
S3 server. The shard phase lasts from the first part's start to the last part's end; processes of parts start
within it. The servers and the run that watches share the cores with the workers.

Two cores may be two threads of one: the limit is what two bare forward passes on the two cores give together,
over what one gives alone. A run whose function costs nothing shows the orchestration. Prints Markdown.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference_scene import publish
from benchmarks.scenes import make_raster
from infra.local import LocalStack, free_port_base
from infra.local.health import client
from infra.local.processes import marked, stop
from infra.local.services import Service, workers

TOOL = "classify_pixels"
PADDING = 64
TILE = 512
SCENE = "s3://chipline/imagery/benchmark/scene.tif"
# A function that costs nothing: what is left is orchestration, reading and writing.
NOTHING = """
import numpy as np


class Nothing:
    def initialize(self, **kwargs):
        pass

    def getParameterInfo(self):
        return [{"name": "raster", "dataType": "raster", "required": True}]

    def getConfiguration(self, **scalars):
        return {"extractBands": (0, 1, 2), "padding": 0, "tx": 64, "ty": 64, "fixedTileSize": 1}

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"].update(bandCount=1, pixelType="u1")
        return kwargs

    def updatePixels(self, tlc, shape, props, **blocks):
        return {"output_pixels": np.ones((1, *shape), np.uint8)}
"""
_BARE = """
import os, sys, time
core, seconds, tile = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
os.sched_setaffinity(0, {core})
import segmentation_models_pytorch as smp
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
network = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=2).eval()
batch = torch.rand(4, 3, tile, tile)
with torch.inference_mode():
    network(batch)
    print("ready", flush=True)
    sys.stdin.readline()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        network(batch)
        count += 1
    print(4 * count / (time.perf_counter() - begun), flush=True)
"""


@dataclass(frozen=True)
class Timed:
    """One run: seconds from its start to its end, of its shard phase, and of the parts' engines together.

    Attributes:
        starting: seconds of each part's run that its engine did not take, on average.
        planning, finishing: seconds of these tasks.
        watching: of the run that were neither planning, finishing nor a part's.
    """

    shards: int
    parts: int
    end_to_end: float
    shard_phase: float
    engines: float
    starting: float
    planning: float
    finishing: float
    watching: float


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="edge of the scene, px")
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--bare-seconds", type=float, default=10.0)
    chosen = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("Two cores are needed.")
    alone, both = _bare(cores[:1], chosen.bare_seconds), _bare(cores, chosen.bare_seconds)
    home = Path(tempfile.mkdtemp(prefix="chipline-scaling-"))
    stack = LocalStack(home / "stack", free_port_base(), say=lambda line: sys.stderr.write(line + "\n"))
    try:
        stack.up()
        network, nothing = _prepare(stack, home, chosen.size)
        stop(marked(stack.secrets.stack_id, "gpu-1"), patience_s=6)
        # A block of the network is four tiles: a shard is one block.
        shard = 2 * (TILE - 2 * PADDING)
        arguments = [{"name": "padding", "value": str(PADDING)}]
        work = {"model": network, "shard_size": shard, "model_arguments": arguments}
        times = {}
        # Two workers first: what is only done once, such as unpacking the package, counts against them.
        for count in (2, 1):
            with _pinned(stack, cores[:count]):
                times[count] = _run(stack, work, size=chosen.size, parts=chosen.parts)
        with _pinned(stack, cores[:1]):
            light = _run(stack, {"model": nothing, "shard_size": 128}, size=chosen.size, parts=2)
    finally:
        stack.down()
        shutil.rmtree(home, ignore_errors=True)
    _print(chosen, times, light, limit=sum(both) / alone[0])


def _bare(cores: list[int], seconds: float) -> list[float]:
    """Tiles per second of a forward pass on each of the cores, at the same time."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _BARE, str(core), str(seconds), str(TILE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for core in cores
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [float(process.communicate()[0]) for process in running]


@contextmanager
def _as(stack: LocalStack, role: Any) -> Iterator[Any]:
    """The object store, in a role."""
    from tasks.settings import settings
    from tasks.store import ObjectStore

    before = dict(os.environ)
    os.environ.update(stack.environment(role))
    settings.cache_clear()
    try:
        yield ObjectStore()
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def _prepare(stack: LocalStack, home: Path, size: int) -> tuple[str, str]:
    """Scene and packages in the store; the packages' URIs: a network, a function that costs nothing."""
    import segmentation_models_pytorch as smp
    import torch

    from tasks.package import ModelDefinition, write_dlpk
    from tasks.package.publish import publish_package

    make_raster(home / "scene.tif", size)
    with _as(stack, "admin") as store:
        store.upload(home / "scene.tif", SCENE)
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=2).eval()
    definition = ModelDefinition.model_validate(
        {
            "ModelType": "ImageClassification",
            "InferenceFunction": "Nothing.py",
            "ImageHeight": 64,
            "ImageWidth": 64,
            "ExtractBands": [0, 1, 2],
            "Classes": [{"Value": 1, "Name": "Ground"}],
        }
    )
    write_dlpk(home / "nothing.dlpk", definition, {"Nothing.py": NOTHING.encode()})
    with _as(stack, "gpu") as store:
        publish(home, network, classes=2, tile=TILE)
        return (home / "package").read_text(), publish_package(store, home / "nothing.dlpk", made_by="bench")


@contextmanager
def _pinned(stack: LocalStack, cores: list[int]) -> Iterator[None]:
    """Workers of the pool ``gpu``, one per core."""
    started = []
    pin = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execv(sys.argv[2], sys.argv[2:])"
    try:
        for service, core in zip(_gpu_workers(stack, len(cores)), cores, strict=True):
            log = (stack.layout.logs / f"{service.name}.log").open("ab")
            begun = time.time()
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", pin, str(core), *service.command],
                    env={**service.environment, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                    cwd=service.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
            log.close()
            while (problem := service.check(begun)) is not None:
                if time.time() - begun > service.patience_s:
                    raise SystemExit(f"{service.name} did not come up: {problem}")
                time.sleep(0.5)
        yield
    finally:
        for service in _gpu_workers(stack, len(cores)):
            stop(marked(stack.secrets.stack_id, service.name), patience_s=6)
        for process in started:
            process.wait()


def _gpu_workers(stack: LocalStack, count: int) -> list[Service]:
    """The workers that the stack would have with so many GPUs."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(count)))
    try:
        names = [f"gpu-{number}" for number in range(1, count + 1)]
        return [one for one in workers(stack.layout, stack.secrets) if one.name in names]
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _run(stack: LocalStack, work: dict[str, Any], *, size: int, parts: int) -> Timed:
    """One run from an empty store."""
    with _as(stack, "admin") as store:
        for kind in ("shards", f"outputs/{TOOL}"):
            for item in list(store.list(f"s3://chipline/{kind}/")):
                store.delete(item.uri)
    shards = math.ceil(size / work["shard_size"]) ** 2
    parameters: dict[str, Any] = {
        "input_raster": [SCENE],
        "output_classified_raster": "scaling",
        "processor_type": "CPU",
        "execution_engine": "TORCH",
        "precision": "FLOAT32",
        "shards_per_part": -(-shards // parts),
        **work,
    }
    url = f"{stack.layout.prefect_url}/api"
    with client(url, stack.secrets.prefect_auth_string, patience_s=90) as http:
        deployment = http.get(f"/deployments/name/{TOOL}/{TOOL}").json()["id"]
        made = http.post(
            f"/deployments/{deployment}/create_flow_run",
            json={"parameters": parameters, "state": {"type": "SCHEDULED"}},
        )
        made.raise_for_status()
        run = made.json()["id"]
        while (state := http.get(f"/flow_runs/{run}").json())["state_type"] not in (
            "COMPLETED", "FAILED", "CRASHED", "CANCELLED",
        ):  # fmt: skip
            time.sleep(0.5)
        if state["state_type"] != "COMPLETED":
            raise SystemExit(f"the run ended as {state['state']}")
        asked = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}
        children = http.post("/flow_runs/filter", json=asked).json()
        tasks = http.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run]}}}).json()
    return _timed(stack, state, children, tasks)


def _timed(stack: LocalStack, run: Any, children: list[Any], tasks: list[Any]) -> Timed:
    from tasks.infer.part import load_plan, reports

    with _as(stack, "admin") as store:
        uri = next(
            item.uri
            for item in store.list(f"s3://chipline/outputs/{TOOL}/scaling/")
            if item.uri.endswith(f"/plan-{len(children)}.json")
        )
        plan = load_plan(store, uri)
        engines = sum(report.seconds for report in reports(store, plan))

    def took(record: Any) -> float:
        return _when(record["end_time"]) - _when(record["start_time"])

    def task(name: str) -> float:
        return sum(took(one) for one in tasks if one["name"].startswith(name) and one["end_time"])

    begun = min(_when(child["start_time"]) for child in children)
    ended = max(_when(child["end_time"]) for child in children)
    planning, finishing, phase = task("plan inference"), task("finish inference"), ended - begun
    return Timed(
        shards=len(plan.shards),
        parts=len(children),
        end_to_end=took(run),
        shard_phase=phase,
        engines=engines,
        starting=(sum(map(took, children)) - engines) / len(children),
        planning=planning,
        finishing=finishing,
        watching=took(run) - planning - finishing - sum(map(took, children)),
    )


def _when(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _print(chosen: argparse.Namespace, times: dict[int, Timed], light: Timed, *, limit: float) -> None:
    one, two = times[1], times[2]
    phase, whole = one.shard_phase / two.shard_phase, one.end_to_end / two.end_to_end
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    between = light.watching / light.shards * 1000
    everything = (light.end_to_end - light.planning - light.finishing - light.engines) / light.shards * 1000
    rows = (
        ("scene", f"{chosen.size} x {chosen.size} px, {one.shards} shards in {one.parts} parts"),
        ("two bare forward passes on the two cores over one alone: the limit", f"{limit:.2f}"),
        ("shard phase, one worker", f"{one.shard_phase:.1f} s"),
        ("shard phase, two workers", f"{two.shard_phase:.1f} s"),
        ("shard phase, ratio", f"{phase:.2f} ({phase / limit:.0%} of the limit)"),
        ("end to end, one worker", f"{one.end_to_end:.1f} s"),
        ("end to end, two workers", f"{two.end_to_end:.1f} s"),
        ("end to end, ratio", f"{whole:.2f} ({whole / limit:.0%} of the limit)"),
        ("starting a part: process, imports, package, function", f"{one.starting:.1f} s"),
        ("planning, finishing", f"{one.planning:.1f} s, {one.finishing:.1f} s"),
        (f"orchestration per shard ({light.shards} shards that cost nothing, {light.parts} parts)", ""),
        ("submitting, waiting for the worker, watching", f"{between:.0f} ms per shard"),
        ("the same with the starting of parts", f"{everything:.0f} ms per shard"),
        ("load average at the end", load),
    )
    sys.stdout.write("| what | value |\n|---|---|\n")
    for name, value in rows:
        sys.stdout.write(f"| {name} | {value} |\n")


if __name__ == "__main__":
    main()
