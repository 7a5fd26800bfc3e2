"""A package that we build runs where nothing of ours is, and gives what the original network gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from tasks.host import HostProcess
from tasks.labels import ClassSchema
from tasks.package import open_package
from tasks.package.build import build_package
from tasks.package.network_source import build_detector, emit_detector, emit_network

HOST = Path(__file__).parent / "minimal_host.py"
TILE, PADDING = 64, 16
INNER = TILE - 2 * PADDING
Block = tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Normalisation:
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    imagenet: bool = False

    def apply(self, pixels: npt.NDArray[Any]) -> Tensor:
        low, high, mean, std = (
            np.asarray(values, np.float64)[:, None, None]
            for values in (self.minimum, self.maximum, self.mean, self.std)
        )
        return torch.from_numpy((((pixels - low) / (high - low) - mean) / std).astype(np.float32))


STATISTICS = Normalisation(
    (0, 10, 0, 5), (4000, 3000, 5000, 2000), (0.3, 0.2, 0.4, 0.5), (0.2, 0.1, 0.3, 0.2)
)
IMAGENET = Normalisation(
    (0.0,) * 3, (255.0,) * 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), imagenet=True
)
SCHEMA = ClassSchema.from_values({2: "Water", 5: "Tree"})


def build(kind: Any, source: str, network: nn.Module, normalisation: Normalisation, into: Path) -> Path:
    bands = len(normalisation.mean)
    return build_package(
        kind=kind,
        name="demo",
        network_source=source,
        state_dict=network.state_dict(),
        classes=SCHEMA,
        normalisation=normalisation,
        tile_size=TILE,
        cell_size=0.5,
        wkid=32612,
        band_names=["Red", "Green", "Blue", "NIR"][:bands],
        metrics={"accuracy": 0.75, "per_class": {"Tree": {"precision": 0.5, "ap": 0.4}}},
        metrics_html="<p>metrics</p>",
        characteristics={"loss_graph.png": b"png"},
        extra_definition={"LearningRate": "1e-3"},
        into=into,
        padding=PADDING,
        batch_size=4,
        threshold=0.05,
    )


def run(package: Path, blocks: list[Block], folder: Path, *arguments: str) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for number, (pixels, mask) in enumerate(blocks):
        arrays[f"pixels_{number}"] = pixels
        arrays[f"mask_{number}"] = np.broadcast_to(mask, pixels.shape)
    np.savez(folder / "blocks.npz", **arrays)
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HOST), str(package), str(folder / "blocks.npz"), str(folder / "out.json")]
    subprocess.run([*command, *arguments], check=True, cwd=folder, env=environment)
    return cast(dict[str, Any], json.loads((folder / "out.json").read_text()))


def through_our_host(package: Path, blocks: list[Block], folder: Path, **arguments: str) -> list[Any]:
    """What our own host gives for the blocks: arrays, or detections."""
    opened = open_package(package, folder / "ours")
    with HostProcess(opened, arguments=arguments, foreign=False) as host:
        operation: Any = "vectorize" if host.fields else "updatePixels"
        padding = int(host.configuration["padding"])
        answers = []
        for pixels, mask in blocks:
            shape = (pixels.shape[1] - 2 * padding, pixels.shape[2] - 2 * padding)
            answers.append(host.result(host.submit(operation, pixels, mask, shape=shape)))
        return answers


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(5)
    torch.set_num_threads(1)
    network = smp.Unet(
        "mobilenet_v2",
        encoder_weights=None,
        in_channels=4,
        decoder_channels=(32, 16, 16, 8, 8),
        classes=3,
    )
    for child in network.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.momentum = None  # averages: two passes make running statistics that fit the data
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for _ in range(2):
            pixels = rng.integers(0, 4000, (4, 4, TILE, TILE))
            network.train()(torch.stack([STATISTICS.apply(item) for item in pixels]))
        scores = network.eval()(torch.stack([STATISTICS.apply(item) for item in pixels]))
        head = cast(nn.Conv2d, network.segmentation_head[0])
        cast(Tensor, head.bias).sub_(scores.mean((0, 2, 3)))
    for child in network.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.momentum = 0.1
    return cast(nn.Module, network)


@pytest.fixture(scope="module")
def unet_package(unet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("pixels", emit_network(unet), unet, STATISTICS, tmp_path_factory.mktemp("unet"))


def expected_classes(unet: nn.Module, pixels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The oracle: each chip through the original network, cropped and put side by side."""
    values = np.array([0, 2, 5])
    rows, cols = (length - 2 * PADDING for length in pixels.shape[1:])
    result = np.zeros((rows, cols), np.int64)
    for row in range(0, rows, INNER):
        for col in range(0, cols, INNER):
            chip = STATISTICS.apply(pixels[:, row : row + TILE, col : col + TILE])
            with torch.inference_mode():
                best = unet(chip[None])[0].argmax(0).numpy()[PADDING:-PADDING, PADDING:-PADDING]
            result[row : row + INNER, col : col + INNER] = values[best]
    return result


def test_pixels_are_those_of_the_original_network(
    unet: nn.Module, unet_package: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    side = 2 * INNER + 2 * PADDING
    blocks: list[Block] = []
    for dtype in (np.uint16, np.float64):
        pixels = rng.integers(0, 4000, (4, side, side)).astype(dtype)
        blocks.append((pixels, np.full((side, side), 255, np.uint8)))
    masked = np.full((side, side), 1, np.uint8)
    masked[:40, 30:70] = 0
    blocks.append((blocks[0][0], masked))
    blocks.append((blocks[0][0], np.zeros((side, side), np.uint8)))
    answer = run(unet_package, blocks, tmp_path)
    configuration = answer["configuration"]
    assert (configuration["tx"], configuration["ty"], configuration["padding"]) == (64, 64, 16)
    assert configuration["extractBands"] == [0, 1, 2, 3]
    assert (configuration["inheritProperties"], configuration["fixedTileSize"]) == (14, 1)
    assert configuration["inputMask"] is True
    assert configuration["score_values"] == [0, 2, 5]
    assert answer["env"] == "CPU"
    assert answer["output_info"]["pixelType"] == "u1"
    table = json.loads(answer["output_info"]["rasterAttributeTable"])
    assert [row["attributes"]["Value"] for row in table["features"]] == [2, 5]
    assert all(isinstance(value, str) for value in answer["scalars"].values())

    for ours, result in zip(through_our_host(unet_package, blocks, tmp_path), answer["results"], strict=True):
        np.testing.assert_array_equal(ours, result["output_pixels"])

    for (pixels, _), result in zip(blocks[:2], answer["results"], strict=False):
        wanted = expected_classes(unet, pixels)
        assert len(np.unique(wanted)) == 3, "the network must have something to say"
        assert np.mean(np.array(result["output_pixels"])[0] == wanted) > 0.999
        assert np.array(result["output_mask"]).all()

    hidden = blocks[0][0].copy()
    hidden[:, masked == 0] = 0
    inside = masked[PADDING:-PADDING, PADDING:-PADDING] != 0
    found = np.array(answer["results"][2]["output_pixels"])[0]
    assert np.mean(found[inside] == expected_classes(unet, hidden)[inside]) > 0.999
    assert not found[~inside].any()
    assert np.array_equal(np.array(answer["results"][2]["output_mask"])[0], inside)
    assert not np.array(answer["results"][3]["output_pixels"]).any()
    assert not np.array(answer["results"][3]["output_mask"]).any()


def test_arguments_change_what_is_computed(unet: nn.Module, unet_package: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 4000, (4, TILE, TILE), np.uint16)
    block: Block = (pixels, np.full((TILE, TILE), 1, np.uint8))
    arguments = ("predict_background=False", "batch_size=1", "test_time_augmentation=True", "padding=8")
    answer = run(unet_package, [block], tmp_path, *arguments)
    assert (answer["configuration"]["tx"], answer["configuration"]["batch_size"]) == (48, 1)
    # The oracle turns and mirrors with numpy.
    total = np.zeros((3, TILE, TILE))
    chip = STATISTICS.apply(pixels).numpy()
    for quarters in range(4):
        for mirrored in (False, True):
            shown = np.rot90(chip, quarters, (1, 2))
            shown = shown[:, :, ::-1] if mirrored else shown
            with torch.inference_mode():
                scores = unet(torch.from_numpy(shown.copy())[None])[0].softmax(0).numpy()
            scores = scores[:, :, ::-1] if mirrored else scores
            total += np.rot90(scores, -quarters, (1, 2))
    wanted = np.array([2, 5])[total[1:].argmax(0)][8:-8, 8:-8]
    found = np.array(answer["results"][0]["output_pixels"])[0]
    assert np.mean(found == wanted) > 0.999


class Backbone(nn.Module):
    """One feature map at stride 4."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return OrderedDict([("0", self.layers(x))])


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    torch.manual_seed(6)
    arguments = {"num_classes": 3, "anchor_sizes": ((8,),), "head_convolutions": 1, "nms_thresh": 0.5}
    model = build_detector(Backbone(), "FCOS", arguments)
    for name, parameter in model.named_parameters():
        if "cls_logits.weight" in name:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def detector_package(detector: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    arguments = {"num_classes": 3, "anchor_sizes": ((8,),), "head_convolutions": 1, "nms_thresh": 0.5}
    source = emit_detector(cast(nn.Module, detector.backbone), "FCOS", arguments)
    return build("objects", source, detector, IMAGENET, tmp_path_factory.mktemp("fcos"))


def test_boxes_are_those_of_the_original_network(
    detector: nn.Module, detector_package: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 255, (3, TILE, TILE), np.uint8)
    everywhere: Block = (pixels, np.full((TILE, TILE), 255, np.uint8))
    nowhere: Block = (pixels, np.zeros((TILE, TILE), np.uint8))
    arguments = ("batch_size=1", "exclude_pad_detections=False", "threshold=0.05")
    answer = run(detector_package, [everywhere, nowhere], tmp_path, *arguments)
    ours = through_our_host(
        detector_package,
        [everywhere, nowhere],
        tmp_path,
        batch_size="1",
        exclude_pad_detections="False",
        threshold="0.05",
    )
    for mine, text in zip(ours, answer["results"], strict=True):
        theirs = json.loads(text)["features"]
        assert [item.attributes for item in mine] == [item["attributes"] for item in theirs]
        rings = [[[list(point) for point in ring] for ring in item.rings] for item in mine]
        assert rings == [item["geometry"]["rings"] for item in theirs]
    assert answer["geometry"] == 4
    assert [field["name"] for field in json.loads(answer["fields"])["fields"]] == [
        "FID",
        "Class",
        "Confidence",
        "Shape",
    ]
    model = cast(Any, detector)
    model.score_thresh = 0.05
    with torch.inference_mode():
        wanted = model([IMAGENET.apply(pixels)])[0]
    sides = wanted["boxes"][:, 2:] - wanted["boxes"][:, :2]
    kept = ((wanted["labels"] > 0) & (sides > 0).all(1)).numpy()
    boxes, labels = wanted["boxes"].numpy()[kept], wanted["labels"].numpy()[kept]
    scores = wanted["scores"].numpy()[kept]
    assert len(boxes) > 5
    features = json.loads(answer["results"][0])["features"]
    assert len(features) == len(boxes)
    for feature, box, label, score in zip(features, boxes, labels, scores, strict=True):
        left, top, right, bottom = box - PADDING
        ring = [[left, top], [right, top], [right, bottom], [left, bottom]]
        np.testing.assert_allclose(feature["geometry"]["rings"][0], ring, atol=1e-2)
        assert feature["attributes"]["Class"] == SCHEMA.names[label - 1]
        assert feature["attributes"]["Confidence"] == pytest.approx(score * 100, abs=1e-2)
    assert json.loads(answer["results"][1])["features"] == []


def test_no_object_is_reported_twice_by_the_tiles_of_a_block(detector_package: Path, tmp_path: Path) -> None:
    from torchvision.ops import box_iou

    rng = np.random.default_rng(4)
    side = 3 * INNER + 2 * PADDING
    coarse = rng.integers(0, 255, (3, side // 8, side // 8), np.uint8)
    pixels = coarse.repeat(8, 1).repeat(8, 2)
    block: Block = (pixels, np.full((side, side), 255, np.uint8))
    answer = run(detector_package, [block], tmp_path, "batch_size=9", "threshold=0.05")
    features = json.loads(answer["results"][0])["features"]
    rings = np.array([feature["geometry"]["rings"][0] for feature in features])
    boxes = np.concatenate([rings.min(1), rings.max(1)], 1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert len(boxes) > 20
    assert ((centres >= 0) & (centres < 3 * INNER)).all()
    # Each is in one tile's inner part; across tiles nothing of a class overlaps by more than half.
    tiles = centres // INNER
    overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    names = np.array([feature["attributes"]["Class"] for feature in features])
    apart = (tiles[:, None] != tiles[None]).any(2) & (names[:, None] == names[None])
    assert overlap[apart].max() <= 0.5


def test_the_same_training_gives_the_same_package(
    unet: nn.Module, unet_package: Path, tmp_path: Path
) -> None:
    again = build("pixels", emit_network(unet), unet, STATISTICS, tmp_path)
    assert again.read_bytes() == unet_package.read_bytes()


def test_the_definition_says_what_readers_look_for(unet_package: Path, tmp_path: Path) -> None:
    package = open_package(unet_package, tmp_path)
    written = json.loads(package.emd_path.read_text())
    assert written["ModelFile"] == "demo.pth"
    assert (package.name, package.emd_path.name, package.folder.name) == ("demo", "demo.emd", "demo")
    assert written["Classes"][1]["Value"] == 5
    assert written["MinCellSize"] == {
        "x": 0.5,
        "y": 0.5,
        "spatialReference": {"wkid": 32612, "latestWkid": 32612},
    }
    assert written["accuracy"] == "7.5000e-01"
    assert json.loads(written["per_class_metrics"]) == {"Tree": {"precision": 0.5}}
    assert written["NormalizationStats"]["band_mean_values"] == pytest.approx([1200, 608, 2000, 1002.5])
    assert written["LearningRate"] == "1e-3"
    assert (package.folder / "ModelCharacteristics" / "loss_graph.png").read_bytes() == b"png"
    card = (package.folder / "MODEL_CARD.md").read_text()
    assert "gives every pixel a class" in card
    assert "| Tree | 0.500 | 0.400 |" in card
    state = torch.load(cast(Path, package.weights_path), weights_only=True)
    assert type(state) is dict
    assert all(type(item) is Tensor for item in state.values())
