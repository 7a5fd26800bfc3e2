"""The operator for scores: chips of a shard are mixed across their borders, or trimmed, and decided.

Where chips are mixed, a strip along the shard's border needs the chips of the neighbouring shards, too. A
shard keeps its share of the sums there, and ``seams.py`` adds them up when the output is put together: no
chip is computed twice, and the outcome does not depend on where the shards' borders lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import HostError
from tasks.host import Operation
from tasks.imagery import Window
from tasks.infer.engine import Tile
from tasks.infer.operators import PixelFormat
from tasks.infer.scores import (
    Decided,
    Planes,
    Scoring,
    arrays_to_bytes,
    check_probabilities,
    decide,
    quantised,
    weights,
)
from tasks.infer.shards import Shard, TileGeometry

Side = int
"""-1 before the shard's core, 0 the core, 1 after it."""


def zone_of(window: Window, region: Window, margin: int) -> Window:
    """Where the chips of a shard contribute."""
    return window.expand(margin).intersection(region)


def pieces_of(window: Window, region: Window, margin: int) -> dict[tuple[Side, Side], Window]:
    """A shard's zone in up to nine pieces: the core, which is its own, and what it shares with others.

    Args:
        window: of the shard.
        region: what is computed; beyond it is nobody to share with.
        margin: of the mixing.
    """
    zone = zone_of(window, region, margin)
    core_top = window.row + (margin if zone.row < window.row else 0)
    core_bottom = window.row_stop - (margin if zone.row_stop > window.row_stop else 0)
    core_left = window.col + (margin if zone.col < window.col else 0)
    core_right = window.col_stop - (margin if zone.col_stop > window.col_stop else 0)
    # The first and the last shard may be narrower than the margin: their strip ends where the region does.
    core_top, core_left = min(core_top, window.row_stop), min(core_left, window.col_stop)
    core_bottom, core_right = max(core_bottom, core_top), max(core_right, core_left)
    rows = {-1: (zone.row, core_top), 0: (core_top, core_bottom), 1: (core_bottom, zone.row_stop)}
    cols = {-1: (zone.col, core_left), 0: (core_left, core_right), 1: (core_right, zone.col_stop)}
    return {
        (down, right): Window(top, left, bottom - top, stop - left)
        for down, (top, bottom) in rows.items()
        for right, (left, stop) in cols.items()
        if bottom > top and stop > left
    }


@dataclass
class _ScoreState:
    """A shard on its way.

    ``sums`` holds the rows from ``top`` on in which chips are still to come; what is complete has moved on to
    ``pieces`` and ``decided``.
    """

    shard: Shard
    zone: Window
    core: Window
    decided: Decided
    pieces: dict[tuple[Side, Side], tuple[Window, Planes]]
    sums: Planes | None
    top: int
    tile_row: int = field(default=-(2**31))


@dataclass(frozen=True)
class ScoreOperator:
    """Pixel classification by scores.

    Attributes:
        regions: per grid, the (row, col, rows, cols) that is computed.
    """

    geometry: TileGeometry
    format: PixelFormat
    scoring: Scoring
    regions: Mapping[int, tuple[int, int, int, int]]
    operation: Operation = "predict_scores"

    def needs(self, valid: NDArray[np.bool_], geometry: TileGeometry) -> bool:
        """Whether the inner part holds a pixel of imagery; a tile without one contributes nowhere."""
        pad = geometry.padding
        return bool(valid[pad : pad + geometry.rows, pad : pad + geometry.cols].any())

    def begin(self, shard: Shard) -> _ScoreState:
        """An empty shard."""
        margin, region = self.scoring.margin, Window(*self.regions[shard.grid])
        zone = zone_of(shard.target, region, margin)
        pieces = pieces_of(shard.target, region, margin)
        core = pieces.pop((0, 0), Window(shard.target.row, shard.target.col, 0, 0))
        depth = len(self.scoring.chosen) + 2
        return _ScoreState(
            shard,
            zone,
            core,
            Decided.empty(core.shape, self.scoring.kept, self.format.dtype, self.format.nodata),
            {side: (place, np.zeros((depth, *place.shape), np.uint16)) for side, place in pieces.items()},
            np.zeros((depth, self.geometry.rows + 2 * margin, zone.cols), np.uint16) if margin else None,
            shard.tile_row * self.geometry.rows - margin,
        )

    def accept(self, state: _ScoreState, tile: Tile, result: NDArray[np.float32]) -> None:
        """Take the scores of one super-tile's chips, (chips, scores, chip rows, chip cols).

        Raises:
            HostError: another shape, or no probabilities.
        """
        self._check(result)
        if state.sums is not None and tile.row != state.tile_row:
            self._move_on(state, tile.row * self.geometry.rows - self.scoring.margin)
            state.tile_row = tile.row
        for inner, scores in self._chips(tile, result):
            valid = tile.valid[inner.slices_in(tile.inner)]
            # A chip without imagery would only mix in what the network makes of nothing.
            if not valid.any():
                continue
            if state.sums is None:
                self._trim(state, inner, scores, valid)
            else:
                self._blend(state, state.sums, inner, scores, valid)

    def finish(self, state: _ScoreState) -> bytes:
        """The decided core and the shares of the strips around it."""
        if state.sums is not None:
            self._move_on(state, state.zone.row_stop)
            state.sums = None  # nothing is left in it, and it is the largest part of a shard
        arrays: dict[str, NDArray[Any]] = {"classes": state.decided.classes}
        if self.scoring.kept:
            arrays.update(top=state.decided.top, probability=state.decided.probability)
        for (down, right), (_, planes) in state.pieces.items():
            arrays[f"strip {down} {right}"] = planes
        return arrays_to_bytes(arrays)

    def _check(self, result: NDArray[np.float32]) -> None:
        layout = self.scoring.layout
        expected = (layout.batch, len(layout.values), layout.chip_rows, layout.chip_cols)
        if result.shape != expected:
            raise HostError(
                f"predict_scores returned scores of shape {result.shape}, not {expected}.",
                "Mend the function: it returns (chips, scores, rows, cols) with the padding.",
            )

    def _chips(self, tile: Tile, result: NDArray[np.float32]) -> Iterator[tuple[Window, NDArray[np.float32]]]:
        """Each chip's inner window on the grid, and its scores from ``margin`` before it to after it."""
        layout, pad, margin = self.scoring.layout, self.geometry.padding, self.scoring.margin
        rows, cols = layout.chip_rows - 2 * pad, layout.chip_cols - 2 * pad
        seen = (
            slice(pad - margin, pad + rows + margin),
            slice(pad - margin, pad + cols + margin),
        )
        places = [
            Window(tile.inner.row + row, tile.inner.col + col, rows, cols)
            for row in range(0, self.geometry.rows, rows)
            for col in range(0, self.geometry.cols, cols)
        ]
        for place, scores in zip(places, result, strict=True):
            yield place, scores[self.scoring.chosen][(slice(None), *seen)]

    def _trim(self, state: _ScoreState, inner: Window, scores: NDArray[np.float32], valid: Any) -> None:
        common = inner.intersection(state.core)
        if common.is_empty:
            return
        part = common.slices_in(inner)
        check_probabilities(scores)
        # Classes are told by the unrounded scores, as updatePixels does.
        block = np.clip(scores[(slice(None), *part)], 0, 1)
        ones = np.ones(common.shape, np.float32)
        state.decided.put(self.scoring, block, ones, common.slices_in(state.core), valid[part])

    def _blend(
        self, state: _ScoreState, sums: Planes, inner: Window, scores: NDArray[np.float32], valid: Any
    ) -> None:
        margin = self.scoring.margin
        reach = inner.expand(margin)
        within = Window(state.top, state.zone.col, sums.shape[1], sums.shape[2])
        common = reach.intersection(within)
        if common.is_empty:
            return
        part, target = common.slices_in(reach), common.slices_in(within)
        weight = np.outer(weights(inner.rows, margin), weights(inner.cols, margin))[part]
        sums[(slice(None, -2), *target)] += quantised(scores[(slice(None), *part)]) * weight
        sums[(-2, *target)] += weight
        own = inner.intersection(state.shard.target).intersection(within)
        if not own.is_empty:
            sums[(-1, *own.slices_in(within))] += valid[own.slices_in(inner)]

    def _move_on(self, state: _ScoreState, row: int) -> None:
        """Take the rows above ``row`` out of the sums: no later chip reaches them."""
        sums = state.sums
        assert sums is not None
        if row <= state.top:
            return
        complete = Window(state.top, state.zone.col, min(row - state.top, sums.shape[1]), sums.shape[2])
        for place, planes in state.pieces.values():
            common = complete.intersection(place)
            if not common.is_empty:
                planes[(slice(None), *common.slices_in(place))] = sums[
                    (slice(None), *common.slices_in(complete))
                ]
        common = complete.intersection(state.core)
        if not common.is_empty:
            made = decide(
                sums[(slice(None), *common.slices_in(complete))],
                self.scoring,
                self.format.dtype,
                self.format.nodata,
            )
            where = common.slices_in(state.core)
            state.decided.classes[where] = made.classes
            state.decided.top[(slice(None), *where)] = made.top
            state.decided.probability[(slice(None), *where)] = made.probability
        left = sums.shape[1] - complete.rows
        sums[:, :left] = sums[:, complete.rows :].copy()
        sums[:, left:] = 0
        state.top = row
