"""Every model type learns a step, and its package computes what the trained network does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.errors import BadInputError
from tasks.tracking import Tracker
from tasks.train.models.pixels import ARCHITECTURES
from tasks.train.packaging import build
from tasks.train.parameters import PIXEL_MODELS, TrainParameters
from tasks.train.result import Trained
from tasks.train.train import fit
from tasks.training_data import TrainingData, read_chip_image
from tests.unit.train.packaged import packaged_function

MakeData = Callable[..., TrainingData]
TINY = "timm:lcnet_035"
# One with dilation, one whose decoder asks for shapes, one with two stages.
QUICK = {"DEEPLAB", "SEGFORMER", "FASTERRCNN"}


def parameters(model_type: str, arguments: dict[str, str], **values: Any) -> TrainParameters:
    given = {
        "in_folder": ["x"],
        "output_name": "m",
        "model_type": model_type,
        "backbone_model": TINY,
        "max_epochs": 1,
        "batch_size": 4,
        "validation_percent": 30,
        "processor_type": "CPU",
        "model_arguments": [
            {"name": name, "value": value} for name, value in {"pretrained": "False", **arguments}.items()
        ],
        **values,
    }
    return TrainParameters.model_validate(given)


def trained(given: TrainParameters, data: TrainingData, folder: Path) -> tuple[Trained, Any]:
    """The trained model and the inference function of its package."""
    torch.set_num_threads(1)
    result = fit(given, [data], folder, tracker=Tracker.disabled(), progress=lambda _fraction, _what: None)
    package = build(given, data, result, page="", pictures={}, into=folder)
    return result, packaged_function(package, folder / "unpacked")


def few(names: set[str]) -> list[Any]:
    """All names as cases; those outside of QUICK are slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)]


def test_every_model_of_pixels_has_an_architecture() -> None:
    assert set(ARCHITECTURES) == PIXEL_MODELS


@pytest.mark.parametrize("model_type", few(set(PIXEL_MODELS)))
def test_a_model_of_pixels_travels(model_type: str, make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(metadata_format="Classified_Tiles", size=64, count=10)
    result, function = trained(parameters(model_type, {"width": "32"}), data, tmp_path)
    pixels = np.stack([read_chip_image(chip) for chip in data.chips[:2]])
    scores = function.predict_scores(pixels)
    with torch.inference_mode():
        images = torch.from_numpy(np.stack([result.normalisation.apply(chip) for chip in pixels]))
        expected = torch.softmax(result.module.network(images), dim=1).numpy()
    assert scores.shape == (2, 3, 64, 64)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(scores) > 0.01


def vectorized(function: Any, pixels: np.ndarray) -> list[dict[str, Any]]:
    """The features that the function finds in one tile without padding."""
    answer = function.vectorize(raster_pixels=pixels, raster_mask=np.ones(pixels.shape, np.uint8))
    features: list[dict[str, Any]] = json.loads(answer["output_vectors"])["features"]
    return features


@pytest.mark.parametrize("model_type", few({"FCOS", "RETINANET", "SSD", "FASTERRCNN"}))
def test_a_detector_travels(model_type: str, make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(size=64, count=12)
    arguments = {"width": "32", "levels": "2", "head_convolutions": "1"}
    result, function = trained(parameters(model_type, arguments), data, tmp_path)
    function.getConfiguration(padding="0", batch_size="1", threshold="0.0", nms_overlap="1.0")
    detector: Any = result.module.network
    for part in (detector, getattr(detector, "roi_heads", None)):
        if part is not None and hasattr(part, "score_thresh"):
            part.score_thresh, part.nms_thresh = 0.0, 1.0
    pixels = read_chip_image(data.chips[0])
    features = vectorized(function, pixels)
    with torch.inference_mode():
        image = torch.from_numpy(result.normalisation.apply(pixels))
        expected = detector([image])[0]
    inside = (expected["boxes"][:, :2] + expected["boxes"][:, 2:]) / 2
    real = (expected["labels"] > 0) & ((inside >= 0) & (inside < 64)).all(dim=1)
    real &= (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(dim=1)
    assert len(features) == int(real.sum()) > 20
    corners = [feature["geometry"]["rings"][0] for feature in features]
    found = np.array([[*ring[0], *ring[2]] for ring in corners])
    scores = np.array([feature["attributes"]["Confidence"] for feature in features])
    order = np.lexsort((*found.T, -scores))
    theirs = torch.cat([expected["boxes"], 100 * expected["scores"][:, None]], dim=1)[real].numpy()
    theirs = theirs[np.lexsort((*theirs[:, :4].T, -theirs[:, 4]))]
    np.testing.assert_allclose(scores[order], theirs[:, 4], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["timm:convnext_atto", "RESNET18", "EFFICIENTNET_LITE0"])
@pytest.mark.parametrize("model_type", ["UNET", "UPERNET", "DEEPLAB"])
def test_model_and_backbone_go_together(
    model_type: str, backbone: str, make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data(metadata_format="Classified_Tiles", size=64, count=10)
    trained(parameters(model_type, {"width": "32"}, backbone_model=backbone), data, tmp_path)


def test_a_batch_of_one_is_refused_where_it_teaches_nothing(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(metadata_format="Classified_Tiles", size=64, count=6)
    with pytest.raises(BadInputError, match="Raise batch_size"):
        trained(parameters("DEEPLAB", {}, batch_size=1), data, tmp_path)
