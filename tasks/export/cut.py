"""Cutting the chips of one part: read, look up labels, encode and upload, all at once.

The imagery is streamed in pieces that are read once, ahead of time, by threads; others encode and write, so
that neither waits for the other. What is in flight is bounded, so memory depends on chips and blocks only.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.errors import NotFoundError
from tasks.export.candidates import Candidate, Candidates
from tasks.export.label_sets import LabelSets
from tasks.export.plan import ExportPart, ExportPlan, check_labels_unchanged
from tasks.export.samples import SampleMaker
from tasks.export.sources import ItemSources
from tasks.imagery.streaming import stream_windows
from tasks.store import FileRecord, ObjectStore, PartRecord, Publication, join
from tasks.training_data.formats import format_of
from tasks.training_data.sample import ChipRecord, Context, Format, Sample
from tasks.training_data.statistics import BandStatistics

_WRITERS = 8
# Chips that wait to be written; together with the read-ahead this bounds the memory.
_IN_FLIGHT = 32


class PartResult(BaseModel):
    """The result of a part; it is in the store only when all chips of the part are."""

    model_config = ConfigDict(frozen=True)

    record: PartRecord
    chips: list[ChipRecord]


@dataclass(frozen=True)
class _Lane:
    """The chips of one lane: their numbers and where they are."""

    first_number: int
    chosen: list[Candidate]


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


def label_sets(store: ObjectStore, plan: ExportPlan) -> LabelSets:
    """The labels that the plan prepared."""
    return LabelSets(
        store, plan.folder_uri, plan.label_sets, plan.item_labels, plan.classes, plan.instance_classes
    )


def cut_part(
    store: ObjectStore,
    plan: ExportPlan,
    number: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> PartResult:
    """Write the chips of one part, unless that has been done.

    Args:
        number: which part of the plan.
        progress: called with (chips written, chips of the part).

    Raises:
        LabelError: the labels have changed since the plan was made.
        RasterError, StoreError: reading or writing failed.
    """
    done = read_result(store, plan.folder_uri, number)
    if done is not None:
        return done
    check_labels_unchanged(plan)
    part = plan.parts[number]
    item = plan.items[part.item]
    publication = Publication(store, plan.folder_uri)
    sets = label_sets(store, plan)
    with sets.open_item(plan.parameters, item, part.item) as sources:
        candidates = Candidates(plan.parameters, item, sources.labels, sources.bytes_per_pixel)
        lanes = _lanes(part, candidates)
        writer = _Writer(plan, part, publication)
        files, chips = writer.write(_samples(plan, sources, lanes), part.chips, progress)
    if len(chips) != part.chips:
        # The plan and the cut ask the same function which places there are.
        raise RuntimeError(f"part {number} holds {len(chips)} chips, but the plan says {part.chips}")
    record = publication.put_part(part_name(number), files)
    result = PartResult(record=record, chips=chips)
    store.put(
        result_uri(plan.folder_uri, number),
        result.model_dump_json().encode(),
        content_type="application/json",
    )
    return result


def _lanes(part: ExportPart, candidates: Candidates) -> list[_Lane]:
    found = [candidates.of(lane, part.tract) for lane in part.lanes]
    choices = iter(part.choices(sum(len(items) for items in found)))
    return [
        _Lane(first, [item for item in items if next(choices)])
        for first, items in zip(part.firsts, found, strict=True)
    ]


def _samples(plan: ExportPlan, sources: ItemSources, lanes: list[_Lane]) -> Iterator[Sample]:
    """The chips of all lanes, in order; their imagery comes from one stream."""
    maker = SampleMaker(plan.parameters, sources)
    windows = [item.place.window for lane in lanes for item in lane.chosen]
    stream = stream_windows(
        partial(sources.read, mask=maker.needs_mask, instances=maker.needs_instance_classes),
        windows,
        piece=sources.piece(),
        origin=sources.origin(),
        threads=_cores(),
        depth=2 * _cores(),
    )
    with closing(stream):
        for lane in lanes:
            if lane.chosen:
                yield from maker.samples(lane.chosen, lane.first_number, stream)


class _Writer:
    """Makes the files of chips and puts them into the store, by threads."""

    def __init__(self, plan: ExportPlan, part: ExportPart, publication: Publication) -> None:
        self.item = plan.items[part.item]
        self.publication = publication
        self.format: Format = format_of(plan.parameters.metadata_format)
        self.context = Context(
            chip_format=plan.parameters.chip_format,
            crs_wkt=self.item.target().crs_wkt,
            classes=plan.schema_of_classes,
            instance_classes=plan.schema_of_instances,
        )

    def write(
        self,
        samples: Iterator[Sample],
        total: int,
        progress: Callable[[int, int], None] | None,
    ) -> tuple[list[FileRecord], list[ChipRecord]]:
        """All chips; the records come back in the order of the chips' numbers."""
        files: list[FileRecord] = []
        chips: list[ChipRecord] = []
        pending: deque[Future[tuple[ChipRecord, list[FileRecord]]]] = deque()

        def take() -> None:
            chip, written = pending.popleft().result()
            chips.append(chip)
            files.extend(written)
            if progress is not None:
                progress(len(chips), total)

        pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="chipline-chip")
        try:
            for sample in samples:
                if len(pending) >= _IN_FLIGHT:
                    take()
                pending.append(pool.submit(self._write, sample))
            while pending:
                take()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return files, chips

    def _write(self, sample: Sample) -> tuple[ChipRecord, list[FileRecord]]:
        side = f"{self.item.side}/" if self.item.side else ""
        made, record = self.format.encode(sample, self.context)
        files = [self.publication.put_file(side + file.path, file.data) for file in made]
        more: dict[str, Any] = {
            "bands": BandStatistics.of(sample.image, sample.valid).to_rows(),
            "corners": _corners(sample),
        }
        if sample.image2 is not None:
            more["bands2"] = BandStatistics.of(sample.image2, sample.valid2).to_rows()
        return record.model_copy(update=more), files


def _corners(sample: Sample) -> list[float]:
    a, b, c, d, e, f = sample.transform
    rows, cols = sample.valid.shape
    points = ((0, 0), (cols, 0), (cols, rows), (0, rows))
    return [value for x, y in points for value in (a * x + b * y + c, d * x + e * y + f)]


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)))
