"""RTDETRV2 and DFINE: the library's own numbers, what is learnt from chips, and what travels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import BadInputError, PackageError
from tasks.package.network_source import load_network
from tasks.package.query_detector import QueryDetector, emit_query_detector
from tasks.tracking import Tracker
from tasks.train.beginning import fit_weights
from tasks.train.models.options import QueryOptions, check_sizes, options_of, read_options
from tasks.train.models.queries import (
    LearningQueryDetector,
    QueryNetwork,
    _library_detector,
    build_query_network,
    detector_arguments,
    queries_for,
)
from tasks.train.result import Trained
from tasks.train.train import fit
from tasks.training_data import TrainingData, read_chip_image
from tests.unit.package import test_detector_engines
from tests.unit.train.test_checkpoints import Folder, PowerFailure, assert_same
from tests.unit.train.test_zoo import parameters, trained, vectorized

MakeData = Callable[..., TrainingData]
KINDS = ("RTDETRV2", "DFINE")
SMALL = {"width": "32", "layers": "2", "levels": "2", "expansion": "0.25", "denoising": "8", "queries": "20"}
SIZE = 64


class LibraryEncoder(nn.Module):
    """The library's own backbone, in the form of the encoders here."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, *(one for one, _ in self.backbone(x, torch.ones_like(x[:, 0])))]


def noisy(network: nn.Module) -> None:
    """Weights of which none is zero or equal to another, as after training."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape))


def both(kind: str, **more: str) -> tuple[Any, LearningQueryDetector]:
    """The library's detector, and ours of the same layers."""
    options = read_options(QueryOptions, {**SMALL, "levels": "3", **more})
    whole = _library_detector(kind, options, classes=3, queries=20)
    noisy(whole)
    network = QueryNetwork(
        LibraryEncoder(whole.model.backbone),
        [0, 8, 8, 8],
        whole,
        downscale=1,
        finest=1,
        anchor_cells=0.05 * SIZE / options.stride,  # the library's first boxes are shares of the picture
        queries=20,
    )
    network.lateral = whole.model.encoder_input_proj
    return whole, LearningQueryDetector(network, **detector_arguments(options))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_losses_are_those_of_the_library(kind: str) -> None:
    whole, ours = both(kind)
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    whole.eval(), ours.eval()
    with torch.inference_mode():
        theirs, found = whole(images), ours.backbone(images)
    torch.testing.assert_close(found[..., :4], theirs.pred_boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[..., 4:], theirs.logits, atol=1e-5, rtol=1e-4)

    boxes = torch.tensor([[8.0, 8, 24, 40], [30, 30, 60, 62]])
    shares = torch.tensor([[0.25, 0.375, 0.25, 0.5], [45 / 64, 46 / 64, 30 / 64, 0.5]])
    none = torch.zeros(0, 4)
    labels = [torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([1])]
    truth = [shares, none, shares[:1]]
    whole.train(), ours.train()
    torch.manual_seed(7)
    given = [{"class_labels": a, "boxes": b} for a, b in zip(labels, truth, strict=True)]
    wanted = whole(images, labels=given).loss
    torch.manual_seed(7)
    targets = [{"boxes": b, "labels": a + 1} for a, b in zip(labels, (boxes, none, boxes[:1]), strict=True)]
    losses = ours(list(images), targets)
    total = torch.stack(list(losses.values())).sum()
    torch.testing.assert_close(total, wanted, atol=1e-3, rtol=1e-4)
    torch.autograd.backward(total)
    unused = [name for name, p in ours.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in unused if not name.startswith("backbone.encoder")]


@pytest.mark.parametrize("kind", KINDS)
def test_validation_measures_without_chance(kind: str) -> None:
    _, ours = both(kind)
    ours.eval()
    ours.training = True  # as torchvision's detectors are asked for losses
    images = [torch.randn(3, SIZE, SIZE)]
    targets = [{"boxes": torch.tensor([[8.0, 8, 24, 40]]), "labels": torch.tensor([2])}]
    with torch.no_grad():
        first, second = (sum(ours(images, targets).values()) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("kind", [pytest.param(KINDS[0], marks=pytest.mark.slow), KINDS[1]])
def test_the_network_travels_as_source_that_needs_torch_alone(kind: str) -> None:
    options = read_options(QueryOptions, {**SMALL, "queries": "300", "downscale": "2"})
    network = build_query_network(
        kind,
        "timm:lcnet_035",
        options,
        classes=2,
        most_objects=0,
        bands=["Red", "Green", "Blue", "NIR"],
        pretrained=False,
    )
    noisy(network)
    detector = LearningQueryDetector(network, **detector_arguments(options)).eval()
    source = emit_query_detector(network, detector_arguments(options))
    assert "transformers" not in source.replace("End-to-End Object Detection with Transformers", "")
    lines = [line.split() for line in source.splitlines()]
    imported = {words[1].split(".")[0] for words in lines if words[:1] in (["import"], ["from"])}
    assert imported == {"math", "operator", "torch", "torchvision"}  # the last one where it suppresses
    twin = load_network(source, detector.state_dict())
    for count, size in ((1, 64), (2, 96), (3, 224)):
        images = torch.randn(count, 4, size, size)
        with torch.inference_mode():
            torch.testing.assert_close(twin.backbone(images), network(images), atol=1e-6, rtol=0)  # type: ignore[operator]
            for one, other in zip(twin(list(images)), detector(list(images)), strict=True):
                assert all(torch.equal(one[key], other[key]) for key in ("boxes", "labels", "scores"))


def test_a_forward_that_depends_on_the_size_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[1] == 3:  # the same for every image
                x = self.layer(x)
            return x.mean(dim=3) if x.shape[3] > 200 else x.mean(dim=2)

    arguments = {"size_divisible": 32, "score_thresh": 0.05, "nms_thresh": 1.0}
    with pytest.raises(PackageError, match="cannot be written out"):
        emit_query_detector(Odd(), arguments)


def test_images_of_several_sizes_are_filled_and_their_objects_stay_inside() -> None:
    class Corners(nn.Module):
        """Three answers for any image: its whole, a quarter beyond its edge, and hardly anything."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answers = torch.tensor(
                [
                    [0.5, 0.5, 1.0, 1.0, 2.0, -9.0],
                    [1.0, 1.0, 0.5, 0.5, 3.0, 1.0],
                    [0.5, 0.5, 0.1, 0.1, -9.0, -9.0],
                ]
            )
            return answers.expand(len(x), -1, -1)

    detector = QueryDetector(Corners(), 32, 0.05, 1.0)
    batch = detector.filled([torch.ones(3, 40, 64), torch.ones(3, 32, 20)])
    assert batch.shape == (2, 3, 64, 64)
    assert batch[1].sum() == 3 * 32 * 20
    found = detector([torch.ones(3, 40, 64), torch.ones(3, 32, 20)])
    assert found[0]["labels"].tolist() == [1, 1, 2]
    assert found[0]["boxes"].tolist() == [[48, 40, 64, 40], [0, 0, 64, 40], [48, 40, 64, 40]]
    assert torch.equal(found[0]["scores"], torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    detector.nms_thresh = 0.1
    assert len(detector([torch.ones(3, 64, 64)])[0]["scores"]) == 3
    detector.nms_thresh = 0.05
    assert detector([torch.ones(3, 64, 64)])[0]["labels"].tolist() == [1, 2]


class Brightest(nn.Module):
    """One answer: the box around all that is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers = []
        for image in x:
            rows, cols = (image[0] > 0.5).nonzero(as_tuple=True)
            low = torch.stack([cols.min(), rows.min()]) / image.shape[-1]
            high = (torch.stack([cols.max(), rows.max()]) + 1) / image.shape[-1]
            answers.append(torch.cat([(low + high) / 2, high - low, torch.tensor([2.0, -9.0])])[None])
        return torch.stack(answers)


def function_around(detector: nn.Module, monkeypatch: pytest.MonkeyPatch, **scalars: str) -> Any:
    monkeypatch.setattr(test_detector_engines, "network", lambda _kind: detector)
    return test_detector_engines.function("", 0.3, **scalars)


def test_positions_of_a_tile_are_merged_though_nothing_is_suppressed(monkeypatch: pytest.MonkeyPatch) -> None:
    block = np.zeros((3, 80, 80), np.uint8)
    block[:, 20:50, 10:30] = 255
    scalars = {"padding": "0", "batch_size": "1", "tile_size": "64", "nms_overlap": "1"}
    detector = QueryDetector(Brightest(), 32, 0.05, 1.0)
    made = function_around(detector, monkeypatch, test_time_augmentation="True", **scalars)
    features = vectorized(made, block[:, :64, :64])
    corners = [feature["geometry"]["rings"][0][::2] for feature in features]
    np.testing.assert_allclose(corners, [[[10, 20], [30, 50]]], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["ONNXRUNTIME", "OPENVINO"])
def test_engines_find_torchs_objects(kind: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = read_options(QueryOptions, {**SMALL, "queries": "40"})
    shared: dict[str, Any] = {"classes": 2, "most_objects": 0, "bands": ["R", "G", "B"], "pretrained": False}
    torch.manual_seed(5)  # of other weights no object may reach the threshold
    network = build_query_network(kind, "timm:lcnet_035", options, **shared)
    noisy(network)
    with torch.no_grad():  # scores far apart, as after training
        for head in network.decoder.class_embed:
            head.weight.mul_(8)
    detector = LearningQueryDetector(network, **detector_arguments(options)).eval().requires_grad_(False)
    source = emit_query_detector(network, detector_arguments(options))
    twin = load_network(source, detector.state_dict()).requires_grad_(False)
    made = function_around(twin, monkeypatch, execution_engine=engine)
    block = np.random.default_rng(3).integers(0, 255, (3, 112, 112)).astype(np.uint8)
    report = made.settle_engine([block])
    assert (report["execution_engine"], report["fell_back"]) == (engine, []), report
    assert report["objects"] > 20
    assert len(vectorized(made, block)) > 20


def test_queries_follow_the_fullest_chip() -> None:
    assert [queries_for(count) for count in (0, 150, 151, 700)] == [300, 300, 400, 1400]
    given = parameters("RTDETRV2", {"width": "32"})
    options = options_of(given)
    assert isinstance(options, QueryOptions)
    assert (options.queries, options.nms_overlap, options.size_divisor) == (None, 1.0, 32)
    with pytest.raises(BadInputError, match="chip_size 64"):
        check_sizes(
            parameters("DFINE", {}, chip_size=96),
            read_options(QueryOptions, {"stride": "16", "downscale": "2"}),
            96,
            9,
        )
    for wrong in ({"width": "96"}, {"mixup": "True"}, {"depth": "4"}, {"stride": "16", "levels": "4"}):
        with pytest.raises(BadInputError, match=next(iter(wrong))):
            read_options(QueryOptions, wrong)


@pytest.fixture(scope="module", params=[KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def learnt(
    request: Any, make_module_data: MakeData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingData, Trained, Any]:
    """A short training on squares, and the function of its package."""
    data = make_module_data(request.param, size=SIZE, count=12)
    # So many until objects are surer than the tests' threshold.
    epochs = {"RTDETRV2": 4, "DFINE": 12}[request.param]
    values: dict[str, Any] = {"max_epochs": epochs, "learning_rate": 0.003}
    given = parameters(request.param, {**SMALL, "preset": "light"}, **values)
    return data, *trained(given, data, tmp_path_factory.mktemp(request.param))


def test_the_package_finds_what_the_network_finds(
    learnt: tuple[TrainingData, Trained, Any],
) -> None:
    data, result, function = learnt
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < 0.9 * losses[0]
    function.getConfiguration(padding="0", batch_size="1", threshold="0.06")
    for chip in data.chips[:4]:
        pixels = read_chip_image(chip)
        with torch.inference_mode():
            found = result.module.network([torch.from_numpy(result.normalisation.apply(pixels))])[0]
        inside = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
        real = (found["scores"] >= 0.06) & ((inside >= 0) & (inside < SIZE)).all(dim=1)
        features = vectorized(function, pixels)
        corners = [feature["geometry"]["rings"][0] for feature in features]
        assert len(features) == int(real.sum()) > 1
        np.testing.assert_allclose(
            [[*ring[0], *ring[2]] for ring in corners], found["boxes"][real].numpy(), atol=1e-3
        )
        scores = [feature["attributes"]["Confidence"] for feature in features]
        np.testing.assert_allclose(scores, 100 * found["scores"][real].numpy(), atol=1e-3)


def test_a_training_goes_on_from_a_package_of_other_classes(
    learnt: tuple[TrainingData, Trained, Any],
) -> None:
    _, result, _ = learnt
    network = result.module.network
    other = build_query_network(
        "RTDETRV2" if result.source.count("pre_bbox_head") == 0 else "DFINE",
        "timm:lcnet_035",
        read_options(QueryOptions, {**SMALL, "preset": "light"}),
        classes=3,
        most_objects=0,
        bands=["1", "2", "3"],
        pretrained=False,
    )
    heads = fit_weights(
        LearningQueryDetector(other, 32, 0.05, 1.0), network.state_dict(), before=2, now=3, name="p"
    )
    assert {name.split(".")[-2] for name in heads} <= {"score", "0", "1", "backbone"}
    assert "backbone.denoising" in heads
    assert not any("bbox" in name or "encoder" in name for name in heads)


@pytest.mark.slow
@pytest.mark.timeout(900)  # 180 steps from random weights
@pytest.mark.parametrize("kind", KINDS)
def test_squares_are_learnt(kind: str, make_data: MakeData, tmp_path: Path) -> None:
    values: dict[str, Any] = {"max_epochs": 60, "learning_rate": 0.005, "monitor": "AVERAGE_PRECISION"}
    given = parameters(kind, {**SMALL, "preset": "light"}, stop_training=False, **values)
    result, _ = trained(given, make_data(size=SIZE, count=24), tmp_path)
    # After three epochs it is 0.01.
    assert result.metrics["average_precision"] > 0.25


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_ends_with_the_same_weights(kind: str, make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(size=SIZE, count=10)
    values: dict[str, Any] = {"max_epochs": 4, "batch_size": 2, "checkpoint_minutes": 0}
    torch.set_num_threads(1)

    def train(kept: Folder | None) -> Trained:
        given = parameters(kind, {**SMALL, "preset": "light"}, **values)
        quiet: dict[str, Any] = {"tracker": Tracker.disabled(), "progress": lambda *_: None}
        return fit(given, [data], tmp_path, checkpoints=kept, **quiet)

    undisturbed = train(None)
    with pytest.raises(PowerFailure):
        train(Folder(tmp_path, killed_after=5))
    assert_same(train(Folder(tmp_path)), undisturbed)
