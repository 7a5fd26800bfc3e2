"""The encoders that a person may name: ArcGIS's names, and every timm encoder as ``timm:<name>``.

No torch here: parameters are checked by it. Names: docs/formats/tools.md, "Backbones".
"""

from __future__ import annotations

import re

LITE = "EFFICIENTNET_LITE0"
TIMM_PREFIX = "timm:"
_TIMM_NAME = re.compile(r"timm:[a-z0-9][a-z0-9_]*(\.[a-z0-9_]+)?\Z")

# ArcGIS's name -> the name in segmentation-models-pytorch; "tu-" encoders are timm's.
SMP_NAMES = {
    **{f"RESNET{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    "RESNEXT50": "resnext50_32x4d",
    "WIDE_RESNET50": "tu-wide_resnet50_2",
    **{f"DENSENET{depth}": f"densenet{depth}" for depth in (121, 161, 169, 201)},
    **{f"VGG{depth}": f"vgg{depth}" for depth in (11, 13, 16, 19)},
    **{f"VGG{depth}_BN": f"vgg{depth}_bn" for depth in (11, 13, 16, 19)},
    "MOBILENET_V2": "mobilenet_v2",
    "DARKNET53": "tu-darknet53",
}
BACKBONES = (LITE, *SMP_NAMES)


def check_backbone(name: str) -> str:
    """The name as it is known, whatever the case of its letters.

    Raises:
        ValueError: neither one of :data:`BACKBONES` nor ``timm:`` and the name of an encoder of timm's.
    """
    text = name.strip()
    if text.lower().startswith(TIMM_PREFIX):
        text = text.lower()
        if not _TIMM_NAME.match(text):
            raise ValueError(
                f"{name!r} names no timm encoder; write it as timm lists it, such as timm:convnext_tiny"
            )
        return text
    if text.upper() not in BACKBONES:
        raise ValueError(
            f"there is no backbone {name!r}; choose one of {', '.join(BACKBONES)}, or an encoder of timm's "
            "such as timm:convnext_tiny"
        )
    return text.upper()


def smp_name(backbone: str) -> str:
    """The name in segmentation-models-pytorch of a checked backbone other than :data:`LITE`."""
    if backbone.startswith(TIMM_PREFIX):
        return "tu-" + backbone.removeprefix(TIMM_PREFIX)
    return SMP_NAMES[backbone]
