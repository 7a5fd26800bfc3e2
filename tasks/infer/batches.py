"""Smaller batches where memory runs out: which, how the function gets them, and the keys of their results.

A network's result may depend in the last digits on how many tiles it is given at a time, so the batch is part
of a shard's key. Where a function runs out of memory its part goes on with half the batch, again and again
down to one tile. Blocks and shards stay as they were planned; what is computed then is stored under the
planned key with the batch added to it, and the batch is noted beside the plan, so that the other parts start
with it and the finish finds the results.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import HostError, PreconditionFailedError
from tasks.host import FunctionFailure, HostProcess, Operation
from tasks.infer.describe import FunctionDescription, description_of
from tasks.infer.engine import Host
from tasks.infer.planned import Plan
from tasks.infer.scores import ChipHost
from tasks.infer.shards import Shard, ShardStore, TileGeometry
from tasks.package import Package
from tasks.settings import settings
from tasks.store import ObjectStore, join

BATCH_SIZE = "batch_size"
_LOOKS_AT_ONCE = 16
_ROW_BITS = 24  # more than any grid has rows of tiles
_OUT_OF_MEMORY = ("out_of_memory", "memory")
_REMEDY = (
    "Give a smaller tile_size or padding among the model arguments where the function has them, run it on "
    "another device (processor_type) or on a worker with more memory, or raise the limit "
    "CHIPLINE_HOST_MEMORY_MB where the function met that."
)


# -- which batch -------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a function failed because memory ran out: the device's, the machine's, or its limit's."""
    return isinstance(error, FunctionFailure) and error.cause in _OUT_OF_MEMORY


def smaller_batch(failure: FunctionFailure, plan: Plan, running: Started) -> int:
    """Half the batch that was too large.

    Args:
        failure: see :func:`is_out_of_memory`.
        running: what failed; its process may have ended.

    Raises:
        FunctionFailure: there is no smaller one, or the function cannot be given one.
    """
    used = running.batch
    if used <= 1:
        raise FunctionFailure(
            f"{failure.problem}\nIt was given one tile at a time: there is no smaller batch.",
            _REMEDY,
            cause=failure.cause,
            block=failure.block,
            function_traceback=failure.function_traceback,
        ) from failure
    if plan.scoring is None and not {BATCH_SIZE, "limit_batch"} & {
        *plan.description.scalars,
        *running.host.operations,
    }:
        raise FunctionFailure(
            f"{failure.problem}\nIt takes batches of {used}, and has no argument {BATCH_SIZE} to be given "
            "smaller ones by.",
            _REMEDY,
            cause=failure.cause,
            block=failure.block,
            function_traceback=failure.function_traceback,
        ) from failure
    return used // 2


def planned_batch(plan: Plan, host: HostProcess) -> int:
    """Tiles that the planned function gives its network at a time; 1 where nobody says."""
    if plan.scoring is not None:
        return plan.scoring.layout.batch
    if plan.crops is not None:
        return plan.crops.batch if plan.crops.fixed else 1
    for stated in (host.configuration.get(BATCH_SIZE), plan.description.scalars.get(BATCH_SIZE)):
        with suppress(TypeError, ValueError):
            return max(1, int(float(stated)))  # type: ignore[arg-type]
    return 1


# -- what is noted and stored ------------------------------------------------------------------------------


def note_batch(store: ObjectStore, plan: Plan, batch: int, planned: int, reason: str) -> None:
    """Leave word beside the plan that memory ran out, and which batch is used instead."""
    record = json.dumps({"batch": batch, "planned": planned, "reason": reason})
    # Another part may have met the same.
    with suppress(PreconditionFailedError):
        store.put(
            join(_folder(plan), f"{batch}.json"),
            record.encode(),
            content_type="application/json",
            if_none_match=True,
        )


def noted_batches(store: ObjectStore, plan: Plan) -> list[int]:
    """The smaller batches that parts of a plan have used, the largest first."""
    names = (PurePosixPath(item.uri) for item in store.list(_folder(plan) + "/"))
    return sorted((int(name.stem) for name in names if name.stem.isdigit()), reverse=True)


def _folder(plan: Plan) -> str:
    return join(plan.folder, "batches")


def with_batch(shard: Shard, batch: int) -> Shard:
    """A planned shard under the key of its result by a smaller batch."""
    return shard.model_copy(update={"key": f"{shard.key}-batch-{batch}"})


def found_shards(
    store: ObjectStore, plan: Plan, shards: Sequence[Shard], missing: int | None = None
) -> list[Shard]:
    """Shards under the keys that their results have: planned ones, or those of smaller batches.

    Args:
        shards: of the plan, as planned.
        missing: batch of the keys of those that have no result yet; None: they keep the planned ones.
    """
    noted = noted_batches(store, plan)
    if not noted and missing is None:
        return list(shards)
    sink = ShardStore(store, settings().root)

    def found(shard: Shard) -> Shard:
        known = [shard, *(with_batch(shard, batch) for batch in noted)]
        otherwise = shard if missing is None else with_batch(shard, missing)
        return next((one for one in known if sink.exists(one)), otherwise)

    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        return list(pool.map(found, shards))


def batch_counts(shards: Sequence[Shard]) -> dict[str, int]:
    """Number of results by each smaller batch, of shards as :func:`found_shards` gives them."""
    counts: dict[str, int] = {}
    for shard in shards:
        _, marked, batch = shard.key.partition("-batch-")
        if marked:
            counts[batch] = counts.get(batch, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: int(item[0])))


# -- how the function gets it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A function's host, and the same as the engine uses it.

    Attributes:
        planned: tiles per call of its network, as planned.
        batch: and as it is now.
        geometry: the blocks that it takes; a whole number of them fills a planned one.
    """

    host: HostProcess
    given: Host
    planned: int
    batch: int
    geometry: TileGeometry

    def first_tile(self, plan: Plan) -> int:
        """What rows of tiles are numbered from: tiles of another size than planned have other numbers."""
        if self.geometry == plan.geometry:
            return 0
        return (plan.geometry.rows // self.geometry.rows) << _ROW_BITS

    def in_its_blocks(self, plan: Plan, shards: Sequence[Shard]) -> list[Shard]:
        """The shards as they are computed now, with the same windows and keys."""
        down, across = plan.geometry.rows // self.geometry.rows, plan.geometry.cols // self.geometry.cols
        return [
            shard.model_copy(
                update={
                    "tile_row": shard.tile_row * down,
                    "tile_rows": shard.tile_rows * down,
                    "tile_col": shard.tile_col * across,
                    "tile_cols": shard.tile_cols * across,
                }
            )
            for shard in shards
        ]


@contextmanager
def started(plan: Plan, package: Package, batch: int | None) -> Iterator[Started]:
    """The planned function, in a process of its own, with at most ``batch`` tiles per call of its network.

    Ours are told (``limit_batch``), scores are asked for in smaller batches, and other functions are started
    with the argument ``batch_size``; the blocks that they then take must divide the planned ones, so that
    half a batch may have to be a quarter.

    Raises:
        HostError: the function fails to start, is not the planned one, or does not take smaller batches.
    """
    with _process(plan, package, plan.arguments, batch) as host:
        if description_of(host, package).model_dump_json() != plan.description.model_dump_json():
            raise HostError(
                f"The function of {package.name} describes itself differently here "
                "than where it was planned.",
                "Its configuration must not depend on the machine or the device; mend the function.",
            )
        planned = planned_batch(plan, host)
        used = planned if batch is None else min(batch, planned)
        if plan.scoring is not None:
            given = ChipHost(host, plan.geometry, plan.scoring.layout, used)
            yield Started(host, given, planned, used, plan.geometry)
            return
        if used == planned or "limit_batch" in host.operations:
            yield Started(host, host, planned, used, plan.geometry)
            return
    while True:
        with _process(plan, package, {**plan.arguments, BATCH_SIZE: str(used)}, None) as host:
            now = description_of(host, package)
            if plan.crops is not None and now.crops == {**plan.description.crops, BATCH_SIZE: used}:
                yield Started(host, SmallerCropBatches(host, used), planned, used, plan.geometry)
                return
            if plan.crops is None and _fills(plan.description, now):
                yield Started(host, host, planned, used, now.geometry)
                return
        if used == 1:
            raise HostError(
                f"Memory ran out, and with {BATCH_SIZE} 1 the function of {package.name} takes blocks "
                "that do not divide those that were planned.",
                f"Start again with a model argument {BATCH_SIZE} of less than {planned}.",
            )
        used //= 2


def _fills(planned: FunctionDescription, now: FunctionDescription) -> bool:
    """Whether a whole number of the blocks that a function takes now fills a planned one."""
    return (
        now.geometry.padding == planned.geometry.padding
        and now.extract_bands == planned.extract_bands
        and planned.geometry.rows % now.geometry.rows == 0
        and planned.geometry.cols % now.geometry.cols == 0
    )


def _process(plan: Plan, package: Package, arguments: Mapping[str, str], batch: int | None) -> HostProcess:
    return HostProcess(
        package,
        processor_type=plan.processor,
        arguments=arguments,
        foreign=plan.package.foreign,
        batch=batch,
    )


@dataclass
class SmallerCropBatches:
    """A host that takes batches of crops as planned, of a function that takes ``batch`` crops at a time."""

    host: Host
    batch: int
    _tickets: Iterator[int] = field(default_factory=itertools.count)
    _waiting: dict[int, tuple[int, list[int]]] = field(default_factory=dict)

    def submit(
        self,
        operation: Operation,
        pixels: NDArray[Any],
        mask: NDArray[np.uint8],
        *,
        tlc: tuple[float, float],
        shape: tuple[int, int],
        props: Mapping[str, Any],
    ) -> int:
        """Hand over one planned batch, in several; the last one is filled up by repeating its last crop."""
        filled = np.minimum(np.arange(ceil(len(pixels) / self.batch) * self.batch), len(pixels) - 1)
        pieces = [
            self.host.submit(operation, pixels[chosen], mask[chosen], tlc=tlc, shape=shape, props=props)
            for chosen in filled.reshape(-1, self.batch)
        ]
        ticket = next(self._tickets)
        self._waiting[ticket] = (len(pixels), pieces)
        return ticket

    def result(self, ticket: int) -> Any:
        """One answer per crop of the planned batch."""
        count, pieces = self._waiting.pop(ticket)
        answers = [answer for piece in pieces for answer in self.host.result(piece)]
        return answers[:count]
