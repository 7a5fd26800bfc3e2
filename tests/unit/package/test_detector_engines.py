"""Detectors by execution engines: the same objects as torch's own detector, or torch computes."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tasks.package.functions as home
from tasks.package.network_source import build_detector

sys.path.append(str(Path(home.__file__).parent))
runtime: Any = importlib.import_module("chipline_runtime")
objects: Any = importlib.import_module("ChiplineObjectDetector")

TILE = 64
KINDS = ("FCOS", "RETINANET", "SSD", "FASTERRCNN", "MASKRCNN")


class Pyramid(torch.nn.Module):
    """Two feature maps, a quarter and an eighth of the image."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.fine = torch.nn.Conv2d(3, 32, 5, stride=4, padding=2)
        self.coarse = torch.nn.Conv2d(32, 32, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = torch.relu(self.fine(images))
        return {"0": fine, "1": torch.relu(self.coarse(fine))}


def network(kind: Any) -> torch.nn.Module:
    torch.manual_seed(4)
    arguments: dict[str, Any] = {
        "num_classes": 3,
        "anchor_sizes": ((8,), (16,)),
        "aspect_ratios": ((1.0,), (1.0,)),
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "detections_per_img": 20,
        "size_divisible": 32,
    }
    if kind == "FCOS":
        arguments["head_convolutions"] = 1
    if kind in ("SSD", "FASTERRCNN", "MASKRCNN"):
        arguments["featmap_names"] = ["0", "1"]
    if kind in ("FASTERRCNN", "MASKRCNN"):
        for name in ("score_thresh", "nms_thresh", "detections_per_img"):
            arguments[f"box_{name}"] = arguments.pop(name)
        arguments["box_score_thresh"] = 0.01
    else:
        arguments["topk_candidates"] = 50
    if kind == "MASKRCNN":
        arguments["mask_width"] = 8
    made = build_detector(Pyramid(), kind, arguments).eval().requires_grad_(False)
    for name, weight in made.named_parameters():
        # Scores far apart, as after training: random heads give nearly equal ones.
        if weight.ndim == 4 and ("cls" in name or "classification" in name):
            weight.copy_(torch.randn(weight.shape) * 0.3)
        if name.endswith("bbox_reg.bias"):
            weight.fill_(1.5)  # boxes of some size
    return made


def function(kind: str, threshold: float = 0.05, **scalars: str) -> Any:
    """The packaged function around a network in memory."""
    made = objects.ChiplineObjectDetector()
    made.network = SimpleNamespace(
        definition={"ImageHeight": TILE, "Padding": 8, "BatchSize": 4},
        own={"Threshold": threshold},
        bands=[0, 1, 2],
        classes=[{"Value": 1, "Name": "A"}, {"Value": 2, "Name": "B"}],
        size_divisor=32,
        input_edge=lambda tile: tile,
        module=network(kind),
        number=lambda key, default: {"ImageHeight": TILE, "Padding": 8, "BatchSize": 4}.get(key, default),
        normalised=lambda chips: torch.from_numpy(chips).float() / 255,
        room=np.empty,
    )
    made.trunk = objects._Trunk(made.network.module)
    made.asked = objects._Asked(made.trunk)
    made.asked.take_place_in(made.network.module)
    made.getConfiguration(**scalars)
    return made


@pytest.fixture(scope="module")
def block() -> Any:
    return np.random.default_rng(3).integers(0, 255, (3, 112, 112)).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_gives_what_the_detector_gave_before_the_trunk_was_taken_out(kind: str, block: Any) -> None:
    made, plain = function(kind, threshold=0.01 if "RCNN" in kind else 0.05), network(kind)
    images = torch.from_numpy(np.stack([block[:, :TILE, :TILE], block[:, -TILE:, -TILE:]])).float() / 255
    with torch.inference_mode():
        wanted, found = plain(list(images)), made.network.module(list(images))
    assert sum(len(one["scores"]) for one in wanted) > 4
    for one, other in zip(wanted, found, strict=True):
        assert set(one) == set(other)
        for key in one:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("FCOS", "ONNXRUNTIME"),
        ("MASKRCNN", "ONNXRUNTIME"),
        # Making a model of OpenVINO takes seconds.
        ("FCOS", "OPENVINO"),
        *(
            pytest.param(kind, "OPENVINO", marks=pytest.mark.slow)
            for kind in ("RETINANET", "SSD", "FASTERRCNN", "MASKRCNN")
        ),
    ],
)
def test_engines_find_torchs_objects(kind: str, engine: str, block: Any) -> None:
    threshold = 0.01 if "RCNN" in kind else 0.05
    wanted = function(kind, threshold).vectorize(raster_pixels=block)["output_vectors"]
    made = function(kind, threshold, execution_engine=engine)
    report = made.settle_engine([block])
    assert (report["execution_engine"], report["fell_back"]) == (engine, []), report
    assert report["objects"] > 0
    assert report["agreement"] > 0.999
    found = made.vectorize(raster_pixels=block)["output_vectors"]
    assert wanted.count("rings") == found.count("rings") > 0
    if engine == "ONNXRUNTIME":
        # Another part, which follows what was decided.
        other = function(kind, threshold, execution_engine=engine)
        other.settle_engine([], report)
        assert other.vectorize(raster_pixels=block)["output_vectors"] == found


def test_an_engine_that_moves_boxes_gives_way(block: Any) -> None:
    made = function("FCOS", execution_engine="TORCH", precision="BFLOAT16")
    report = made.settle_engine([block])
    # In bfloat16 boxes are off by tenths of a pixel.
    assert (report["execution_engine"], report["precision"]) == ("TORCH", "FLOAT32")
    assert "TORCH in BFLOAT16 agrees with TORCH in FLOAT32 to 0.9" in report["fell_back"][0]


def test_without_objects_the_heads_answers_are_compared(block: Any) -> None:
    for engine, precision, kept in (("ONNXRUNTIME", "FLOAT32", True), ("TORCH", "BFLOAT16", False)):
        made = function("FCOS", 0.9999, execution_engine=engine, precision=precision)
        report = made.settle_engine([block])
        assert report["objects"] == 0
        assert (report["execution_engine"] == engine and report["precision"] == precision) is kept, report


def test_agreement_counts_what_one_side_lacks_and_what_scores_otherwise() -> None:
    judge = objects._Objects(SimpleNamespace())
    boxes = np.array([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    one = (boxes, np.array([1, 2, 1]), np.array([0.9, 0.8, 0.7]))

    def agreement(other: Any) -> float:
        return float(judge.judged(judge.compare(([one], []), ([other], []))).point)

    assert agreement(copy.deepcopy(one)) == 1
    order = [2, 0, 1]
    assert agreement(tuple(values[order] for values in one)) == 1
    assert agreement((boxes[:2], one[1][:2], one[2][:2])) == pytest.approx(2 / 3)
    assert agreement((boxes, np.array([1, 1, 1]), one[2])) == pytest.approx(2 / 3)
    assert agreement((boxes, one[1], one[2] - [0, 0, 0.02])) == pytest.approx(2 / 3)
    moved = boxes + np.array([[0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    assert agreement((moved, one[1], one[2])) == pytest.approx((2 + 19 / 21) / 3)


def test_a_smaller_batch_gives_the_same_objects(block: Any) -> None:
    wanted = function("RETINANET").vectorize(raster_pixels=block)["output_vectors"]
    made = function("RETINANET")
    made.limit_batch(1)
    sizes: list[int] = []
    plain = made.network.normalised

    def counted(chips: Any) -> Any:
        sizes.append(len(chips))
        return plain(chips)

    made.network.normalised = counted
    assert made.vectorize(raster_pixels=block)["output_vectors"] == wanted
    assert sizes == [1, 1, 1, 1]
