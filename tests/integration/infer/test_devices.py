"""One worker per device: N workers and stand-ins for GPUs, on the CPU; everything else is the real code."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.host import devices
from tasks.host.devices import Gpu
from tasks.infer.finish import finish
from tasks.infer.operators import read_pixels
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part, shards_of
from tasks.infer.prepare import prepare
from tasks.infer.shards import ShardStore
from tasks.package import ModelDefinition, open_package, write_dlpk
from tasks.package.publish import publish_package
from tasks.settings import settings

_spec = importlib.util.spec_from_file_location("functions", Path(__file__).with_name("functions.py"))
assert _spec is not None
assert _spec.loader is not None
functions = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(functions)

GPUS = [Gpu(number, f"GPU-stand-in-{number}", f"Stand-in {number}") for number in range(3)]

# A framework that sees one GPU, whichever the environment shows, and a function that writes down which.
FUNCTION = (
    functions.CLASSIFIER
    + """
import os
import sys
import time
import types

torch = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(
    is_available=lambda: bool(os.environ["CUDA_VISIBLE_DEVICES"]),
    device_count=lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")),
    get_device_name=lambda number: os.environ["CUDA_VISIBLE_DEVICES"],
)
sys.modules["torch"] = torch


class OnDevice(BrightClassifier):
    def initialize(self, **kwargs):
        assert kwargs["device"] == (0 if torch.cuda.is_available() else -1), kwargs

    def updatePixels(self, tlc, shape, props, **blocks):
        time.sleep(0.05)
        device = int(os.environ["CUDA_VISIBLE_DEVICES"].rpartition("-")[2])
        return {"output_pixels": np.full((1, *shape), 1 + device, np.int32)}
"""
)


@pytest.fixture
def planned(store: Any, write_scene: Any, texture: Any, tmp_path: Path, monkeypatch: Any) -> Any:
    monkeypatch.setattr(devices, "_all_gpus", lambda: GPUS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    definition = {
        "ModelType": "ImageClassification",
        "InferenceFunction": "OnDevice.py",
        "ImageHeight": 80,
        "ImageWidth": 80,
        "ExtractBands": [0, 1, 2],
        "Classes": [{"Value": 1 + gpu.number, "Name": gpu.name} for gpu in GPUS],
    }
    path = tmp_path / "devices.dlpk"
    write_dlpk(path, ModelDefinition.model_validate(definition), {"OnDevice.py": FUNCTION.encode()})
    values = {
        "input_raster": [write_scene("scene", texture)],
        "model": publish_package(store, path, made_by="test"),
        "output_classified_raster": "out",
        "processor_type": "GPU",
        "shard_size": 64,
        "shards_per_part": 9,
    }
    plan = prepare(ClassifyPixelsParameters.model_validate(values), store)
    return plan, open_package(path, tmp_path / "unpacked")


def work(plan: Any, package: Any, store: Any, visible: str, parts: list[int], answers: Any) -> None:
    """One worker: its environment shows what it may use, as the local stack starts it."""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    for part in parts:
        report = compute_part(store, plan, part, package=package)
        ended = time.monotonic()
        answers.put((part, report.device, ended - report.seconds, ended))


def at_once(plan: Any, package: Any, store: Any, visible: list[str]) -> list[Any]:
    """The parts of a plan, dealt to as many workers; what each part says."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    count = len(visible)
    workers = [
        context.Process(
            target=work,
            args=(plan, package, store, shown, list(range(n, len(plan.parts), count)), answers),
        )
        for n, shown in enumerate(visible)
    ]
    for worker in workers:
        worker.start()
    try:
        return sorted(answers.get(timeout=60) for _ in plan.parts)
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()


def overlap(one: Any, other: Any) -> float:
    """Seconds that two parts ran at the same time."""
    return float(min(one[3], other[3]) - max(one[2], other[2]))


def test_each_worker_computes_on_its_own_device_and_all_at_once(planned: Any, store: Any) -> None:
    plan, package = planned
    assert len(plan.parts) == 3
    # The numbers that the local stack gives its workers, and a UUID, as an operator may.
    found = at_once(plan, package, store, ["2", "GPU-stand-in-0", "1"])
    used = {0: 2, 1: 0, 2: 1}
    assert [device for _, device, _, _ in found] == [f"cuda:0 GPU-stand-in-{used[part]}" for part in range(3)]
    # What was computed says where: on that device alone, which the child saw as its only one.
    sink = ShardStore(store, settings().root)
    for part in range(3):
        values = {
            value for shard in shards_of(plan, part) for value in np.unique(read_pixels(sink.get(shard)))
        }
        assert values == {1 + used[part]}
    pairs = [(one, other) for one in found for other in found if one[1] < other[1]]
    assert max(overlap(one, other) for one, other in pairs) > 0
    manifest = finish(store, plan, {}).manifest
    assert manifest.provenance["devices"] == sorted({device for _, device, _, _ in found})


def test_workers_that_share_a_device_take_turns(planned: Any, store: Any) -> None:
    plan, package = planned
    found = at_once(plan, package, store, ["1", "1,0"])
    assert {device for _, device, _, _ in found} == {"cuda:0 GPU-stand-in-1"}
    # The lock is the device's: it does not matter how many others a worker sees.
    for one in found:
        assert all(overlap(one, other) <= 0 for other in found if other[0] > one[0])
