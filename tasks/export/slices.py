"""How the chips of a part are shared out: runs of lanes that processes take one after the other.

A slice ends where no row of pieces (and so no block of the raster) is needed on both sides, as far as the
chips leave such places; only then is it small. Which process cuts a slice, and when, changes no chip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tasks.export.candidates import Candidate

# Slices for each process of what is left: the first ones are long, the last ones let all end together.
_PER_PROCESS = 2


@dataclass(frozen=True)
class Lane:
    """The chips of one lane: their numbers and where they are."""

    first_number: int
    chosen: list[Candidate]


Slice = list[Lane]


def share_out(lanes: Sequence[Lane], piece_rows: int, origin_row: int, processes: int) -> list[Slice]:
    """The lanes with a chip, in their order, as slices for so many processes.

    Args:
        lanes: of a part, from top to bottom.
        piece_rows: height of the pieces that imagery is read in, px.
        origin_row: a row where a piece begins, px.
        processes: how many cut at the same time.
    """
    lanes = [lane for lane in lanes if lane.chosen]
    if not lanes:
        return []
    if processes == 1:
        return [list(lanes)]
    rows = [_piece_rows(lane, piece_rows, origin_row) for lane in lanes]
    total = _chips(lanes)
    runs = _runs(lanes, [first > last for last, (first, _) in zip(_highest(rows), rows, strict=True)])
    if max(map(_chips, runs)) * processes > total:
        # Chips overlap the rows of pieces throughout: one slice each, which read a row between them twice.
        before = [rows[0], *rows[:-1]]
        runs = _runs(lanes, [now[0] > last[0] for last, now in zip(before, rows, strict=True)])
        if len(runs) < _PER_PROCESS * processes:
            runs = [[lane] for lane in lanes]
        return _gathered(runs, [-(-total // processes)] * processes)
    sizes, left = [], total
    while left > 0:
        sizes.append(-(-left // (_PER_PROCESS * processes)))
        left -= sizes[-1]
    return _gathered(runs, sizes)


def _chips(lanes: Slice) -> int:
    return sum(len(lane.chosen) for lane in lanes)


def _piece_rows(lane: Lane, height: int, origin: int) -> tuple[int, int]:
    """The first and the last row of pieces that a lane needs."""
    windows = [item.place.window for item in lane.chosen]
    return (
        min((window.row - origin) // height for window in windows),
        max((window.row_stop - 1 - origin) // height for window in windows),
    )


def _highest(rows: Sequence[tuple[int, int]]) -> list[int]:
    """For each lane the last row of pieces that any lane before it needs; for the first one its own."""
    return list(accumulate((last for _, last in rows[:-1]), max, initial=rows[0][1]))


def _runs(lanes: Slice, begins: Sequence[bool]) -> list[Slice]:
    """The lanes in runs, given where one begins."""
    runs: list[Slice] = [[]]
    for lane, new in zip(lanes, begins, strict=True):
        if new:
            runs.append([])
        runs[-1].append(lane)
    return runs


def _gathered(runs: Sequence[Slice], sizes: Sequence[int]) -> list[Slice]:
    """Runs joined until each slice holds at least the chips wished for; the last wish counts for all more."""
    slices: list[Slice] = []
    here: Slice = []
    for run in runs:
        here = here + run
        if _chips(here) >= sizes[min(len(slices), len(sizes) - 1)]:
            slices.append(here)
            here = []
    return [*slices, here] if here else slices
