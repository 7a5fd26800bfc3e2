"""Cutting the chips of one part, by one process or by several: see :mod:`tasks.export.crew`."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from tasks.errors import NotFoundError
from tasks.export.crew import Crew, usable_cores
from tasks.export.cutter import Cutter
from tasks.export.plan import ExportPlan, check_labels_unchanged
from tasks.export.slices import share_out
from tasks.store import FileRecord, ObjectStore, PartRecord, Publication, join
from tasks.training_data.sample import ChipRecord


class PartResult(BaseModel):
    """The result of a part; it is in the store only when all chips of the part are."""

    model_config = ConfigDict(frozen=True)

    record: PartRecord
    chips: list[ChipRecord]


def part_name(part: int) -> str:
    """``part-00003``."""
    return f"part-{part:05d}"


def result_uri(folder_uri: str, part: int) -> str:
    """Where a part's result lies."""
    return join(folder_uri, "parts", f"{part_name(part)}.result.json")


def read_result(store: ObjectStore, folder_uri: str, part: int) -> PartResult | None:
    """A part's result; None while it is not finished."""
    try:
        return PartResult.model_validate_json(store.get(result_uri(folder_uri, part)))
    except NotFoundError:
        return None


def cut_part(
    store: ObjectStore,
    plan: ExportPlan,
    number: int,
    *,
    crew: Crew | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the chips of one part, unless that has been done.

    Args:
        number: which part of the plan.
        crew: processes that share the work; None cuts in this process alone. It changes no chip.
        progress: called with (chips written, chips of the part).

    Raises:
        LabelError: the labels have changed since the plan was made.
        RasterError, StoreError: reading or writing failed.
        RunError: a process of the crew has died.
    """
    if store.exists(result_uri(plan.folder_uri, number)):
        return
    check_labels_unchanged(plan)
    part = plan.parts[number]
    processes = crew.processes if crew else 1
    written = 0

    def count(more: int) -> None:
        nonlocal written
        written += more
        if progress is not None and more:
            progress(written, part.chips)

    with Cutter(
        store, plan, part, readers=max(1, usable_cores() // processes), processes=processes
    ) as cutter:
        sources = cutter.sources
        slices = share_out(cutter.lanes(), sources.piece()[0], sources.origin()[0], processes)
        if crew is None:
            results = [cutter.cut(lanes, count) for lanes in slices]
        else:
            results = crew.cut(cutter, slices, count)
    chips = [chip for result in results for chip in result.chips]
    if len(chips) != part.chips:
        # The plan and the cut ask the same function which places there are.
        raise RuntimeError(f"part {number} holds {len(chips)} chips, but the plan says {part.chips}")
    files = [
        FileRecord(path=path, size=size, sha256=sha256)
        for result in results
        for path, size, sha256 in result.files
    ]
    record = Publication(store, plan.folder_uri).put_part(part_name(number), files)
    # As PartResult writes itself; each chip's record is JSON already.
    text = f'{{"record":{record.model_dump_json()},"chips":[{",".join(chips)}]}}'
    store.put(result_uri(plan.folder_uri, number), text.encode(), content_type="application/json")
