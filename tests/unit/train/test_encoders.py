"""Backbones by name, and the first layer over any bands."""

from __future__ import annotations

import pytest
import torch

from tasks.errors import BadInputError
from tasks.train.models.backbones import BACKBONES, SMP_NAMES, check_backbone, smp_name
from tasks.train.models.encoders import WeightInit, build_encoder, check_exists, first_layer

WEIGHT = torch.arange(2 * 3, dtype=torch.float32).reshape(2, 3, 1, 1) + 1.0


def test_names_are_taken_in_any_case_and_unknown_ones_refused() -> None:
    assert [check_backbone(name.lower()) for name in BACKBONES] == list(BACKBONES)
    assert smp_name(check_backbone(" TIMM:ConvNeXt_tiny.in12k ")) == "tu-convnext_tiny.in12k"
    for wrong in ("RESNET35", "timm:", "timm:../x", "hf:model", ""):
        with pytest.raises(ValueError, match="timm:convnext_tiny"):
            check_backbone(wrong)


def test_every_name_is_one_of_the_library() -> None:
    import timm
    from segmentation_models_pytorch.encoders import encoders

    for name in SMP_NAMES.values():
        assert name in encoders or timm.is_model(name.removeprefix("tu-"))


def test_a_name_that_timm_does_not_know_comes_with_names_near_it() -> None:
    check_exists("timm:lcnet_050")
    check_exists("RESNET34")
    with pytest.raises(BadInputError, match="lcnet_050"):
        check_exists("timm:lcnet_51")


@pytest.mark.parametrize(
    ("scheme", "bands", "expected"),
    [
        ("RANDOM", ["a", "b", "c", "d"], [1, 2, 3, -1]),
        ("RANDOM", ["NIR", "Blue", "Green", "Red"], [-1, 3, 2, 1]),
        ("RED_BAND", ["NIR", "Red", "Green", "Blue"], [1, 1, 2, 3]),
        ("ALL_RANDOM", ["Red", "Green", "Blue"], [-1, -1, -1]),
        ("RANDOM", ["pan"], [6]),
        ("RED_BAND", ["a", "b"], [3, 3]),
    ],
)
def test_the_first_layer_follows_the_bands(
    scheme: WeightInit, bands: list[str], expected: list[float]
) -> None:
    fresh = torch.full((2, len(bands), 1, 1), -1.0)
    assert first_layer(WEIGHT, bands, scheme, fresh)[0].flatten().tolist() == expected


def test_imagenet_weights_meet_any_number_of_bands() -> None:
    three = build_encoder("EFFICIENTNET_LITE0", bands=["r", "g", "b"], depth=1, pretrained=True)
    five = build_encoder(
        "EFFICIENTNET_LITE0", bands=["red", "green", "blue", "nir", "swir"], depth=1, pretrained=True
    )
    assert torch.equal(five.state_dict()["stem.1.weight"][:, :3], three.state_dict()["stem.1.weight"])
    assert five(torch.zeros(1, 5, 32, 32))[1].shape == (1, 16, 16, 16)


def test_encoders_without_the_features_are_refused() -> None:
    with pytest.raises(BadInputError, match="Choose another backbone_model"):
        build_encoder("timm:vit_tiny_patch16_224", bands=["a"], depth=5, pretrained=False)
