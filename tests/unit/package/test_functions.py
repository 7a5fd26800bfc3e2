"""Parts of the inference functions that decide without a network: devices, super-tiles, duplicates."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tasks.package.functions as home

sys.path.append(str(Path(home.__file__).parent))
runtime: Any = importlib.import_module("chipline_runtime")
classifier: Any = importlib.import_module("ChiplineImageClassifier")
detector: Any = importlib.import_module("ChiplineObjectDetector")


@pytest.mark.parametrize(
    ("batch_size", "side"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 2), (9, 3), (15, 3), (16, 4), (64, 8)]
)
def test_a_super_tile_holds_the_largest_square_of_the_batch(batch_size: int, side: int) -> None:
    tiles = runtime.SuperTile(64, 16, batch_size)
    assert (tiles.batch, tiles.size) == (side * side, 32 * side)
    places = tiles.placed(tiles.size + 32, tiles.size + 32)
    assert len(places) == side * side
    # The inner parts are disjoint and fill the inner block.
    covered = np.zeros((tiles.size, tiles.size), int)
    for row, col in places:
        covered[row : row + 32, col : col + 32] += 1
    assert (covered == 1).all()


def test_short_blocks_are_filled_with_zeros() -> None:
    tiles = runtime.SuperTile(32, 8, 4)
    block = np.ones((2, 40, 33), np.int16)
    (places, chips), *rest = list(tiles.batches(block))
    assert rest == []
    assert places == [(0, 0), (0, 16), (16, 0), (16, 16)]
    assert chips.shape == (4, 2, 32, 32)
    assert chips[3].sum() == 2 * 24 * 17


def test_a_limited_batch_gives_the_same_chips_in_more_calls() -> None:
    tiles = runtime.SuperTile(32, 8, 9)
    block = np.random.default_rng(0).integers(0, 255, (2, 60, 64)).astype(np.uint8)
    ((places, whole),) = tiles.batches(block)
    tiles.limit(4)
    parts = list(tiles.batches(block, np.empty))
    assert [len(part) for part, _ in parts] == [4, 4, 1]
    assert [place for part, _ in parts for place in part] == places
    np.testing.assert_array_equal(np.concatenate([chips for _, chips in parts]), whole)
    tiles.limit(100)
    assert tiles.at_once == 9


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_pixels_of_any_type_become_float32(dtype: str) -> None:
    network = object.__new__(runtime.PackagedNetwork)
    network.device = torch.device("cpu")
    network._factor, network._summand = torch.tensor(2.0), torch.tensor(1.0)
    most = min(np.iinfo(dtype).max, 2**24) if np.dtype(dtype).kind in "iu" else 1000.5
    pixels = np.array([[[[0, 1, 300 % most, most]]]]).astype(dtype)
    found = network.normalised(pixels)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), pixels.astype(np.float32) * 2 + 1)


@pytest.mark.parametrize(("tile", "padding", "batch"), [(64, 32, 1), (64, -1, 1), (64, 8, 0)])
def test_numbers_that_do_not_fit_are_refused(tile: int, padding: int, batch: int) -> None:
    with pytest.raises(ValueError, match=r"padding|batch_size"):
        runtime.SuperTile(tile, padding, batch)


def test_masked_and_infinite_values_become_zero_and_the_input_stays() -> None:
    pixels = np.full((2, 2, 2), 5.0)
    pixels[0, 0, 0] = np.nan
    mask = np.full((2, 2, 2), 255, np.uint8)
    mask[:, 1, 1] = 0
    mask[1, 0, 1] = 0
    before = pixels.copy()
    block, valid = runtime.cleaned(pixels, mask)
    assert block[0, 0, 0] == 0 == block[1, 0, 1] == block[0, 1, 1]
    assert block[1, 0, 0] == 5 == block[0, 0, 1]
    # A pixel is invalid only where every band is.
    assert valid.tolist() == [[True, True], [True, False]]
    np.testing.assert_array_equal(pixels, before)


def test_normalisation_is_indexed_by_the_extracted_bands() -> None:
    stats = {
        "band_min_values": [0.0, 100.0, 10.0],
        "band_max_values": [1.0, 300.0, 10.0],
        "scaled_mean_values": [0.0, 0.5, 0.0],
        "scaled_std_values": [1.0, 0.25, 0.0],
    }
    factor, summand = runtime.normalisation({"NormalizationStats": stats}, [1, 2])
    assert 150 * factor[0] + summand[0] == pytest.approx((0.25 - 0.5) / 0.25)
    assert 12 * factor[1] + summand[1] == pytest.approx(2)  # constant band: no division by zero
    factor, summand = runtime.normalisation({}, [2, 1, 0])
    assert 255 * factor[0] + summand[0] == pytest.approx((1 - 0.485) / 0.229)
    with pytest.raises(ValueError, match="4 bands"):
        runtime.normalisation({}, [0, 1, 2, 3])


@pytest.mark.parametrize(("value", "truth"), [("True", True), ("false", False), ("1", True), (None, False)])
def test_texts_of_hosts_are_read(value: object, truth: bool) -> None:
    assert runtime.as_bool(value) is truth


def test_an_argument_out_of_its_range_is_named_with_its_range() -> None:
    assert runtime.argument({"padding": "12"}, "padding", 3, 0, 20) == 12
    assert runtime.argument({"padding": ""}, "padding", 3, 0, 20) == 3
    for wrong in ("21", "-1", "1.5", "many", "nan"):
        with pytest.raises(ValueError, match=r"padding is '.*', must be a whole number from 0 to 20"):
            runtime.argument({"padding": wrong}, "padding", 3, 0, 20)
    assert runtime.argument({"threshold": "0.25"}, "threshold", 0.5, 0.0, 1.0) == 0.25
    with pytest.raises(ValueError, match=r"threshold is 7, must be a number from 0\.0 to 1\.0"):
        runtime.argument({"threshold": 7}, "threshold", 0.5, 0.0, 1.0)
    assert runtime.flag({"a": "FALSE"}, "a", True) is False
    assert runtime.flag({}, "a", True) is True
    with pytest.raises(ValueError, match="a is 'perhaps', must be one of True, False"):
        runtime.flag({"a": "perhaps"}, "a", True)


def configured(function: Any, **arguments: str) -> Any:
    """The configuration of a function whose network is a double: 4 bands, tiles of 64, one class."""
    network = SimpleNamespace(
        definition={"ImageHeight": 64, "Padding": 16},
        own={},
        bands=[0, 1, 2, 3],
        classes=[{"Value": 1, "Name": "Tree"}],
        size_divisor=32,
        input_edge=lambda tile: tile,
        module=None,
        number=lambda key, default: {"ImageHeight": 64, "Padding": 16}.get(key, default),
    )
    function.network, function.score_values = network, [0, 1]
    parameters = {item["name"]: item for item in function.getParameterInfo()}
    assert all(item["description"] for item in parameters.values())
    assert all("domain" in item for name, item in parameters.items() if name not in LEADING)
    assert set(arguments) <= set(parameters)
    return function.getConfiguration(**arguments)


LEADING = ("raster", "model", "device")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", "0"),
        ("tile_size", "40"),
        ("tile_size", "0"),
        ("padding", "-3"),
        ("padding", "32"),
        ("test_time_augmentation", "often"),
    ],
)
def test_both_functions_refuse_arguments_out_of_range(name: str, value: str) -> None:
    for function in (classifier.ChiplineImageClassifier(), detector.ChiplineObjectDetector()):
        assert configured(function, tile_size="96", padding="8")["tx"] == 2 * 80
        with pytest.raises(ValueError, match=f"{name} (is )?'?{value}"):
            configured(function, **{name: value})


def test_each_function_refuses_its_own_arguments_out_of_range() -> None:
    for name, value in (("predict_background", "x"), ("merge_policy", "median")):
        with pytest.raises(ValueError, match=f"{name} is '{value}', must be one of"):
            configured(classifier.ChiplineImageClassifier(), **{name: value})
    for name in ("threshold", "nms_overlap"):
        with pytest.raises(ValueError, match=rf"{name} is '1\.1', must be a number from 0\.0 to 1\.0"):
            configured(detector.ChiplineObjectDetector(), **{name: "1.1"})


def test_what_is_turned_is_turned_back() -> None:
    images = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    seen = set()
    for position in runtime.POSITIONS:
        turned = runtime.turned(images, position)
        seen.add(tuple(turned[0, 0].flatten().tolist()))
        assert torch.equal(runtime.turned_back(turned, position), images)
    assert len(seen) == 8


def test_boxes_are_turned_back_to_the_pixels_they_were_found_on() -> None:
    size = 12
    image = torch.zeros(1, 1, size, size)
    image[0, 0, 2:5, 1:9] = 1  # rows 2-5, columns 1-9
    for position in runtime.POSITIONS:
        rows, cols = torch.nonzero(runtime.turned(image, position)[0, 0], as_tuple=True)
        found = torch.tensor([[cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]], dtype=torch.float32)
        assert runtime.boxes_turned_back(found, position, size).tolist() == [[1, 2, 9, 5]]


def test_boxes_of_several_views_are_merged_into_one() -> None:
    def view(*items: tuple[list[float], int, float]) -> Any:
        boxes = torch.tensor([box for box, _, _ in items], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([label for _, label, _ in items], dtype=torch.int64)
        return boxes, labels, torch.tensor([score for _, _, score in items], dtype=torch.float32)

    first = view(([0, 0, 10, 10], 1, 0.9), ([0, 0, 10, 10], 2, 0.4))
    second = view(([1, 0, 11, 10], 1, 0.6), ([1, 0, 11, 10], 1, 0.5), ([50, 50, 60, 60], 1, 0.8))
    boxes, labels, scores = detector._fused([first, second], 0.5)
    assert labels.tolist() == [1, 1, 2]
    # The first object is in both views: its box is the weighted mean of three boxes.
    assert scores.tolist() == pytest.approx([(0.9 + 0.6) / 2, 0.8 / 2, 0.4 / 2])
    shift = (0.6 + 0.5) / (0.9 + 0.6 + 0.5)
    torch.testing.assert_close(boxes[0], torch.tensor([shift, 0, 10 + shift, 10]))
    assert boxes[1].tolist() == [50, 50, 60, 60]
    assert len(detector._fused([view(), view()], 0.5)[0]) == 0
    assert len(detector._fused([first], 1.0)[0]) == 2


def test_merged_boxes_lie_where_the_object_is_whatever_way_the_tile_is_turned() -> None:
    def bright(images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """A detector that turns with its picture: the box of the bright pixels."""
        found = []
        for image in images:
            rows, cols = torch.nonzero(image[0] > 0.5, as_tuple=True)
            box = torch.stack([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]).float()
            found.append(
                {"boxes": box[None], "labels": torch.tensor([1]), "scores": image[0].max()[None].float()}
            )
        return found

    function = detector.ChiplineObjectDetector()
    assert configured(function, test_time_augmentation="True", batch_size="4")["tx"] == 64
    function.network.module, function.network.normalised = bright, torch.from_numpy
    chips = np.zeros((2, 1, 64, 64), np.float32)
    chips[0, 0, 10:20, 30:37] = 0.75
    chips[1, 0, 40:41, 2:60] = 0.625
    (first, second) = function._detect(chips)
    assert (first[0].tolist(), first[1].tolist(), first[2].tolist()) == ([[30, 10, 37, 20]], [1], [0.75])
    assert (second[0].tolist(), second[2].tolist()) == ([[2, 40, 60, 41]], [0.625])


class TestDevice:
    """ArcGIS's device numbers."""

    @pytest.fixture(autouse=True)
    def _gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((5, 9)[index], 10))

    @pytest.mark.parametrize(
        ("number", "asked", "device", "told"),
        [
            (-1, "GPU", "cpu", "CPU"),
            (0, "", "cuda:0", "GPU"),
            (1, "GPU", "cuda:1", "GPU"),
            (-2, "", "cuda:1", "GPU"),
            (1, "CPU", "cpu", "CPU"),
        ],
    )
    def test_the_number_decides_and_arcpy_is_told(
        self, number: int, asked: str, device: str, told: str
    ) -> None:
        arcpy = SimpleNamespace(env=SimpleNamespace(processorType=asked, gpuId=None))
        assert str(runtime.choose_device(number, arcpy)) == device
        assert arcpy.env.processorType == told

    def test_a_missing_gpu_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeError, match="there are 2"):
            runtime.choose_device(2, None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match="no GPU"):
            runtime.choose_device(0, None)
        assert runtime.choose_device(-2, None).type == "cpu"


def boxes(*items: tuple[tuple[float, float, float, float], float, tuple[int, int]], label: int = 1) -> Any:
    found = detector._Boxes.none()
    for box, score, place in items:
        row, col = place
        in_chip = np.array([box]) - np.array([col, row, col, row])
        found.add(in_chip, np.array([label]), np.array([score]), place)
    return found


class TestSettling:
    """Two by two chips of 64 pixels with a padding of 16: inner parts meet at 48 in the block."""

    tiles = runtime.SuperTile(64, 16, 4)
    shape = (96, 96)

    def kept(self, found: Any) -> list[float]:
        return sorted(found.settled(self.tiles, self.shape).scores.tolist())

    def test_the_chip_with_the_centre_owns_the_object(self) -> None:
        seen_twice = boxes(((36, 20, 46, 30), 0.9, (0, 0)), ((36, 20, 46, 30), 0.95, (0, 32)))
        assert self.kept(seen_twice) == [0.9]

    def test_two_owners_of_one_object_give_the_better_one(self) -> None:
        left, right = (40.0, 20.0, 54.0, 30.0), (43.0, 20.0, 57.0, 30.0)  # centres 47 and 50
        assert self.kept(boxes((left, 0.7, (0, 0)), (right, 0.8, (0, 32)))) == [0.8]
        assert self.kept(boxes((left, 0.8, (0, 0)), (right, 0.7, (0, 32)))) == [0.8]

    def test_an_object_that_both_leave_to_the_other_is_kept_once(self) -> None:
        mine, theirs = (43.0, 20.0, 57.0, 30.0), (40.0, 20.0, 54.0, 30.0)
        assert self.kept(boxes((mine, 0.7, (0, 0)), (theirs, 0.8, (0, 32)))) == [0.8]

    def test_an_unowned_box_that_nobody_else_sees_is_left_out(self) -> None:
        assert self.kept(boxes(((50, 20, 60, 30), 0.9, (0, 0)))) == []

    def test_objects_of_one_chip_or_of_other_classes_are_never_compared(self) -> None:
        same_chip = boxes(((40, 20, 50, 30), 0.9, (0, 0)), ((41, 20, 51, 30), 0.8, (0, 0)))
        assert self.kept(same_chip) == [0.8, 0.9]
        one = boxes(((40, 20, 54, 30), 0.9, (0, 0)))
        other = boxes(((43, 20, 57, 30), 0.8, (0, 32)), label=2)
        one.add(other.boxes - np.array([32, 0, 32, 0]), other.labels, other.scores, (0, 32))
        assert self.kept(one) == [0.8, 0.9]

    def test_at_the_block_s_edge_the_outer_chip_owns_the_padding_too(self) -> None:
        in_padding = boxes(((0, 20, 8, 30), 0.9, (0, 0)), ((20, 86, 30, 96), 0.8, (32, 0)))
        assert self.kept(in_padding) == [0.8, 0.9]

    def test_four_chips_at_a_corner_report_once(self) -> None:
        box = (44.0, 44.0, 54.0, 54.0)  # centre 49, 49
        places = [(0, 0), (0, 32), (32, 0), (32, 32)]
        found = boxes(*((box, 0.5 + index / 10, place) for index, place in enumerate(places)))
        assert self.kept(found) == [0.8]
