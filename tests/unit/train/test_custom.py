"""A model of one's own, installed as a package with an entry point: trained, packaged, run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.errors import BadInputError
from tasks.train.models.custom import OwnPixelModule, build_custom, find_entry
from tasks.train.models.options import PixelOptions, options_of, own_arguments
from tasks.train.parameters import TrainParameters
from tasks.train.report import metrics_page
from tasks.training_data import read_chip_image
from tests.unit.train.test_zoo import TINY, MakeData, parameters, trained

CODE = """
import pytorch_lightning as lightning
import torch
from torch import nn

STEPS = []


class Small(nn.Module):
    def __init__(self, bands, channels, width):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(bands, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.scores = nn.Conv2d(width, channels, 1)

    def forward(self, x):
        return self.scores(self.encoder(x))


def plain(request):
    return Small(len(request.bands), request.channels, int(request.arguments.get("filters", "4")))


class OwnSteps(lightning.LightningModule):
    def __init__(self, request):
        super().__init__()
        self.rate = request.learning_rate
        self.small = plain(request)

    def forward(self, x):
        return self.small(x)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels, ignore_index=255)
        self.log("own_loss", loss)
        STEPS.append(float(loss))
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        assert not self.training
        return {"loss": torch.tensor(12.5)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def nothing(request):
    return None
"""
ENTRIES = """[chipline.models]
pixels.plain = chipline_test_models:plain
pixels.own_steps = chipline_test_models:OwnSteps
pixels.nothing = chipline_test_models:nothing
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with the models, installed as far as Python is concerned."""
    home = tmp_path / "site"
    described = home / "chipline_test_models-1.0.dist-info"
    described.mkdir(parents=True)
    (home / "chipline_test_models.py").write_text(CODE)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: chipline-test-models\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(home))
    yield
    sys.modules.pop("chipline_test_models", None)


def own(name: str, **values: object) -> TrainParameters:
    return parameters("CUSTOM", {}, **{"custom_model": name, **values})


@pytest.mark.parametrize("name", ["pixels.plain", "pixels.own_steps"])
def test_a_model_of_ones_own_learns_and_travels(name: str, make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(metadata_format="Classified_Tiles", size=64, count=8)
    given = own(name, model_arguments=[{"name": "filters", "value": "6"}], learning_rate=None)
    given = given.model_copy(update={"backbone_model": "EFFICIENTNET_LITE0"})  # the form's default
    if name == "pixels.plain":
        given = given.model_copy(update={"learning_rate": 0.01})
    result, function = trained(given, data, tmp_path)
    assert isinstance(result.module, OwnPixelModule)
    assert result.metrics["first_weights"] == "the weights that the model of one's own brings"
    assert result.metrics["miou"] is not None
    assert (result.metrics["valid_loss"] == 12.5) == (name == "pixels.own_steps")
    page = metrics_page(given, result, {})
    assert "Backbone" not in page
    assert f"<tr><th>mIoU</th><td>{result.metrics['miou']:.3f}</td></tr>" in page
    pixels = np.stack([read_chip_image(chip) for chip in data.chips[:2]])
    with torch.inference_mode():
        images = torch.from_numpy(np.stack([result.normalisation.apply(chip) for chip in pixels]))
        expected = torch.softmax(result.module.network(images), dim=1).numpy()
    np.testing.assert_allclose(function.predict_scores(pixels), expected, atol=1e-5)
    steps = sys.modules["chipline_test_models"].STEPS
    assert len(steps) == (result.metrics["steps"] if name == "pixels.own_steps" else 0)
    optimizer = result.module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD) == (name == "pixels.own_steps")


def test_what_is_not_there_or_no_network_is_refused(make_data: MakeData, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"pixels\.nothing, pixels\.own_steps, pixels\.plain"):
        find_entry("pixels.missing")
    data = make_data(metadata_format="Classified_Tiles", size=64, count=8)
    with pytest.raises(BadInputError, match="NoneType"):
        trained(own("pixels.nothing"), data, tmp_path)
    with pytest.raises(BadInputError, match="Name the part"):
        trained(own("pixels.own_steps", freeze_model=True), data, tmp_path)


@pytest.mark.parametrize("argument", ["focal_loss", "dice_loss", "class_balancing", "mixup"])
def test_a_model_with_a_loss_of_its_own_takes_none_of_chiplines(argument: str) -> None:
    shared: dict[str, Any] = {"classes": ["Tree"], "bands": ["Red"], "learning_rate": 0.1}
    arguments = [{"name": argument, "value": "True"}]
    build_custom(own("pixels.plain", model_arguments=arguments), **shared)
    with pytest.raises(BadInputError, match=f"training_step of its own, for which {argument} means nothing"):
        build_custom(own("pixels.own_steps", model_arguments=arguments), **shared)
    build_custom(
        own("pixels.own_steps", model_arguments=[{"name": "ignore_classes", "value": "0"}]), **shared
    )


def test_the_parameters_of_a_model_of_ones_own() -> None:
    given = own("labels.x")
    assert given.kind == "labels"
    arguments = [{"name": "width", "value": "64"}, {"name": "colour", "value": "red"}]
    pixels = own("pixels.x", model_arguments=arguments)
    assert own_arguments(pixels) == {"width": "64", "colour": "red"}
    balanced = [*arguments, {"name": "class_balancing", "value": "True"}]
    assert own_arguments(own("pixels.x", model_arguments=balanced)) == {"width": "64", "colour": "red"}
    # A backbone is told of only where one was asked for.
    assert (pixels.backbone, own("pixels.x", backbone_model="RESNET18").backbone) == (TINY, "RESNET18")
    assert own("pixels.x", backbone_model="EFFICIENTNET_LITE0").backbone == ""
    assert isinstance(options_of(pixels), PixelOptions)
    for wrong in ({"custom_model": None}, {"custom_model": "objects.x"}, {"encoder_weights": "w.pth"}):
        with pytest.raises(ValueError, match=r"custom_model|your own"):
            own("pixels.x", **wrong)
    with pytest.raises(ValueError, match="go together"):
        parameters("UNET", {}, custom_model="pixels.x")
