"""Classified rasters against labels as filled polygons, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely

from tasks.assess.areas import Area, project
from tasks.assess.bootstrap import Floats, Interval, block_bootstrap
from tasks.assess.objects import ratio
from tasks.assess.pixels import ConfusionMatrix, class_measures
from tasks.errors import BadInputError
from tasks.imagery import Grid, GridReader, RasterInfo, Window, grid_of_raster
from tasks.imagery.collection import bounds_in
from tasks.labels.pixels import PixelLabels, labels_on_grid

if TYPE_CHECKING:
    from tasks.labels.vector import VectorLabels

Place = tuple[int, int, int]
"""Number of a raster, row and column of a block in it."""

BACKGROUND = 0
# Of a class, in this order; the row of all has the means over the classes that are not background.
MEASURES = ("iou", "f1", "precision", "recall")
# A block of fewer pixels a side would make reading slow and blocks too alike.
_LEAST_BLOCK_PX = 64
# Whole blocks are read together up to about this edge.
_READ_PX = 1024


@dataclass(frozen=True)
class PixelAccuracy:
    """The accuracy of classified pixels.

    Attributes:
        matrix: truth by prediction; the value 0 is background.
        mean: ``MEASURES`` averaged over the classes that are not background.
        interval: ends of ``MEASURES`` of every class in the order of the matrix's values, then of the mean,
            then of the overall accuracy.
        blocks: number of blocks that were resampled.
    """

    matrix: ConfusionMatrix
    mean: Floats
    interval: Interval
    blocks: int


def assess_pixels(
    rasters: Sequence[RasterInfo],
    truth: VectorLabels,
    extents: Sequence[RasterInfo],
    *,
    block_size: float,
    replicates: int,
    level: float,
    seed: int,
    mask: VectorLabels | None = None,
) -> PixelAccuracy:
    """Compare classified pixels with the labels burnt on the raster's own grid.

    A pixel counts where the classified raster holds data, or has the NoData value 0 (then NoData and
    background are one); with ``extents`` only where one of these holds data.

    Args:
        rasters: classified rasters with integer class values in their first band.
        truth: labels in a CRS of their own.
        extents: rasters that bound what is assessed; none: everything.
        block_size: of the bootstrap, metres.
        replicates, level, seed: of the bootstrap.
        mask: polygons outside of which no pixel counts.

    Raises:
        BadInputError: a raster with other than integers, or no pixel to assess.
    """
    blocks = list(block_matrices(rasters, truth, extents, block_size, mask).values())
    total = ConfusionMatrix([BACKGROUND, *truth.schema.values])
    for block in blocks:
        total.add(block)
    values = total.values
    stack = np.stack([block.matrix(values) for block in blocks]).astype(np.float64)
    foreground = np.array([value != BACKGROUND for value in values])

    def statistic(weights: Floats) -> Floats:
        return statistics_of(np.tensordot(weights, stack, axes=1), foreground)

    whole = statistic(np.ones(len(blocks)))
    return PixelAccuracy(
        matrix=total,
        mean=whole[-len(MEASURES) - 1 : -1],
        interval=block_bootstrap(len(blocks), statistic, replicates=replicates, level=level, seed=seed),
        blocks=len(blocks),
    )


def block_matrices(
    rasters: Sequence[RasterInfo],
    truth: VectorLabels,
    extents: Sequence[RasterInfo],
    block_size: float,
    mask: VectorLabels | None = None,
) -> dict[Place, ConfusionMatrix]:
    """The confusion matrix of every block of ground that holds a pixel to assess.

    Args: see :func:`assess_pixels`.

    Raises:
        BadInputError: a raster with other than integers, or no pixel to assess.
    """
    blocks: dict[Place, ConfusionMatrix] = {}
    for number, info in enumerate(rasters):
        if not np.issubdtype(np.dtype(info.dtype), np.integer):
            raise BadInputError(
                f"{info.uri} holds {info.dtype} values, no classes.",
                "Name a raster of integer class values, as classify_pixels writes it.",
            )
        for row, column, matrix in _blocks_of(info, truth, extents, block_size, mask):
            blocks[number, row, column] = matrix
    if not blocks:
        raise BadInputError(
            "No pixel of the classified rasters can be assessed.",
            "Check that extent_rasters and mask_features show the same ground, and that rasters hold data.",
        )
    return blocks


def statistics_of(counts: Floats, foreground: npt.NDArray[np.bool_]) -> Floats:
    """All measures of all classes, their means, the overall accuracy."""
    measures = class_measures(counts)
    chosen = measures[foreground]
    defined = np.isfinite(chosen)
    number = defined.sum(axis=0)
    mean = np.full(len(MEASURES), np.nan)
    np.divide(np.where(defined, chosen, 0).sum(axis=0), number, out=mean, where=number > 0)
    overall = ratio(float(np.trace(counts)), float(counts.sum()))
    return np.concatenate([measures.ravel(), mean, [overall]])


def _blocks_of(
    info: RasterInfo,
    truth: VectorLabels,
    extents: Sequence[RasterInfo],
    block_size: float,
    mask: VectorLabels | None,
) -> Iterator[tuple[int, int, ConfusionMatrix]]:
    """Row, column and confusion matrix of every block of a raster that holds a pixel to assess."""
    grid = grid_of_raster(info)
    labels = _labels(truth, grid)
    masked = None if mask is None else _labels(mask, grid)
    rows, columns = _edges(info, grid, block_size)
    with ExitStack() as stack:
        reader = stack.enter_context(GridReader([info], grid, (0,)))
        bounds = [
            stack.enter_context(GridReader([extent], grid, resampling="nearest"))
            for extent in extents
            if _touch(bounds_in(extent, info.crs_wkt), grid.bounds)
        ]
        if extents and not bounds:
            return
        for top, bottom in _spans(rows):
            for left, right in _spans(columns):
                window = Window(
                    rows[top], columns[left], rows[bottom] - rows[top], columns[right] - columns[left]
                )
                found = reader.read(window)
                counted = found.valid if info.nodata != BACKGROUND else np.ones(window.shape, bool)
                if bounds:
                    counted = counted & np.any([extent.read(window).valid for extent in bounds], axis=0)
                if masked is not None:
                    counted = counted & (masked.burn(window.row, window.col, *window.shape) > 0)
                if not counted.any():
                    continue
                # Where the raster holds NoData the reader gives 0: background.
                prediction = found.values[0].astype(np.int64)
                true = labels.burn(window.row, window.col, *window.shape)
                for row in range(top, bottom):
                    for column in range(left, right):
                        part = (
                            slice(rows[row] - window.row, rows[row + 1] - window.row),
                            slice(columns[column] - window.col, columns[column + 1] - window.col),
                        )
                        if counted[part].any():
                            matrix = ConfusionMatrix()
                            matrix.accumulate(true[part], prediction[part], counted[part])
                            yield row, column, matrix


def _labels(truth: VectorLabels, grid: Grid) -> PixelLabels:
    if grid.crs_wkt is None:
        raise AssertionError("grid_of_raster gives a grid in map space")
    geometries = project(truth.geometries, truth.crs_wkt, grid.crs_wkt)
    there = shapely.area(geometries) > 0
    moved = replace(truth, geometries=geometries[there], values=truth.values[there], crs_wkt=grid.crs_wkt)
    return labels_on_grid(moved, grid.transform)


def _edges(info: RasterInfo, grid: Grid, block_size: float) -> tuple[list[int], list[int]]:
    """The pixel borders between blocks, along rows and columns."""
    area = Area(info.uri, grid.crs_wkt or "", shapely.box(*grid.bounds))
    blocks = area.blocks(block_size, grid.bounds)
    sides = ((grid.rows, blocks.rows), (grid.cols, blocks.columns))
    rows, columns = (
        np.linspace(0, length, max(1, min(number, length // _LEAST_BLOCK_PX)) + 1).round().astype(int)
        for length, number in sides
    )
    return rows.tolist(), columns.tolist()


def _spans(edges: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of whole blocks, as indices of edges, each about as long as one read."""
    start = 0
    for stop in range(1, len(edges)):
        if stop == len(edges) - 1 or edges[stop + 1] - edges[start] > _READ_PX:
            yield start, stop
            start = stop


def _touch(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return bool(
        first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
    )
