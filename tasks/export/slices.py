"""How the chips of a part are shared out: runs of lanes that processes take one after the other.

A slice ends where no row of pieces (and so no block of the raster) is needed on both sides, as far as the
chips leave such places; only then is it small. Which process cuts a slice, and when, changes no chip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    runs = _apart(lanes, piece_rows, origin_row)
    total = sum(len(lane.chosen) for lane in lanes)
    if max(map(_chips, runs)) * processes > total:
        # Chips overlap the rows of pieces throughout: one slice each, which read the row between them twice.
        return _gathered([[lane] for lane in lanes], [-(-total // processes)] * processes)
    sizes, left = [], total
    while left > 0:
        sizes.append(-(-left // (_PER_PROCESS * processes)))
        left -= sizes[-1]
    return _gathered(runs, sizes)


def _chips(run: Slice) -> int:
    return sum(len(lane.chosen) for lane in run)


def _apart(lanes: Sequence[Lane], piece_rows: int, origin_row: int) -> list[Slice]:
    """Runs of lanes that share no row of pieces."""
    runs: list[Slice] = []
    reached: int | None = None
    for lane in lanes:
        windows = [item.place.window for item in lane.chosen]
        first = min((window.row - origin_row) // piece_rows for window in windows)
        last = max((window.row_stop - 1 - origin_row) // piece_rows for window in windows)
        if reached is None or first > reached:
            runs.append([])
        runs[-1].append(lane)
        reached = last if reached is None else max(reached, last)
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
