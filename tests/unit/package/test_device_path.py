"""Blocks through a packaged classifier on a device: the CPU here, and a GPU where there is one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tasks.package.functions as home
from tests.unit.package.one_layer import one_layer

sys.path.append(str(Path(home.__file__).parent))
classifier: Any = importlib.import_module("ChiplineImageClassifier")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def function(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Four bands of uint16, tiles of 64 px with 16 of padding, four to a call."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, 3, 3, generator=generator)
    scale = (60_000.0, 0.5, 0.2)
    package = one_layer(tmp_path, weight, torch.zeros(3), {3: "A", 500: "B"}, scale=scale)
    made = classifier.ChiplineImageClassifier()
    made.initialize(model=str(package.emd_path), device=0 if request.param == "cuda" else -1)
    made.getConfiguration()
    assert made.overlaps is (request.param == "cuda")
    return made


def whole(function: Any, block: Any) -> Any:
    """What the network gives on the whole block at once."""
    scaled = (torch.from_numpy(block.astype(np.float32)) / 60_000 - 0.5) / 0.2
    with torch.inference_mode():
        scores = function.network.module(scaled[None].to(function.network.device))[0].cpu()
    best = np.asarray([0, 3, 500])[scores.argmax(0).numpy()]
    return best[16:-16, 16:-16]


def test_blocks_that_begin_before_others_end_are_those_of_the_whole_array(function: Any) -> None:
    random = np.random.default_rng(7)
    # The last one is short, as at the edge of a grid that does not fill its super-tile.
    blocks = [random.integers(0, 60_000, (4, rows, 96)).astype(np.uint16) for rows in (96, 96, 80)]
    before = [block.copy() for block in blocks]
    begun = [
        function.begin_pixels((0, 0), None, {"pixelType": "i4"}, raster_pixels=block) for block in blocks
    ]
    for block, copy, one in zip(blocks, before, begun, strict=True):
        answer = function.end_pixels(one)
        assert answer["output_pixels"].dtype == np.int32
        found, wanted = answer["output_pixels"][0], whole(function, block)
        assert (found == wanted).mean() > 0.9999
        assert set(np.unique(found)) == {0, 3, 500}
        np.testing.assert_array_equal(block, copy)


def test_a_smaller_batch_gives_the_same_classes(function: Any) -> None:
    block = np.random.default_rng(8).integers(0, 60_000, (4, 96, 96)).astype(np.uint16)
    mask = np.ones(block.shape, np.uint8)
    mask[:, 20:30, 20:30] = 0
    given = {"raster_pixels": block, "raster_mask": mask}
    wanted = function.updatePixels((0, 0), None, {"pixelType": "u2"}, **given)
    function.limit_batch(1)
    found = function.updatePixels((0, 0), None, {"pixelType": "u2"}, **given)
    np.testing.assert_array_equal(found["output_mask"], wanted["output_mask"])
    assert not found["output_mask"][0, 4:14, 4:14].any()
    assert (found["output_pixels"] == wanted["output_pixels"]).mean() > 0.9999
