"""Cutting the chips of one part: read, burn, encode and upload, all at once.

Chips are cut from larger reads: the positions of a part are grouped by read blocks of a few thousand pixels
(as wide as the raster's own blocks, where those are strips), each of which is read once. Threads read ahead,
others encode and upload, so that neither waits for the other; what is in flight is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from tasks.errors import NotFoundError
from tasks.export.plan import (
    ExportPart,
    ExportPlan,
    check_labels_unchanged,
    chip_grid,
    is_chip,
    read_item_labels,
)
from tasks.imagery import Grid, GridReader, Pixels, RasterInfo, Window, prefetch
from tasks.labels import PixelLabels, labels_on_grid
from tasks.labels.pixels import LabelsInWindow
from tasks.store import FileRecord, ObjectStore, PartRecord, Publication, join
from tasks.training_data import classified_tiles, layout, pascal_voc
from tasks.training_data.images import encode_image
from tasks.training_data.side_files import SOURCE
from tasks.training_data.statistics import BandStatistics

_READ_PX = 2048
_WRITERS = 8
# Chips that wait to be written; together with the read-ahead this bounds the memory.
_IN_FLIGHT = 64


class ChipRecord(BaseModel):
    """What a chip adds to the side files.

    Attributes:
        number: its number.
        bands: per band (count, mean, m2, min, max) over valid pixels.
        pixels: for classified tiles, pixels by class value.
        areas: for rectangles, squared map units of each feature, by class value.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    bands: list[list[float | int | None]]
    pixels: dict[int, int] = {}
    areas: dict[int, list[float]] = {}


class PartResult(BaseModel):
    """The result of a part; it is in the store only when all chips of the part are."""

    model_config = ConfigDict(frozen=True)

    record: PartRecord
    chips: list[ChipRecord]


@dataclass(frozen=True)
class _Chip:
    number: int
    window: Window
    labels: LabelsInWindow


@dataclass(frozen=True)
class _Block:
    """Chips that are cut from one read."""

    window: Window
    chips: list[_Chip]


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
    part = plan.parts[number]
    check_labels_unchanged(plan)
    item = plan.items[part.item]
    infos, grid = item.infos(), item.target()
    labels = labels_on_grid(read_item_labels(plan.parameters, item), grid.transform)
    publication = Publication(store, plan.folder_uri)
    with GridReader(infos, grid, plan.bands) as reader:
        blocks = _blocks(plan, part, labels, reader, infos)
        writer = _Writer(plan, grid, labels, publication)
        files, chips = writer.write(reader, blocks, part.chips, progress)
    if len(chips) != part.chips:
        # The plan and the cut ask the same function which positions are chips.
        raise RuntimeError(f"part {number} holds {len(chips)} chips, but the plan says {part.chips}")
    record = publication.put_part(part_name(number), files)
    result = PartResult(record=record, chips=chips)
    store.put(
        result_uri(plan.folder_uri, number),
        result.model_dump_json().encode(),
        content_type="application/json",
    )
    return result


def _blocks(
    plan: ExportPlan,
    part: ExportPart,
    labels: PixelLabels,
    reader: GridReader,
    infos: list[RasterInfo],
) -> list[_Block]:
    grid = chip_grid(plan.parameters, reader.grid)
    windows = grid.windows(part.first, part.stop)
    windows = windows[is_chip(plan.parameters, labels, reader.footprints(), windows)]
    found = labels.in_windows(windows, min_overlap_ratio=plan.parameters.min_polygon_overlap_ratio)
    read_rows = max(_READ_PX, plan.parameters.tile_size)
    # Strips run over the whole width: reading them piece by piece would decode them again and again.
    widest = max(info.block_shape[1] for info in infos)
    read_cols = max(_READ_PX, plan.parameters.tile_size, widest)
    if widest > _READ_PX:
        read_rows = max(plan.parameters.tile_size, _READ_PX * _READ_PX // read_cols)
    groups: dict[tuple[int, int], list[_Chip]] = {}
    for offset, (window, labelled) in enumerate(zip(windows.tolist(), found, strict=True)):
        row, col, rows, cols = window
        chip = _Chip(part.first_number + offset, Window(row, col, rows, cols), labelled)
        groups.setdefault((row // read_rows, col // read_cols), []).append(chip)
    return [_Block(_around(chips), chips) for _, chips in sorted(groups.items())]


def _around(chips: list[_Chip]) -> Window:
    row, col = min(chip.window.row for chip in chips), min(chip.window.col for chip in chips)
    row_stop = max(chip.window.row_stop for chip in chips)
    col_stop = max(chip.window.col_stop for chip in chips)
    return Window(row, col, row_stop - row, col_stop - col)


class _Writer:
    """Makes the files of chips and puts them into the store, by threads."""

    def __init__(self, plan: ExportPlan, grid: Grid, labels: PixelLabels, publication: Publication) -> None:
        self.plan = plan
        self.grid = grid
        self.labels = labels
        self.publication = publication
        self.tiles = plan.parameters.metadata_format == layout.CLASSIFIED_TILES
        self.extension = layout.IMAGE_EXTENSIONS[plan.parameters.chip_format]
        cell_x, cell_y = grid.cell_size
        self.pixel_area = cell_x * cell_y

    def write(
        self,
        reader: GridReader,
        blocks: list[_Block],
        total: int,
        progress: Callable[[int, int], None] | None,
    ) -> tuple[list[FileRecord], list[ChipRecord]]:
        """All chips; the records come back in the order of the chips' numbers."""
        files: list[FileRecord] = []
        chips: list[ChipRecord] = []
        pending: list[Future[tuple[ChipRecord, list[FileRecord]]]] = []

        def take(future: Future[tuple[ChipRecord, list[FileRecord]]]) -> None:
            chip, written = future.result()
            chips.append(chip)
            files.extend(written)
            if progress is not None:
                progress(len(chips), total)

        pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="chipline-chip")
        try:
            for chip, values, valid, mask in self._pieces(reader, blocks):
                if len(pending) >= _IN_FLIGHT:
                    take(pending.pop(0))
                pending.append(pool.submit(self._write_chip, chip, values, valid, mask))
            for future in pending:
                take(future)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        chips.sort(key=lambda chip: chip.number)
        return files, chips

    def _pieces(
        self, reader: GridReader, blocks: list[_Block]
    ) -> Iterator[tuple[_Chip, npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[Any] | None]]:
        windows = [block.window for block in blocks]
        reads = prefetch(reader, windows, threads=2, depth=2)
        for block, (window, pixels) in zip(blocks, reads, strict=True):
            burnt = self.labels.burn(window.row, window.col, *window.shape) if self.tiles else None
            for chip in block.chips:
                rows, cols = chip.window.slices_in(window)
                yield chip, *_cut(pixels, rows, cols), self._mask(chip, burnt, rows, cols)

    def _mask(
        self, chip: _Chip, burnt: npt.NDArray[Any] | None, rows: slice, cols: slice
    ) -> npt.NDArray[Any] | None:
        if burnt is None:
            return None
        if len(chip.labels.left_out) == 0:
            return burnt[rows, cols]
        # Some labels do not count in this chip, though they do in its neighbours.
        window = chip.window
        return self.labels.burn(
            window.row, window.col, *window.shape, leave_out=set(chip.labels.left_out.tolist())
        )

    def _write_chip(
        self,
        chip: _Chip,
        values: npt.NDArray[Any],
        valid: npt.NDArray[np.bool_],
        mask: npt.NDArray[Any] | None,
    ) -> tuple[ChipRecord, list[FileRecord]]:
        stem = layout.chip_stem(chip.number)
        transform = self.grid.window_transform(chip.window)
        world = layout.world_file(transform)
        world_extension = layout.WORLD_EXTENSIONS[self.extension]
        image = encode_image(values, self.plan.parameters.chip_format, transform, self.grid.crs_wkt)
        put = self.publication.put_file
        files = [
            put(f"{layout.IMAGES}/{stem}{self.extension}", image),
            put(f"{layout.IMAGES}/{stem}{world_extension}", world),
        ]
        bands = BandStatistics.of(values, valid).to_rows()
        if mask is not None:
            # Where there is no picture there is nothing to learn from a label.
            mask = np.where(valid, mask, mask.dtype.type(0))
            label = classified_tiles.encode_label(mask, transform, self.grid.crs_wkt)
            files += [
                put(f"{layout.LABELS}/{stem}.tif", label),
                put(f"{layout.LABELS}/{stem}.tfw", world),
            ]
            pixels = _count_classes(mask)
            return ChipRecord(number=chip.number, bands=bands, pixels=pixels), files
        boxes = [
            (int(value), float(box[0]), float(box[1]), float(box[2]), float(box[3]))
            for value, box in zip(chip.labels.values, chip.labels.boxes, strict=True)
        ]
        bands_rows_cols = (values.shape[0], values.shape[1], values.shape[2])
        annotation = pascal_voc.encode_annotation(
            f"{stem}{self.extension}", bands_rows_cols, boxes, source=SOURCE
        )
        files.append(put(f"{layout.LABELS}/{stem}.xml", annotation))
        areas: dict[int, list[float]] = {}
        for value, area in zip(chip.labels.values, chip.labels.areas, strict=True):
            areas.setdefault(int(value), []).append(float(area) * self.pixel_area)
        return ChipRecord(number=chip.number, bands=bands, areas=areas), files


def _cut(pixels: Pixels, rows: slice, cols: slice) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    return np.ascontiguousarray(pixels.values[:, rows, cols]), pixels.valid[rows, cols]


def _count_classes(mask: npt.NDArray[Any]) -> dict[int, int]:
    """Pixels by class value, 0 left out."""
    if mask.dtype.itemsize <= 2:  # counting beats sorting by far
        counts = np.bincount(mask.ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(mask, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True) if value}
