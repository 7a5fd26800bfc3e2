"""A function that computes on a device of its own begins a block before the one before has ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.host import FunctionFailure, HostProcess

HALVES = """
overlaps = True

def updatePixels(self, tlc, shape, props, **blocks):
    raise AssertionError("asked as a whole")

def begin_pixels(self, tlc, shape, props, **blocks):
    value = int(blocks["raster_pixels"].max())
    if value == 7:
        raise ValueError("seven cannot begin")
    self.began = getattr(self, "began", 0) + 1
    return value, blocks["raster_pixels"].shape

def end_pixels(self, begun):
    value, shape = begun
    if value == 9:
        raise ValueError("nine cannot end")
    # How many had begun when this one ended.
    return {"output_pixels": np.full((1, *shape[1:]), 100 * self.began + value, np.int32)}

def updateRasterInfo(self, **kwargs):
    kwargs["output_info"].update(bandCount=1, pixelType="i4")
    return kwargs
"""


@pytest.fixture
def blocks() -> Any:
    return lambda *values: [np.full((1, 8, 8), value, np.uint8) for value in values]


def test_results_keep_their_order_and_the_next_block_begins_first(make_package: Any, blocks: Any) -> None:
    with HostProcess(make_package(HALVES), foreign=False) as host:
        tickets = [host.submit("updatePixels", block) for block in blocks(1, 2, 3)]
        found = [int(host.result(ticket)[0, 0, 0]) for ticket in tickets]
        assert [value % 100 for value in found] == [1, 2, 3]
        # The last has nothing after it to wait for; none waits for more than one that follows.
        assert [value // 100 - number for number, value in enumerate(found, start=1)][-1] == 0
        assert all(value // 100 - number in (0, 1) for number, value in enumerate(found, start=1))
        # One alone is not left waiting for a next one.
        assert int(host.run("updatePixels", blocks(4)[0])[0, 0, 0]) % 100 == 4


def test_a_block_that_fails_fails_alone_and_in_its_turn(make_package: Any, blocks: Any) -> None:
    with HostProcess(make_package(HALVES), foreign=False) as host:
        tickets = [host.submit("updatePixels", block) for block in blocks(1, 7, 9)]
        assert int(host.result(tickets[0])[0, 0, 0]) % 100 == 1
        with pytest.raises(FunctionFailure, match="seven cannot begin"):
            host.result(tickets[1])
        with pytest.raises(FunctionFailure, match="nine cannot end"):
            host.result(tickets[2])
        assert int(host.run("updatePixels", blocks(5)[0])[0, 0, 0]) % 100 == 5
