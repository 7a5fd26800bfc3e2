"""Going on with a package's weights, and frozen encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.errors import BadInputError
from tasks.package.dlpk import Package, open_package
from tasks.tracking import Tracker
from tasks.train.beginning import Beginning, fit_weights
from tasks.train.dividing import divide
from tasks.train.doubts import doubts_of
from tasks.train.models.encoder_weights import EncoderStart
from tasks.train.models.options import check_sizes, options_of
from tasks.train.origins import check_package
from tasks.train.packaging import build
from tasks.train.result import Trained
from tasks.train.train import fit
from tasks.training_data import TrainingData
from tests.unit.train.test_zoo import parameters

MakeData = Callable[..., TrainingData]


def train(data: TrainingData, work: Path, beginning: Beginning | None = None, **values: Any) -> Trained:
    torch.set_num_threads(1)
    arguments = values.pop("arguments", {"width": "32"})
    return fit(
        parameters("FPN", arguments, **values),
        [data],
        work,
        tracker=Tracker.disabled(),
        progress=lambda *_: None,
        beginning=beginning,
    )


@pytest.fixture(scope="module")
def data(make_module_data: MakeData) -> TrainingData:
    return make_module_data(metadata_format="Classified_Tiles", size=64, count=8)


@pytest.fixture(scope="module")
def package(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A package of one epoch."""
    work = tmp_path_factory.mktemp("first")
    result = train(data, work)
    made = build(parameters("FPN", {"width": "32"}), data, result, page="", pictures={}, into=work)
    return open_package(made, work / "unpacked")


def test_a_training_goes_on_with_the_weights_of_a_package(
    package: Package, data: TrainingData, tmp_path: Path
) -> None:
    result = train(data, tmp_path, Beginning(package), learning_rate=1e-12)
    assert package.weights_path is not None
    theirs = torch.load(package.weights_path, weights_only=True)
    ours = dict(result.module.network.named_parameters())
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.detach(), theirs[name], atol=1e-6, rtol=0)
    assert result.metrics["first_weights"] == f"all weights of the package m (SHA-256 {package.digest})"


def test_validating_on_what_a_package_learnt_from_is_a_doubt(package: Package, data: TrainingData) -> None:
    for share, doubted in ((30, False), (60, True)):
        given = parameters("FPN", {"width": "32"}, validation_percent=share)
        split, _ = divide(given, [data])
        found = doubts_of(given, [data], data.chips, split, known_data=["s3://b/data"], package=package)
        assert any("m has learnt from s3://b/data" in doubt for doubt in found) is doubted
        assert doubts_of(given, [data], data.chips, split, package=package) == [
            doubt for doubt in found if "has learnt from" not in doubt
        ]


class Head(nn.Module):
    def __init__(self, classes: int, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.scores = nn.Linear(width, classes + 1)
        self.anchors = nn.Conv2d(width, 3 * (classes + 1), 1)


def test_heads_of_other_classes_start_afresh_and_are_named() -> None:
    given, network = Head(5).state_dict(), Head(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    heads = fit_weights(network, given, before=5, now=2, name="p")
    assert heads == ["scores.weight", "scores.bias", "anchors.weight", "anchors.bias"]
    after = network.state_dict()
    assert torch.equal(after["body.weight"], given["body.weight"])
    assert all(torch.equal(after[name], before[name]) for name in heads)


@pytest.mark.parametrize(("now", "width"), [(5, 8), (2, 8)])
def test_other_differences_are_refused(now: int, width: int) -> None:
    with pytest.raises(
        BadInputError, match=r"body.weight \[4, 3, 3, 3\] for \[8, 3, 3, 3\].*model arguments"
    ):
        fit_weights(Head(now, width), Head(5).state_dict(), before=5, now=now, name="p")
    with pytest.raises(BadInputError, match="differs"):
        fit_weights(nn.Conv2d(1, 1, 1), Head(5).state_dict(), before=5, now=5, name="p")


def test_a_real_network_of_other_classes_goes_on(
    package: Package, tmp_path: Path, make_data: MakeData
) -> None:
    other = make_data(metadata_format="Classified_Tiles", size=64, count=8, classes=3)
    told = train(other, tmp_path, Beginning(package), max_epochs=1).metrics["first_weights"]
    assert "which start afresh for 3 classes in place of 2: segmentation.segmentation_head" in told
    with pytest.raises(BadInputError, match="model arguments"):
        train(other, tmp_path, Beginning(package), arguments={"width": "64"})


def test_a_package_of_another_kind_or_of_others_is_refused(package: Package) -> None:
    given = parameters("FPN", {"width": "32"})
    check_package(package, given)
    with pytest.raises(BadInputError, match="holds model_type FPN, not UNET"):
        check_package(package, parameters("UNET", {}))
    with pytest.raises(BadInputError, match="holds backbone_model timm:lcnet_035, not RESNET18"):
        check_package(package, parameters("FPN", {}, backbone_model="RESNET18"))
    stranger = package.definition.model_copy(update={"model_configuration": "TheirModel"})
    with pytest.raises(BadInputError, match="not built by a training of Chipline"):
        check_package(Package(package.folder, stranger, package.digest, "theirs"), given)


def test_the_encoder_starts_from_a_file_and_says_so(data: TrainingData, tmp_path: Path) -> None:
    first = train(data, tmp_path, max_epochs=1)
    torch.save(first.module.encoder.state_dict(), tmp_path / "e.pth")
    start = Beginning(encoder=EncoderStart(tmp_path / "e.pth", "s3://bucket/e.pth"))
    values: dict[str, Any] = {"arguments": {"width": "32", "pretrained": "True"}, "freeze_model": True}
    result = train(data, tmp_path, start, **values)
    assert result.metrics["first_weights"] == "encoder weights of s3://bucket/e.pth"
    # Frozen: neither weights nor the running statistics of its normalisations have moved.
    ours, theirs = result.module.encoder.state_dict(), first.module.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_frozen_encoder_learns_once_it_thaws(package: Package, data: TrainingData, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "pretrained_model": "m",
        "freeze_model": True,
        "max_epochs": 2,
        "batch_size": 2,
    }
    frozen = train(data, tmp_path, Beginning(package), **values)
    thawed = train(
        data, tmp_path, Beginning(package), **values, unfreeze_after_epochs=1, monitor="VALID_LOSS"
    )
    assert package.weights_path is not None
    given = torch.load(package.weights_path, weights_only=True)
    prefix = "segmentation.encoder."
    names = [name for name in given if name.startswith(prefix)]
    state = frozen.module.network.state_dict()
    assert all(torch.equal(state[name], given[name]) for name in names)
    assert thawed.module.freeze_encoder is False
    moved = [p for p in thawed.module.encoder.parameters() if p.requires_grad]
    assert len(moved) == len(list(thawed.module.encoder.parameters()))
    assert thawed.history[0]["train_loss"] == frozen.history[0]["train_loss"]
    assert thawed.history[1]["train_loss"] != frozen.history[1]["train_loss"]


def test_nothing_random_is_frozen() -> None:
    given = parameters("FPN", {"width": "32"}, freeze_model=True)
    with pytest.raises(BadInputError, match="pretrained is False"):
        check_sizes(given, options_of(given), 64, 8)
    with pytest.raises(ValueError, match="goes with freeze_model"):
        parameters("FPN", {}, unfreeze_after_epochs=2)
    with pytest.raises(ValueError, match="give no encoder_weights"):
        parameters("FPN", {}, pretrained_model="m", encoder_weights="w.pth")
