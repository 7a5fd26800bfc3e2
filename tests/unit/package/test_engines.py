"""Execution engines agree with torch in float32, or give way to it and say so."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

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
    assert (
        engines.Execution(network, SHAPE, "TORCH", "FLOAT32").settle([])["fell_back"] == []
    )  # nothing to compare


def test_words_that_name_no_engine_are_refused(network: Tiny) -> None:
    with pytest.raises(ValueError, match="use one of TORCH, COMPILED, ONNXRUNTIME, OPENVINO"):
        engines.Execution(network, SHAPE, "TENSORRT")


def near_ties() -> Any:
    """Two scores that differ by a thousandth of themselves, over texture."""
    torch.manual_seed(5)
    body: Any = torch.nn.Conv2d(3, 8, 3, padding=1)
    head: Any = torch.nn.Conv2d(8, 2, 1)
    with torch.no_grad():
        head.weight[1] = head.weight[0] * 1.001
        head.bias.zero_()
    return torch.nn.Sequential(body, torch.nn.ReLU(), head).eval().requires_grad_(False)


def test_near_ties_are_refused_and_a_sure_network_passes_with_a_bound() -> None:
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(2, 3, 48, 48, generator=generator) for _ in range(16)]
    unsure = engines.Execution(near_ties(), (2, 3, 48, 48), "TORCH", "BFLOAT16").settle(batches)
    assert (unsure["precision"], unsure["agreement"]) == ("FLOAT32", None)
    (refused,) = unsure["refused"]
    assert refused["at_least"] <= refused["agreement"] < engines.chipline_agreement.LEAST_AGREEMENT
    assert refused["tiles"] == 16, "a clear verdict looks no further"
    steep: Any = torch.nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        # The second class where the first band is above 0, by far.
        steep.weight.zero_()
        steep.weight[1, 0] = 50
        steep.bias.zero_()
    bands = [(batch > 0).float() * 2 - 1 for batch in batches]
    sure = engines.Execution(steep.eval(), (2, 3, 48, 48), "TORCH", "BFLOAT16").settle(bands)
    assert (sure["precision"], sure["agreement"], sure["at_least"]) == ("BFLOAT16", 1.0, 1.0)
    assert (sure["tiles"], sure["by_class"], sure["refused"]) == (16, {"0": 1.0, "1": 1.0}, [])


def test_a_verdict_that_is_not_clear_takes_more_tiles(images: torch.Tensor) -> None:
    seen: list[int] = []

    class Judge(engines.chipline_agreement.Classes):  # type: ignore[misc]
        def judged(self, entries: list[Any]) -> Any:
            seen.append(len(entries))
            low, high = (0.9985, 0.9999) if len(entries) < 60 else (0.9992, 0.9998)
            return engines.chipline_agreement.Judged(0.9995, low, high, len(entries), 1)

    module = torch.nn.Conv2d(3, 2, 1).eval()
    report = engines.Execution(module, SHAPE, "TORCH", "BFLOAT16", Judge()).settle([images] * 40)
    assert seen == [16, 32, 64]
    assert (report["precision"], report["tiles"], report["at_least"]) == ("BFLOAT16", 64, 0.9992)
    few = engines.Execution(module, SHAPE, "TORCH", "BFLOAT16", Judge()).settle([images] * 20)
    assert few["precision"] == "FLOAT32"
    assert "0.99950 on 40 tiles, which makes sure of 0.99850 only" in few["fell_back"][0]


@pytest.mark.parametrize(
    "engine", ["ONNXRUNTIME", "OPENVINO", pytest.param("COMPILED", marks=pytest.mark.slow)]
)
def test_what_is_kept_makes_the_same_engine_again(
    network: Tiny, images: torch.Tensor, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engines.Execution(network, SHAPE, engine)
    with torch.inference_mode():
        report = first.settle([images])
        assert (report["execution_engine"], report["kept"]) == (engine, False)
        wanted, kept = first.logits(images), first.kept()
        assert len(kept) > 1000
        assert first.kept() == kept or engine == "COMPILED"

        def refuse(*_given: Any) -> Any:
            raise AssertionError("traced again")

        monkeypatch.setattr(engines, "_traced", refuse)
        again = engines.Execution(network, SHAPE, engine)
        assert again.settle([], report, kept)["kept"] is True
        assert torch.equal(again.logits(images), wanted)
        assert torch.equal(again.logits(images[:1, :, :16]), first.logits(images[:1, :, :16]))
        monkeypatch.undo()
        # What is of no use is passed over: another engine's, cut off, no such thing at all.
        for useless in (b"", b"none", kept[:-1], kept.replace(b"FLOAT32", b"BFLOAT1", 1)):
            other = engines.Execution(network, SHAPE, engine)
            made = other.settle([], report, useless)
            assert (made["kept"], made["kept_useless"]) == (False, None)
            torch.testing.assert_close(other.logits(images), wanted)
        # What looks like it and cannot be read is passed over, too, and the report says what failed.
        head, _, rest = kept.partition(b"\n")
        other = engines.Execution(network, SHAPE, engine)
        made = other.settle([], report, head + b"\n" + b"?" * len(rest))
        assert made["kept"] is False
        assert "Error" in made["kept_useless"] or "Protobuf" in made["kept_useless"]
        torch.testing.assert_close(other.logits(images), wanted)


def test_the_identity_of_what_is_kept_names_all_that_decides_it(network: Tiny) -> None:
    def identity(*how: Any) -> Any:
        return engines.Execution(network, *how).identity()

    one = identity(SHAPE, "OPENVINO", "BFLOAT16")
    assert one == identity(SHAPE, "OPENVINO", "BFLOAT16")
    assert one["versions"]["torch"]
    assert one["processor"]
    assert one != identity((1, *SHAPE[1:]), "OPENVINO", "BFLOAT16")
    assert one != identity(SHAPE, "OPENVINO", "FLOAT32")
    assert one != identity(SHAPE, "ONNXRUNTIME", "BFLOAT16")
    assert engines.Execution(network, SHAPE).kept() == b""


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
        wanted = network(images).max(dim=1).indices
        rounded = network(images).to(torch.bfloat16).max(dim=1).indices
        execution = engines.Execution(network, SHAPE, "TORCH", "BFLOAT16")
        execution.settle([], {"execution_engine": "TORCH", "precision": "BFLOAT16"})
        found = execution.logits(images).max(dim=1).indices
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
