"""Execution engines: what the parameters mean on the workers' device, and the check before any result.

Our own pixel classifiers and detectors can compute with torch, compiled torch, ONNX Runtime or OpenVINO
(``tasks/package/functions``). The choice is made once, by the plan, and is part of every shard key. Whether
an engine gives the classes, or the objects, of torch in float32 is seen by the first part, on tiles that the
plan decides; what it finds is kept beside the plan and followed by all others, so that one result is
computed by one engine. What a start makes is left to the next one (``engine_cache.py``).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import BadInputError, PreconditionFailedError, StoreError
from tasks.host import HostProcess
from tasks.host.interpreters import interpreter_for
from tasks.imagery import Pixels, Window
from tasks.infer.describe import FunctionDescription
from tasks.infer.engine_cache import EngineCache
from tasks.infer.parameters import ExecutionEngine, Precision
from tasks.infer.planned import Plan, Processor
from tasks.infer.shards import Shard, TileGeometry
from tasks.package import Package
from tasks.store import ObjectStore, join

# Below this, AUTO stays with torch: making and checking another engine would take longer than it saves.
FEWEST_PIXELS = 20_000_000
# Tiles that engines are compared on: a quarter of all, within these bounds. A clear verdict takes the fewest
# (``chipline_agreement.py``), and functions that were packaged before there was one are given no more.
FEWEST_TILES, MOST_TILES = 16, 64
COMPARED_BYTES = 256 * 2**20
# Places in each piece of the work until one is half full of imagery, or has some at all.
_PLACES_TRIED = 4
_READ_AT_ONCE = 8

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
    cache = EngineCache(store, host, foreign=plan.package.foreign)
    kept = cache.engine()
    uri = join(plan.folder, "execution.json")
    report = None
    decided = _decided(store, uri) if store.exists(uri) else None
    if decided is None:
        tiles = tiles_to_compare(plan, host, read)
        decided = cache.verdict(tiles)
        if decided is None:
            decided = report = host.settle_engine(tiles, kept=kept)
            cache.keep_verdict(tiles, report)
        try:
            text = json.dumps(decided).encode()
            store.put(uri, text, content_type="application/json", if_none_match=True)
        except PreconditionFailedError:  # another part was first
            decided, report = _decided(store, uri), None
    if report is None:
        report = host.settle_engine([], decided, kept)
    if not report.get("kept"):
        cache.keep_engine(host.engine_kept())
    return report


def software_of(host: HostProcess, report: Mapping[str, Any]) -> dict[str, str]:
    """Versions of what computed: the frameworks of the function, and the engine that ``report`` names."""
    engine = str(report.get("execution_engine", "")).lower()
    known = (host.engine_identity or {}).get("versions")
    number = known.get(engine) if isinstance(known, dict) else None
    return {**host.software, **({engine: str(number)} if number else {})}


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


def tiles_to_compare(plan: Plan, host: HostProcess, read: Read) -> list[NDArray[Any]]:
    """Tiles with their padding on which engines are compared: a fair sample of the work.

    The work is cut into as many pieces of equal length as there are tiles to take, in the order of the
    shards, and each piece gives one from a place that is drawn in it: neither corners nor anything that
    repeats in the imagery are met again and again. The first ones alone are spread over the work, too. Every
    part of a plan takes the same ones.

    Returns:
        Raw values, each (bands, rows, cols).
    """
    geometry, inner = plan.geometry, _tile_inner(plan.geometry, host.configuration)
    ends = np.cumsum([_tile_count(shard, geometry, inner) for shard in plan.shards])
    if not len(ends):
        return []
    every, most = int(ends[-1]), MOST_TILES if host.engine_identity is not None else FEWEST_TILES
    count = min(every, max(FEWEST_TILES, min(most, every // 4)))
    seed = hashlib.sha256("".join([plan.shards[0].key, plan.shards[-1].key, str(every)]).encode())
    random = np.random.default_rng(int.from_bytes(seed.digest()[:8], "big"))
    # Each piece has places of its own, whatever became of the others.
    drawn = (np.arange(count)[:, None] + random.random((count, _PLACES_TRIED))) * every / count

    def tile(places: NDArray[np.float64]) -> NDArray[Any] | None:
        found: NDArray[Any] | None = None
        for place in dict.fromkeys(places.astype(np.int64).tolist()):
            number = int(np.searchsorted(ends, place, side="right"))
            shard = plan.shards[number]
            within = place - int(ends[number]) + _tile_count(shard, geometry, inner)
            pixels = read(shard, _window(shard, geometry, inner, within))
            if pixels.valid.mean() >= 0.5:
                return pixels.values
            if found is None and pixels.valid.any():
                found = pixels.values
        return found

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        found = [one for one in pool.map(tile, drawn[random.permutation(count)]) if one is not None]
    return found[: max(1, COMPARED_BYTES // max((one.nbytes for one in found), default=1))]


def _tile_inner(geometry: TileGeometry, configuration: Mapping[str, Any]) -> int | None:
    """Edge of what one tile contributes; None where blocks are no whole number of square tiles."""
    size = configuration.get("tile_size")
    inner = size - 2 * geometry.padding if isinstance(size, int) else 0
    return inner if inner > 0 and not (geometry.rows % inner or geometry.cols % inner) else None


def _steps(geometry: TileGeometry, inner: int | None) -> tuple[int, int]:
    return (geometry.rows, geometry.cols) if inner is None else (inner, inner)


def _tile_count(shard: Shard, geometry: TileGeometry, inner: int | None) -> int:
    rows, cols = _steps(geometry, inner)
    return shard.tile_rows * geometry.rows // rows * (shard.tile_cols * geometry.cols // cols)


def _window(shard: Shard, geometry: TileGeometry, inner: int | None, number: int) -> Window:
    rows, cols = _steps(geometry, inner)
    row, col = divmod(number, shard.tile_cols * geometry.cols // cols)
    top, left = shard.tile_row * geometry.rows + row * rows, shard.tile_col * geometry.cols + col * cols
    return Window(top, left, rows, cols).expand(geometry.padding)
