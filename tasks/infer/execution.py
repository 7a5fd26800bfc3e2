"""Execution engines: what the parameters mean on the workers' device, and the check before any result.

Our own pixel classifiers and detectors can compute with torch, compiled torch, ONNX Runtime or OpenVINO
(``tasks/package/functions``). The choice is made once, by the plan, and is part of every shard key. Whether
an engine gives the classes, or the objects, of torch in float32 is seen by the first part, on tiles that the
plan decides; what it finds is kept beside the plan and followed by all others, so that one result is
computed by one engine.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.errors import BadInputError, PreconditionFailedError, StoreError
from tasks.host import HostProcess
from tasks.host.interpreters import interpreter_for
from tasks.imagery import Pixels, Window
from tasks.infer.describe import FunctionDescription
from tasks.infer.parameters import ExecutionEngine, Precision
from tasks.infer.planned import Plan, Processor
from tasks.infer.shards import Shard
from tasks.package import Package
from tasks.store import ObjectStore, join

# Below this, AUTO stays with torch: making and checking another engine would take longer than it saves.
FEWEST_PIXELS = 20_000_000
# Super-tiles that engines are compared on, and places that are tried until so many hold imagery.
COMPARED_TILES = 3
PLACES_TRIED = 16

_ARGUMENTS = {"execution_engine": "TORCH", "precision": "FLOAT32"}
REFERENCE = tuple(_ARGUMENTS.values())
_MODULES = {"OPENVINO": "openvino", "ONNXRUNTIME": "onnxruntime"}
_NATIVE_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_ASK_SECONDS = 30

Read = Callable[[Shard, Window], Pixels]


def engine_arguments(
    package: Package,
    given: Mapping[str, str],
    *,
    engine: ExecutionEngine,
    precision: Precision,
    processor: Processor,
    pixels: int,
) -> dict[str, str]:
    """The function's arguments ``execution_engine`` and ``precision``; empty where it decides for itself.

    Args:
        package: what is applied.
        given: the person's model arguments; those of the same name win.
        engine: the tool's ``execution_engine``.
        precision: the tool's ``precision``.
        processor: device class of the workers.
        pixels: of the imagery: AUTO leaves small work to torch.

    Raises:
        BadInputError: an engine or a precision that this package or device does not have.
    """
    own = package.definition.extras.get("Chipline")
    if not isinstance(own, dict) or not own.get("ExecutionEngines"):
        if engine not in ("AUTO", "TORCH") or precision == "BFLOAT16":
            raise BadInputError(
                f"The package {package.name} has no choice of execution engines; {engine} in {precision} "
                "was asked for.",
                "Take execution_engine AUTO and precision AUTO, or a package made here that classifies "
                "pixels or detects objects.",
            )
        return {}
    took, numbers = given.get("execution_engine"), given.get("precision")
    took = took or _engine(package, engine, processor, pixels)
    if numbers is None:
        numbers = _precision(took, precision, processor, pixels, engine)
    if processor == "GPU" and took in _MODULES:
        raise BadInputError(
            f"{took} computes on CPUs, and this work is planned for GPUs.",
            "Take execution_engine AUTO, TORCH or COMPILED, or processor_type CPU.",
        )
    if (took, numbers) == ("ONNXRUNTIME", "BFLOAT16"):
        raise BadInputError(
            "ONNX Runtime computes in FLOAT32 on a CPU, and precision is BFLOAT16.",
            "Take precision AUTO or FLOAT32, or execution_engine OPENVINO or TORCH.",
        )
    if (took, numbers) == REFERENCE:
        return {}  # the function's own default
    return {"execution_engine": took, "precision": numbers}


def _engine(package: Package, wanted: ExecutionEngine, processor: Processor, pixels: int) -> str:
    if wanted in ("TORCH", "COMPILED"):
        return wanted
    if wanted == "AUTO" and (processor == "GPU" or pixels < FEWEST_PIXELS):
        return "TORCH"
    there = engines_there(interpreter_for(package.definition, package.digest))
    if wanted != "AUTO":
        if processor == "CPU" and wanted not in there:
            raise BadInputError(
                f"execution_engine is {wanted}, and the package's Python has no {_MODULES[wanted]}.",
                f"Install it there (pip install {_MODULES[wanted]}), or take execution_engine AUTO.",
            )
        return wanted
    return next((engine for engine in _MODULES if engine in there), "TORCH")


def _precision(
    engine: str, wanted: Precision, processor: Processor, pixels: int, engine_wanted: ExecutionEngine
) -> str:
    if wanted != "AUTO":
        return wanted
    small = engine_wanted == "AUTO" and pixels < FEWEST_PIXELS
    if engine == "ONNXRUNTIME" or processor == "GPU" or small or not has_native_bfloat16():
        return "FLOAT32"
    return "BFLOAT16"


@lru_cache(maxsize=8)
def engines_there(interpreter: Path) -> tuple[str, ...]:
    """The execution engines beside torch that a Python has, fastest first."""
    question = f"import importlib.util as u; print(*[n for n in {list(_MODULES.values())} if u.find_spec(n)])"
    answer = subprocess.run(
        [str(interpreter), "-I", "-c", question],
        capture_output=True,
        text=True,
        timeout=_ASK_SECONDS,
        check=False,
    )
    found = answer.stdout.split()
    return tuple(engine for engine, module in _MODULES.items() if module in found)


@lru_cache(maxsize=1)
def has_native_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 itself; elsewhere it would be slower than float32."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False  # not a Linux
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _NATIVE_FLAGS.isdisjoint(flags.partition(":")[2].split())


def chosen_engine(description: FunctionDescription) -> dict[str, str]:
    """The arguments that choose the engine, as the described function has them; empty without a choice."""
    return {name: str(description.scalars[name]) for name in _ARGUMENTS if name in description.scalars}


def settle_engine(store: ObjectStore, plan: Plan, host: HostProcess, read: Read) -> dict[str, Any]:
    """Has the part's function decide on its engine, or follow what another part decided; its report.

    Empty for functions without a choice. ``read`` gives the pixels of a window on a shard's grid.

    Raises:
        HostError: the engine that was decided on is not on this worker.
        RasterError: the imagery to compare on cannot be read.
    """
    if tuple(plan.arguments.get(name, default) for name, default in _ARGUMENTS.items()) == REFERENCE:
        return host.settle_engine([])
    uri = join(plan.folder, "execution.json")
    if store.exists(uri):
        return host.settle_engine([], _decided(store, uri))
    report = host.settle_engine(_blocks_to_compare(plan, read))
    try:
        store.put(uri, json.dumps(report).encode(), content_type="application/json", if_none_match=True)
    except PreconditionFailedError:
        return host.settle_engine([], _decided(store, uri))
    return report


def decided_engine(store: ObjectStore, plan: Plan) -> dict[str, Any] | None:
    """What the parts of a plan computed with; None where there was no choice."""
    uri = join(plan.folder, "execution.json")
    return _decided(store, uri) if store.exists(uri) else None


def _decided(store: ObjectStore, uri: str) -> dict[str, Any]:
    try:
        decided = json.loads(store.get(uri))
    except ValueError:
        decided = None
    if not isinstance(decided, dict):
        raise StoreError(f"{uri} says no execution engine.", "Delete it, and start the run again.")
    return decided


def _blocks_to_compare(plan: Plan, read: Read) -> list[Any]:
    count = len(plan.shards)
    # Spread over all shards; every part of the plan takes the same ones.
    order = sorted(range(PLACES_TRIED), key=lambda place: place * 7 % PLACES_TRIED)
    chosen = dict.fromkeys((2 * place + 1) * count // (2 * PLACES_TRIED) for place in order)
    blocks: list[Any] = []
    for number in chosen:
        if len(blocks) == COMPARED_TILES:
            break
        shard = plan.shards[number]
        tile = (shard.tile_row + shard.tile_rows // 2, shard.tile_col + shard.tile_cols // 2)
        pixels = read(shard, plan.geometry.inner(*tile).expand(plan.geometry.padding))
        if pixels.valid.any():
            blocks.append(pixels.values)
    return blocks
