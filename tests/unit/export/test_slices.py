"""Sharing out the lanes of a part: nothing is lost, order stays, no block is read twice for nothing."""

from __future__ import annotations

import pytest

from tasks.export.candidates import Candidate
from tasks.export.slices import Lane, Slice, share_out
from tasks.imagery.places import Place


def _lanes(rows: list[int], tile: int, chips: int = 10) -> list[Lane]:
    return [
        Lane(number * chips, [Candidate(Place(row, col * tile, tile, tile)) for col in range(chips)])
        for number, row in enumerate(rows)
    ]


def _piece_rows(lanes: Slice, piece: int, origin: int) -> set[int]:
    return {
        row
        for lane in lanes
        for item in lane.chosen
        for row in range(
            (item.place.row - origin) // piece, (item.place.row + item.place.rows - 1 - origin) // piece + 1
        )
    }


@pytest.mark.parametrize("processes", [1, 2, 3, 16])
@pytest.mark.parametrize(("tile", "stride", "origin"), [(256, 256, 0), (256, 128, 0), (200, 200, -37)])
def test_every_lane_is_cut_once_in_order(processes: int, tile: int, stride: int, origin: int) -> None:
    lanes = _lanes(list(range(0, 40 * stride, stride)), tile)
    lanes[7] = Lane(lanes[7].first_number, [])
    slices = share_out(lanes, 512, origin, processes)
    assert [lane for lanes_of in slices for lane in lanes_of] == [lane for lane in lanes if lane.chosen]
    assert len(slices) >= min(processes, 13)


@pytest.mark.parametrize("processes", [2, 5])
def test_no_row_of_pieces_is_read_for_two_slices_where_chips_leave_a_gap(processes: int) -> None:
    lanes = _lanes(list(range(0, 40 * 256, 256)), 256)
    slices = share_out(lanes, 512, 0, processes)
    seen: set[int] = set()
    for lanes_of in slices:
        rows = _piece_rows(lanes_of, 512, 0)
        assert not rows & seen
        seen |= rows
    # The last ones are short, so that all processes end together.
    assert len(slices[-1]) == 2 < len(slices[0])


def test_overlapping_chips_share_as_few_rows_of_pieces_as_there_are_processes() -> None:
    lanes = _lanes(list(range(0, 40 * 100, 100)), 256)
    slices = share_out(lanes, 512, 0, 3)
    assert len(slices) == 3
    rows = [_piece_rows(lanes_of, 512, 0) for lanes_of in slices]
    assert len(rows[0] & rows[1]) <= 1
    assert len(rows[1] & rows[2]) <= 1
    assert not rows[0] & rows[2]


def test_no_chips_no_slices() -> None:
    assert share_out([Lane(0, [])], 512, 0, 4) == []
