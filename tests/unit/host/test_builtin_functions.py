"""What the built-in functions share, with numpy alone: the split into chips, and each object once."""

from __future__ import annotations

import importlib
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tasks.package.builtin import FOLDER

DEFINITION = json.dumps(
    {
        "ImageHeight": 12,
        "ImageWidth": 16,
        "ExtractBands": [2, 0],
        "Classes": [{"ClassValue": 4, "ClassName": "tree"}, {"Value": 9, "Name": "roof", "Color": [1, 2, 3]}],
    }
)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("chipline_builtin")


def test_inner_parts_of_chips_fill_the_block(shared: ModuleType) -> None:
    definition = shared.Definition(DEFINITION)
    tiles = shared.Tiles(definition, {"padding": "3", "batch_size": "11"})
    assert (tiles.side, tiles.rows, tiles.cols) == (3, 18, 30)
    block = np.random.default_rng(1).integers(0, 255, (2, 18 + 6, 30 + 6), dtype=np.uint8)
    chips = tiles.chips(block)
    assert chips.shape == (9, 2, 12, 16)
    np.testing.assert_array_equal(tiles.joined(chips[:, 0]), block[:1, 3:-3, 3:-3])
    np.testing.assert_array_equal(tiles.inner(block[1]), block[1, 3:-3, 3:-3])
    assert tiles.configuration(definition)["extractBands"] == (2, 0)
    with pytest.raises(ValueError, match="were asked for"):
        tiles.chips(block[:, :-1])
    with pytest.raises(ValueError, match="exported with"):
        tiles.joined(chips[:, 0, 1:])


def test_a_network_that_crops_itself_is_joined_the_same(shared: ModuleType) -> None:
    definition = shared.Definition(DEFINITION.replace("{", '{"ModelPadding": 2,', 1))
    tiles = shared.Tiles(definition, {"padding": "3", "batch_size": "4"})
    block = np.random.default_rng(2).integers(0, 255, (1, 12 + 6, 20 + 6), dtype=np.uint8)
    cropped = tiles.chips(block)[:, 0, 2:-2, 2:-2]
    np.testing.assert_array_equal(tiles.joined(cropped), block[:, 3:-3, 3:-3])
    with pytest.raises(ValueError, match="ModelPadding"):
        shared.Tiles(definition, {"padding": "1"})


@pytest.mark.parametrize("padding", ["6", "-1"])
def test_padding_must_leave_something(shared: ModuleType, padding: str) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        shared.Tiles(shared.Definition(DEFINITION), {"padding": padding})


def test_numbers_never_overflow_into_the_networks_type(shared: ModuleType) -> None:
    np.testing.assert_array_equal(
        shared.as_taken(np.array([0.4, 254.6]), np.uint8), np.array([0, 255], np.uint8)
    )
    with pytest.raises(ValueError, match=r"uint8 pixels.*3000.*rescale"):
        shared.as_taken(np.array([1, 3000], np.uint16), np.uint8)


def test_classes_count_by_their_order(shared: ModuleType) -> None:
    definition = shared.Definition(DEFINITION)
    assert [definition.class_name(number) for number in (1, 2)] == ["tree", "roof"]
    with pytest.raises(ValueError, match="class 3"):
        definition.class_name(3)
    rows = json.loads(definition.attribute_table())["features"]
    assert rows[1]["attributes"] == {
        "OID": 2,
        "Value": 9,
        "Class": "roof",
        "Red": 1,
        "Green": 2,
        "Blue": 3,
    }


class _Graph:
    """A perfect detector in the graph's place: it finds the boxes that a chip holds whole, each a bit off."""

    def __init__(self, tiles: Any, boxes: np.ndarray) -> None:
        self.tiles, self.boxes = tiles, boxes  # (n, 4) ymin, xmin, ymax, xmax in the block with its padding

    def run(self, taken: str, given: list[str], chips: np.ndarray) -> list[np.ndarray]:
        assert taken == "image_tensor:0"
        assert given[0] == "detection_boxes:0"
        size = np.array([self.tiles.height, self.tiles.width] * 2)
        boxes = np.zeros((len(chips), len(self.boxes), 4))
        scores = np.zeros((len(chips), len(self.boxes)))
        for number, place in enumerate(self.tiles.places()):
            shift = np.array([*place, *place]) + (0.4 if number % 2 else -0.4)
            inside = self.boxes - shift
            whole = ((inside >= 0) & (inside <= size)).all(axis=1)
            boxes[number][whole] = inside[whole] / size
            scores[number][whole] = 0.9 - 0.01 * number
        return [boxes, scores, np.ones_like(scores)]


def test_each_object_of_a_block_is_told_once(shared: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    graph_module = ModuleType("chipline_tensorflow")
    graph_module.FrozenGraph = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "chipline_tensorflow", graph_module)
    source = importlib.import_module("TensorFlowObjectDetector")
    emd = json.dumps({"ImageHeight": 64, "ImageWidth": 64, "Classes": [{"Value": 1, "Name": "tree"}]})
    detector = source.TensorFlowObjectDetector()
    detector.definition = shared.Definition(emd)
    detector.getConfiguration(padding="16", batch_size="4", score_threshold="0.6")
    # Objects of 8 x 8 every 9 pixels: many have their centre on the line between two chips.
    corners = np.array([(row, col) for row in range(4, 80, 9) for col in range(5, 80, 9)], dtype=float)
    truth = np.hstack([corners, corners + 8])
    detector.graph = _Graph(detector.tiles, truth)
    block = np.zeros((3, 96, 96), np.uint8)
    answer = detector.vectorize(raster_pixels=block, raster_mask=np.ones_like(block))
    features = json.loads(answer["output_vectors"])["features"]
    found = np.array([feature["geometry"]["rings"][0][0] for feature in features])[:, ::-1] + 16
    assert len(found) == len(truth)
    gaps = np.abs(found[:, None] - truth[None, :, :2]).max(axis=2)
    assert (gaps.min(axis=0) < 1).all()
    assert {feature["attributes"]["Class"] for feature in features} == {"tree"}
