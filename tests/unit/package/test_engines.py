"""Execution engines agree with torch in float32, or give way to it and say so."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

import tasks.package.functions as home

sys.path.append(str(Path(home.__file__).parent))
engines: Any = importlib.import_module("chipline_engines")

SHAPE = (2, 3, 32, 32)


class Tiny(torch.nn.Module):
    """Down, up and a skip connection: the operations of a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.down = torch.nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head = torch.nn.Conv2d(8, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fine = torch.relu(self.norm(self.first(images)))
        up = torch.nn.functional.interpolate(self.down(fine), scale_factor=2.0, mode="nearest")
        result: torch.Tensor = self.head(torch.cat([fine, up], dim=1))
        return result


@pytest.fixture(scope="module")
def network() -> Tiny:
    return Tiny().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("engine", ["TORCH", "ONNXRUNTIME", "OPENVINO"])
def test_engines_give_torchs_scores(network: Tiny, images: torch.Tensor, engine: str) -> None:
    execution = engines.Execution(network, SHAPE, engine)
    with torch.inference_mode():
        report = execution.settle([images])
        assert (report["execution_engine"], report["fell_back"]) == (engine, [])
        torch.testing.assert_close(execution.logits(images), network(images), rtol=1e-4, atol=1e-5)
        # Another batch and another size, as at an edge.
        torch.testing.assert_close(
            execution.logits(images[:1, :, :16]), network(images[:1, :, :16]), rtol=1e-4, atol=1e-5
        )


def test_bfloat16_is_refused_where_classes_change_and_taken_where_they_do_not(images: torch.Tensor) -> None:
    # Two nearly equal features everywhere: the second is higher by less than bfloat16 can tell.
    close: Any = torch.nn.Conv2d(3, 2, 1)
    last: Any = torch.nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        close.weight.zero_()
        close.bias.copy_(torch.tensor([1.0, 1.001]))
        last.weight.copy_(torch.eye(2)[:, :, None, None])
    network = torch.nn.Sequential(close, last).eval()
    execution = engines.Execution(network, SHAPE, "TORCH", "BFLOAT16")
    with torch.inference_mode():
        report = execution.settle([images])
        assert (report["execution_engine"], report["precision"]) == ("TORCH", "FLOAT32")
        assert "agrees with TORCH in FLOAT32 to 0.00000 only" in report["fell_back"][0]
        assert report["asked"] == ["TORCH", "BFLOAT16"]
        assert (execution.logits(images).argmax(1) == 1).all()
        with torch.no_grad():
            close.bias.copy_(torch.tensor([1.0, 2.0]))
        report = engines.Execution(network, SHAPE, "TORCH", "BFLOAT16").settle([images])
    assert (report["precision"], report["agreement"], report["fell_back"]) == ("BFLOAT16", 1.0, [])


def test_an_engine_that_is_not_there_is_named(
    network: Tiny, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    execution = engines.Execution(network, SHAPE, "OPENVINO", "BFLOAT16")
    with torch.inference_mode():
        torch.testing.assert_close(execution.logits(images), network(images))  # settled by its first images
    assert execution.report["execution_engine"] == "TORCH"
    assert [text.split(":")[0] for text in execution.report["fell_back"]] == [
        "OPENVINO in BFLOAT16 does not run this network here",
        "OPENVINO in FLOAT32 does not run this network here",
    ]
    with pytest.raises(engines.EngineError, match="openvino"):
        # What another part decided is followed or refused, never replaced.
        execution.settle([], {"execution_engine": "OPENVINO", "precision": "FLOAT32"})


def test_nothing_to_compare_on_is_no_agreement(network: Tiny) -> None:
    report = engines.Execution(network, SHAPE, "TORCH", "BFLOAT16").settle([])
    assert (report["precision"], report["agreement"]) == ("FLOAT32", None)
    assert "no imagery" in report["fell_back"][0]


def test_words_that_name_no_engine_are_refused(network: Tiny) -> None:
    with pytest.raises(ValueError, match="use one of TORCH, COMPILED, ONNXRUNTIME, OPENVINO"):
        engines.Execution(network, SHAPE, "TENSORRT")


def test_agreement_is_the_mean_iou_and_rare_classes_count_by_pixels() -> None:
    generator = np.random.default_rng(0)
    wanted = generator.integers(0, 3, (4, 50, 60)).astype(np.uint16)
    found = wanted.copy()
    found[0, :10] = generator.integers(0, 3, (10, 60))
    oracle = jaccard_score(wanted.ravel(), found.ravel(), average="macro")
    assert engines.agreement([wanted[:2], wanted[2:]], [found[:2], found[2:]]) == pytest.approx(oracle)
    # A class of three pixels, all wrong: its IoU of 0 says little, the three pixels count.
    rare = np.zeros((1, 100, 100), np.uint16)
    other = rare.copy()
    other[0, 0, :3] = 1
    assert engines.agreement([rare], [other]) == pytest.approx(0.9997)


class TwoHeads(torch.nn.Module):
    """The last layers are two, one of them shared between two scales; what follows them has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.scores = torch.nn.Conv2d(4, 2, 1)
        self.boxes = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        fine = torch.relu(self.norm(self.body(images)))
        coarse = torch.nn.functional.max_pool2d(fine, 2)
        up = torch.nn.functional.interpolate(self.scores(coarse), scale_factor=2.0)
        return self.scores(fine) + up, torch.relu(self.boxes(fine))


def test_the_last_layers_are_found_in_the_graph(network: Tiny) -> None:
    assert engines.last_layers(network, SHAPE) == ["head"]
    assert engines.last_layers(TwoHeads().eval().requires_grad_(False), SHAPE) == ["scores", "boxes.2"]
    assert not any(weight.requires_grad for weight in network.parameters())


def test_scores_far_from_zero_keep_their_order_in_bfloat16(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    body: Any = torch.nn.Conv2d(3, 8, 3, padding=1)
    head: Any = torch.nn.Conv2d(8, 3, 1)
    with torch.no_grad():
        head.bias.fill_(100.0)  # bfloat16 tells scores apart by halves here
    network: Any = torch.nn.Sequential(body, torch.nn.ReLU(), head).eval().requires_grad_(False)
    with torch.inference_mode():
        wanted = engines.best(network(images))
        rounded = engines.best(network(images).to(torch.bfloat16))
        execution = engines.Execution(network, SHAPE, "TORCH", "BFLOAT16")
        execution.settle([], {"execution_engine": "TORCH", "precision": "BFLOAT16"})
        found = engines.best(execution.logits(images))
    assert (rounded == wanted).float().mean() < 0.9
    assert (found == wanted).float().mean() > 0.98
    assert execution.logits(images).dtype == torch.float32


def test_a_compiler_that_is_not_there_is_named(
    network: Tiny, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_module: Any, **_how: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    report = engines.Execution(network, SHAPE, "COMPILED").settle([images])
    assert report["execution_engine"] == "TORCH"
    assert report["fell_back"] == [
        "COMPILED in FLOAT32 does not run this network here: RuntimeError: no C++ compiler"
    ]


@pytest.mark.slow  # a C++ compiler works for half a minute
def test_compiled_torch_gives_torchs_scores(network: Tiny, images: torch.Tensor) -> None:
    execution = engines.Execution(network, SHAPE, "COMPILED")
    with torch.inference_mode():
        report = execution.settle([images])
        assert (report["execution_engine"], report["fell_back"]) == ("COMPILED", [])
        torch.testing.assert_close(execution.logits(images), network(images), rtol=1e-4, atol=1e-5)


def test_memory_that_runs_out_in_torch_itself_is_no_reason_to_compare_on(images: torch.Tensor) -> None:
    class Full(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        engines.Execution(Full().eval(), SHAPE, "TORCH", "BFLOAT16").settle([images])
