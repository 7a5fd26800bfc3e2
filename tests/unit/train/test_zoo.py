"""Every model type learns a step, and its package computes what the trained network does."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis.extra.numpy import arrays

import tasks.package.functions as home
from tasks.errors import BadInputError
from tasks.host import HostProcess
from tasks.labels import ClassSchema
from tasks.package.dlpk import open_package
from tasks.tracking import Tracker
from tasks.train.datasets import LabelChips
from tasks.train.models.arguments import WITHOUT
from tasks.train.models.pixels import ARCHITECTURES
from tasks.train.modules import LabelModule
from tasks.train.packaging import build
from tasks.train.parameters import PIXEL_MODELS, TrainParameters
from tasks.train.report import draw_pictures
from tasks.train.result import Trained
from tasks.train.train import fit
from tasks.training_data import TrainingData, open_training_data, read_chip_image
from tasks.training_data.sample import Sample
from tests.unit.train.packaged import packaged_function
from tests.unit.training_data.exports import export
from tests.unit.training_data.samples import labels

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
        "learning_rate": 0.004,
        "batch_size": 4,
        "validation_percent": 30,
        "processor_type": "CPU",
        "model_arguments": [
            {"name": name, "value": value} for name, value in {"pretrained": "False", **arguments}.items()
        ],
        **values,
    }
    return TrainParameters.model_validate(given)


def heeded(model_type: str, **arguments: str) -> dict[str, str]:
    """Of model arguments those that the model type has a use for."""
    return {name: value for name, value in arguments.items() if name not in WITHOUT.get(model_type, ())}


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
    result, function = trained(parameters(model_type, heeded(model_type, width="32")), data, tmp_path)
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
    arguments = heeded(model_type, width="32", levels="2", head_convolutions="1")
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
    arguments = heeded(model_type, width="32")
    trained(parameters(model_type, arguments, backbone_model=backbone), data, tmp_path)


def test_a_batch_of_one_is_refused_where_it_teaches_nothing(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(metadata_format="Classified_Tiles", size=64, count=6)
    with pytest.raises(BadInputError, match="Raise batch_size"):
        trained(parameters("DEEPLAB", {}, batch_size=1), data, tmp_path)


sys.path.append(str(Path(home.__file__).parent))
INSTANCES: Any = importlib.import_module("ChiplineInstanceDetector")


def squares(count: int, size: int = 64) -> list[Sample]:
    """Chips of two bright squares each, the left one of class 3, the right one of class 7."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        image = rng.integers(20, 60, (3, size, size)).astype(np.uint8)
        layers = {value: np.zeros((size, size), np.uint8) for value in (3, 7)}
        for left, value in ((4, 3), (34, 7)):
            top, edge = int(rng.integers(2, 30)), int(rng.integers(14, 24))
            layers[value][top : top + edge, left : left + edge] = 1
            image[0 if value == 3 else 2, top : top + edge, left : left + edge] = 230
        transform = (1.0, 0.0, 500_000.0 + size * number, 0.0, -1.0, 5_000_000.0)
        samples.append(Sample(number, image, np.ones((size, size), bool), transform, instances=layers))
    return samples


SCHEMA = ClassSchema.from_values({3: "Round", 7: "Square"})


@pytest.mark.slow
def test_outlines_travel(tmp_path: Path) -> None:
    export(tmp_path / "data", "RCNN_Masks", squares(10), SCHEMA)
    data = open_training_data(tmp_path / "data")
    arguments = {"width": "32", "levels": "1"}
    given = parameters("MASKRCNN", arguments, max_epochs=2)
    result, function = trained(given, data, tmp_path)
    function.getConfiguration(padding="0", batch_size="1", threshold="0.0", nms_overlap="1.0")
    network: Any = result.module.network
    network.roi_heads.score_thresh, network.roi_heads.nms_thresh = 0.0, 1.0
    pixels = read_chip_image(data.chips[0])
    features = vectorized(function, pixels)
    with torch.inference_mode():
        found = network([torch.from_numpy(result.normalisation.apply(pixels))])[0]
    masks = found["masks"][:, 0].numpy() >= 0.5
    expected = sorted(int(mask.sum()) for mask in masks if mask.any())
    areas = sorted(round(outlined(item["geometry"]["rings"]).area) for item in features)
    assert 0 < len(areas) <= len(expected)  # an object whose box has its centre in no tile is left out
    assert set(areas) <= set(expected)
    assert result.metrics["average_precision"] is not None
    assert draw_pictures(result, SCHEMA)["show_results.png"]


def outlined(rings: list[list[list[float]]]) -> Any:
    """The area of rings by the even-odd rule."""
    area: Any = shapely.Polygon()
    for ring in rings:
        area = area.symmetric_difference(shapely.Polygon(ring))
    return area


@settings(deadline=None, max_examples=60)
@drawn(mask=arrays(bool, (7, 6)))
def test_rings_outline_their_mask(mask: np.ndarray) -> None:
    rings_of = INSTANCES.rings_of
    shape = outlined(rings_of(mask))
    points = np.argwhere(np.ones_like(mask)) + 0.5
    inside = shapely.contains_xy(shape, points[:, 1], points[:, 0]).reshape(mask.shape)
    np.testing.assert_array_equal(inside, mask)
    assert all(shapely.Polygon(ring).is_valid for ring in rings_of(mask))


def labelled(folder: Path, several: bool) -> TrainingData:
    """Twelve chips of one square (Labeled_Tiles), or of one or both (MultiLabeled_Tiles)."""
    name = "MultiLabeled_Tiles" if several else "Labeled_Tiles"
    samples = []
    for sample in squares(12, 64):
        assert sample.instances is not None
        own = (3, 7)[sample.number % 2]
        shown = {own} if not several or sample.number % 3 else {3, 7}
        image = sample.image.copy()
        for value in {3, 7} - shown:
            image[0 if value == 3 else 2] = 40
        found = labels([(value, 4.0, 4.0, 60.0, 60.0) for value in sorted(shown)])
        samples.append(replace(sample, image=image, instances=None, value=own, objects=found))
    export(folder, name, samples, SCHEMA)
    return open_training_data(folder)


@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_classifier_of_objects_travels(several: bool, tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", several)
    given = parameters("FEATURE_CLASSIFIER", {}, chip_size=96, max_epochs=2)
    result, function = trained(given, data, tmp_path)
    configuration = function.getConfiguration(score_threshold="0.3", batch_size="5")
    assert (configuration["tx"], configuration["CropSizeFixed"], configuration["batch_size"]) == (64, 1, 5)
    pixels = tuple(read_chip_image(chip) for chip in data.chips)
    answer = function.vectorize(
        rasters_pixels=pixels, rasters_mask=tuple(np.ones(item.shape, np.uint8) for item in pixels)
    )
    features = json.loads(answer["output_vectors"])["features"]
    whole = LabelChips(
        data.chips,
        output=96,
        **(dict.fromkeys(("recipe", "multiple")) | {"normalisation": result.normalisation, "size": None}),
    )
    module = result.module
    assert isinstance(module, LabelModule)
    assert module.several is several
    assert len(features) == len(data.chips)
    for index, feature in enumerate(features):
        with torch.inference_mode():
            scores = module.probabilities(module.network(whole[index, 0][0][None]))[0].numpy()
        order = [int(i) for i in np.argsort(-scores)][: 2 if several else 1]
        chosen = [i for i in order if scores[i] >= 0.3]
        assert feature["attributes"]["Label"] == ";".join(data.classes.classes[i].name for i in chosen)
        told = [float(part) for part in feature["attributes"]["Confidence"].split(";") if part]
        np.testing.assert_allclose(told, scores[chosen], atol=1e-5)
    assert draw_pictures(result, data.classes)["show_results.png"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["FEATURE_CLASSIFIER", "MASKRCNN"])
def test_packages_of_objects_run_in_the_host(model_type: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    given = parameters(model_type, {} if model_type == "FEATURE_CLASSIFIER" else {"width": "32"})
    if model_type == "FEATURE_CLASSIFIER":
        data = labelled(tmp_path / "data", several=False)
    else:
        export(tmp_path / "data", "RCNN_Masks", squares(10), SCHEMA)
        data = open_training_data(tmp_path / "data")
    result = fit(given, [data], tmp_path, tracker=Tracker.disabled(), progress=lambda *_: None)
    made = build(given, data, result, page="", pictures={}, into=tmp_path)
    package = open_package(made, tmp_path / "unpacked")
    chips = [read_chip_image(chip) for chip in data.chips[:3]]
    with HostProcess(package, "CPU", {"batch_size": "4"}) as host:
        if model_type == "FEATURE_CLASSIFIER":
            found = host.run("vectorize", np.stack(chips), np.ones((3, 64, 64), np.uint8))
            assert host.takes_batches
            assert [item.index for item in found] == [0, 1, 2]
            assert {item.label for item in found} <= set(SCHEMA.names)
        else:
            assert host.configuration["tx"] == 64
            block = np.tile(chips[0], (1, 2, 2))[:, :96, :96]
            found = host.run("vectorize", block, np.ones(block.shape[1:], np.uint8))
            assert {item.class_name for item in found} <= set(SCHEMA.names)
