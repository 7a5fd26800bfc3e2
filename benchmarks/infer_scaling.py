"""One worker against two, each pinned to a core of its own; and what orchestration costs per shard.

    python -m benchmarks.infer_scaling [--size 6912] [--parts N] [--bare-seconds 10] [--one-core]

Boots a stack of its own, replaces its worker of the pool ``gpu`` by workers that are pinned to one core each
(affinity of the worker and of all that it starts; one torch thread), and runs the same Classify Pixels (U-Net
on a ResNet-18, torch, float32, 512 px tiles) with two of them and with one, as a deployment, from and to the
S3 server. The parts are cut as the tool does for its users, unless ``--parts`` says how many. The shard phase
lasts from the first part's start to the last part's end; processes of parts start within it.

Two cores may be two threads of one: the limit is what two bare forward passes on the two cores give together,
over what one gives alone. The servers (Prefect, S3, MLflow) and the run that watches have to live on the
same two cores: beside one worker they have the other core for themselves, beside two they take from both. How
many processor seconds they take stands in the table, and the limit less their share of the two cores.
``--one-core`` adds a column in which everything, servers and watcher too, has one core: one core against two
for the same work.

A run whose function costs nothing shows the orchestration. Prints Markdown.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.inference_scene import publish
from benchmarks.scenes import CELL, TRANSFORM, make_raster
from infra.local import LocalStack, free_port_base
from infra.local.health import client
from infra.local.processes import SERVICE_MARK, marked, stop
from infra.local.services import Service, workers

TOOL = "classify_pixels"
PADDING = 64
TILE = 512
LIGHT = 4096
SERVERS = ("prefect", "s3", "mlflow")
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
        between: seconds per part in which a worker had no part that Prefect calls running.
        planning, finishing: seconds of these tasks.
        watching: of the run that were neither planning, finishing nor a part's.
        processor: processor seconds during the run, by what took them.
    """

    shards: int
    parts: int
    end_to_end: float
    shard_phase: float
    engines: float
    starting: float
    between: float
    planning: float
    finishing: float
    watching: float
    processor: dict[str, float]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=6912, help="edge of the scene, px")
    parser.add_argument("--parts", type=int, help="number of parts; by default as many as the tool chooses")
    parser.add_argument("--one-core", action="store_true", help="also one worker and all else on one core")
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
                times[count] = _run(stack, work, count, size=chosen.size, parts=chosen.parts)
        alone_on_core = None
        with _pinned(stack, cores[:1]):
            edge = min(LIGHT, chosen.size)
            corner = [TRANSFORM.c, TRANSFORM.f - edge * CELL, TRANSFORM.c + edge * CELL, TRANSFORM.f]
            small = {"model": nothing, "shard_size": 128, "extent": corner}
            light = _run(stack, small, 1, size=edge, parts=2)
            if chosen.one_core:
                _pin(marked(stack.secrets.stack_id), cores[:1])
                alone_on_core = _run(stack, work, 1, size=chosen.size, parts=chosen.parts)
    finally:
        stack.down()
        shutil.rmtree(home, ignore_errors=True)
    _print(chosen, times, light, alone_on_core, limit=sum(both) / alone[0])


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


def _pin(processes: list[psutil.Process], cores: list[int]) -> None:
    """Keep processes, and what they start, on some cores: each of their threads."""
    for process in processes:
        for thread in process.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, set(cores))


def _processor_seconds(stack: LocalStack) -> dict[str, float]:
    """Processor seconds so far: of the parts' processes, of their workers, of servers, of who watches."""
    seconds = dict.fromkeys(("parts", "workers", *SERVERS, "watching"), 0.0)
    for process in marked(stack.secrets.stack_id):
        with suppress(psutil.NoSuchProcess):
            service = process.environ()[SERVICE_MARK]
            times = process.cpu_times()
            own, ended = times.user + times.system, times.children_user + times.children_system
            if not service.startswith("gpu-"):
                seconds[service if service in SERVERS else "watching"] += own + ended
            elif "PREFECT__FLOW_RUN_ID" in process.environ():
                seconds["parts"] += own + ended
            else:  # a worker has waited for the processes of its parts, and they for their functions'
                seconds["workers"] += own
                seconds["parts"] += ended
    return seconds


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


def _run(stack: LocalStack, work: dict[str, Any], workers: int, *, size: int, parts: int | None) -> Timed:
    """One run from an empty store, by so many workers."""
    with _as(stack, "admin") as store:
        for kind in ("shards", f"outputs/{TOOL}"):
            for item in list(store.list(f"s3://chipline/{kind}/")):
                store.delete(item.uri)
    parameters: dict[str, Any] = {
        "input_raster": [SCENE],
        "output_classified_raster": "scaling",
        "processor_type": "CPU",
        "execution_engine": "TORCH",
        "precision": "FLOAT32",
        **work,
    }
    if parts is not None:
        parameters["shards_per_part"] = -(-(math.ceil(size / work["shard_size"]) ** 2) // parts)
    before = _processor_seconds(stack)
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
    processor = {name: spent - before[name] for name, spent in _processor_seconds(stack).items()}
    return _timed(stack, state, children, tasks, workers, processor)


def _timed(
    stack: LocalStack,
    run: Any,
    children: list[Any],
    tasks: list[Any],
    workers: int,
    processor: dict[str, float],
) -> Timed:
    from tasks.infer.part import load_plan, reports

    with _as(stack, "admin") as store:
        uri = next(
            item.uri
            for item in store.list(f"s3://chipline/outputs/{TOOL}/scaling/")
            if item.uri.endswith((f"/plan-{len(children)}.json", "/plan-auto.json"))
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
        between=(workers * phase - sum(map(took, children))) / len(children),
        planning=planning,
        finishing=finishing,
        watching=took(run) - planning - finishing - sum(map(took, children)),
        processor=processor,
    )


def _when(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _others(timed: Timed) -> float:
    """Processor seconds of all but the parts and their workers."""
    return sum(spent for name, spent in timed.processor.items() if name not in ("parts", "workers"))


def _print(
    chosen: argparse.Namespace,
    times: dict[int, Timed],
    light: Timed,
    alone_on_core: Timed | None,
    *,
    limit: float,
) -> None:
    one, two = times[1], times[2]
    # What the others take of the two cores is not there for the workers.
    left = limit * (1 - _others(two) / (2 * two.end_to_end))
    sys.stdout.write(
        f"{chosen.size} x {chosen.size} px, {one.shards} shards; two bare forward passes on the two cores "
        f"over one alone: {limit:.2f}, the limit; less the share of the two cores that servers and watcher "
        f"took: {left:.2f}. Load average {', '.join(f'{value:.1f}' for value in os.getloadavg())}.\n\n"
    )
    columns = {"one worker": one, "two workers": two}
    if alone_on_core is not None:
        columns["one worker, all on one core"] = alone_on_core
    ratios = [column for column in columns.values() if column is not two]
    rows: list[tuple[str, list[str]]] = [("parts", [str(item.parts) for item in columns.values()])]
    for what, name in (
        ("shard phase, s", "shard_phase"),
        ("end to end, s", "end_to_end"),
        ("of it planning, s", "planning"),
        ("of it finishing, s", "finishing"),
        ("starting a part within its run: imports, package, function, s", "starting"),
        ("between parts: polling, process, Prefect, s per part", "between"),
    ):
        rows.append((what, [f"{getattr(item, name):.1f}" for item in columns.values()]))
    for name in one.processor:
        what = f"processor seconds: {name}"
        rows.append((what, [f"{item.processor[name]:.1f}" for item in columns.values()]))
    for what, name in (("shard phase", "shard_phase"), ("end to end", "end_to_end")):
        said = [f"{getattr(item, name) / getattr(two, name):.2f}" for item in ratios]
        rows.append((f"{what}: two workers against this", [said[0], "", *said[1:]]))
    sys.stdout.write(f"| what | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n")
    for what, values in rows:
        sys.stdout.write(f"| {what} | {' | '.join(values)} |\n")
    between = light.watching / light.shards * 1000
    everything = (light.end_to_end - light.planning - light.finishing - light.engines) / light.shards * 1000
    sys.stdout.write(
        f"\nOrchestration per shard ({light.shards} shards that cost nothing, {light.parts} parts): "
        f"submitting, waiting for the worker and watching {between:.0f} ms; with the starting of parts "
        f"{everything:.0f} ms.\n"
    )


if __name__ == "__main__":
    main()
