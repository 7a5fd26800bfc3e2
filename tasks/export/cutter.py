"""One process's share of a part: read, look up labels, encode and upload, all at once.

The imagery is streamed in pieces that are read once, ahead of time, by threads; others encode and write, so
that neither waits for the other. What is in flight is bounded, so memory depends on chips and blocks only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from tasks.export.candidates import Candidates
from tasks.export.label_sets import LabelSets
from tasks.export.plan import ExportPart, ExportPlan
from tasks.export.samples import SampleMaker
from tasks.export.slices import Lane, Slice
from tasks.export.sources import ItemSources, VectorSource, around
from tasks.imagery.streaming import stream_windows
from tasks.store import ObjectStore, Publication
from tasks.training_data.formats import format_of
from tasks.training_data.sample import Context, Format, Sample
from tasks.training_data.statistics import BandStatistics

# An upload is mostly waiting.
_WRITERS = 8
# Chips that wait to be written; together with the read-ahead this bounds the memory.
_IN_FLIGHT = 32

_Written = tuple[str, list[tuple[str, int, str]]]


@dataclass(frozen=True)
class SliceResult:
    """The chips of a slice, in the order of their numbers, as plain values: they travel between processes.

    Attributes:
        chips: each chip's record, as JSON.
        files: path, size and SHA-256 of every file.
    """

    chips: list[str]
    files: list[tuple[str, int, str]]


def label_sets(store: ObjectStore, plan: ExportPlan) -> LabelSets:
    """The labels that the plan prepared."""
    return LabelSets(
        store, plan.folder_uri, plan.label_sets, plan.item_labels, plan.classes, plan.instance_classes
    )


class Cutter:
    """Cuts slices of one part, one after the other; a context manager.

    Args:
        store: where to.
        plan: of the export.
        part: the part.
        readers: threads that read.
        processes: how many cut the part, which share the memory that is meant for it.
    """

    def __init__(
        self, store: ObjectStore, plan: ExportPlan, part: ExportPart, *, readers: int, processes: int = 1
    ) -> None:
        self.plan = plan
        self.part = part
        self.item = plan.items[part.item]
        self.readers = readers
        self.in_flight = max(_WRITERS, _IN_FLIGHT // processes)
        self.publication = Publication(store, plan.folder_uri)
        self.format: Format = format_of(plan.parameters.metadata_format)
        self.context = Context(
            chip_format=plan.parameters.chip_format,
            crs_wkt=self.item.target().crs_wkt,
            classes=plan.schema_of_classes,
            instance_classes=plan.schema_of_instances,
        )
        self._sets = label_sets(store, plan)
        self._stack = ExitStack()
        self.sources: ItemSources

    def __enter__(self) -> Cutter:
        opened = self._sets.open_item(self.plan.parameters, self.item, self.part.item)
        self.sources = self._stack.enter_context(opened)
        pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="chipline-chip")
        self._stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        self.pool = pool
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def lanes(self) -> list[Lane]:
        """The chips of the part, as the plan has numbered them."""
        part, sources = self.part, self.sources
        candidates = Candidates(self.plan.parameters, self.item, sources.labels, sources.bytes_per_pixel)
        found = [candidates.of(lane, part.tract) for lane in part.lanes]
        choices = iter(part.choices(sum(len(items) for items in found)))
        return [
            Lane(first, [item for item in items if next(choices)])
            for first, items in zip(part.firsts, found, strict=True)
        ]

    def cut(self, lanes: Slice, progress: Callable[[int], None] | None = None) -> SliceResult:
        """Write the chips of a slice.

        Args:
            lanes: the slice; each has a chip.
            progress: called for every few chips with how many more are written.

        Raises:
            RasterError, LabelError, StoreError: reading or writing failed.
        """
        result = SliceResult([], [])
        pending: deque[Future[_Written]] = deque()

        def take() -> None:
            chip, files = pending.popleft().result()
            result.chips.append(chip)
            result.files.extend(files)
            if progress is not None:
                progress(1)

        try:
            for sample in self._samples(lanes):
                if len(pending) >= self.in_flight:
                    take()
                pending.append(self.pool.submit(self._write, sample))
            while pending:
                take()
        finally:
            for future in pending:
                future.cancel()
        return result

    def _samples(self, lanes: Slice) -> Iterator[Sample]:
        """The chips of all lanes, in order; their imagery comes from one stream."""
        sources = self.sources
        maker = SampleMaker(self.plan.parameters, sources)
        places = [item.place for lane in lanes for item in lane.chosen]
        for labels in (sources.labels, sources.instances):
            if isinstance(labels, VectorSource):
                labels.reach(around(places))
        stream = stream_windows(
            partial(sources.read, mask=maker.needs_mask, instances=maker.needs_instance_classes),
            [place.window for place in places],
            piece=sources.piece(),
            origin=sources.origin(),
            threads=self.readers,
            depth=2 * self.readers,
        )
        with closing(stream):
            for lane in lanes:
                yield from maker.samples(lane.chosen, lane.first_number, stream)

    def _write(self, sample: Sample) -> _Written:
        side = f"{self.item.side}/" if self.item.side else ""
        made, record = self.format.encode(sample, self.context)
        written = [self.publication.put_file(side + file.path, file.data) for file in made]
        more: dict[str, Any] = {
            "bands": BandStatistics.of(sample.image, sample.valid).to_rows(),
            "corners": _corners(sample),
        }
        if sample.image2 is not None:
            more["bands2"] = BandStatistics.of(sample.image2, sample.valid2).to_rows()
        chip = record.model_copy(update=more).model_dump_json()
        return chip, [(file.path, file.size, file.sha256) for file in written]


def _corners(sample: Sample) -> list[float]:
    a, b, c, d, e, f = sample.transform
    rows, cols = sample.valid.shape
    points = ((0, 0), (cols, 0), (cols, rows), (0, rows))
    return [value for x, y in points for value in (a * x + b * y + c, d * x + e * y + f)]
