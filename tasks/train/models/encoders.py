"""Encoders by their ArcGIS names; each gives features at strides 2, 4, 8, 16 and 32."""

from __future__ import annotations

from typing import cast

from torch import nn

from tasks.errors import BadInputError, ChiplineError
from tasks.train.models.efficientnet_lite import EfficientNetLite0, load_imagenet

LITE = "EFFICIENTNET_LITE0"
_SMP_NAMES = {
    "RESNET18": "resnet18",
    "RESNET34": "resnet34",
    "RESNET50": "resnet50",
    "MOBILENET_V2": "mobilenet_v2",
}


def build_encoder(backbone_model: str, *, bands: int, depth: int, pretrained: bool) -> nn.Module:
    """An encoder as segmentation-models-pytorch has them: it gives ``[x, stride 2, stride 4, …]``.

    Args:
        backbone_model: EFFICIENTNET_LITE0, RESNET18, RESNET34, RESNET50 or MOBILENET_V2.
        bands: number of input bands.
        depth: 1 to 5, the number of resolutions.
        pretrained: start from ImageNet weights. Those of EFFICIENTNET_LITE0 are installed with Chipline,
            the others are fetched from the Hugging Face hub.

    Raises:
        BadInputError: an unknown name, or the weights cannot be fetched.
    """
    if backbone_model == LITE:
        encoder = EfficientNetLite0(bands, depth)
        if pretrained:
            load_imagenet(encoder)
        return encoder
    name = smp_name(backbone_model)
    from segmentation_models_pytorch.encoders import (
        get_encoder,
    )

    try:
        return cast(
            nn.Module,
            get_encoder(
                name,
                in_channels=bands,
                depth=depth,
                weights="imagenet" if pretrained else None,
            ),
        )
    except (OSError, ValueError) as error:
        if isinstance(error, ChiplineError) or not pretrained:
            raise
        raise BadInputError(
            f"The ImageNet weights of {backbone_model} cannot be fetched: {error}.",
            "Give the model argument pretrained = False, or take the backbone EFFICIENTNET_LITE0, whose "
            "weights are installed.",
        ) from error


def smp_name(backbone_model: str) -> str:
    """The name of a backbone in segmentation-models-pytorch.

    Raises:
        BadInputError: an unknown backbone.
    """
    if backbone_model not in _SMP_NAMES:
        raise BadInputError(
            f"There is no backbone {backbone_model!r}.", f"Choose one of {', '.join([LITE, *_SMP_NAMES])}."
        )
    return _SMP_NAMES[backbone_model]
