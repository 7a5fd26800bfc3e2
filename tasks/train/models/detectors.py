"""Object detectors: torchvision's classes around a light feature pyramid."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from tasks.package.network_source import DetectorName, build_detector
from tasks.train.models.encoders import WeightInit, build_levels
from tasks.train.models.options import DetectorOptions

TWO_STAGES = frozenset({"FASTERRCNN", "MASKRCNN"})
_LEAST_SCORE = 0.05  # weaker boxes are not worth a thought


class FeaturePyramid(nn.Module):
    """Encoder features, merged from coarse to fine (Lin et al., "Feature Pyramid Networks", 2017).

    Gives the feature maps by level ("0", "1", …), the finest first.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`.
        channels: its channels at strides 2, 4, ….
        downscale: the input is averaged over cells of ``downscale`` pixels first.
        finest: index of the finest stride that is used, 2 for stride 4 of the downscaled input.
        levels: how many feature maps are given, from ``finest`` on.
        width: their channels.
    """

    def __init__(
        self, encoder: nn.Module, channels: list[int], *, downscale: int, finest: int, levels: int, width: int
    ) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(downscale) if downscale > 1 else nn.Identity()
        self.encoder = encoder
        self.first = finest
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(size, width, 1, bias=False), nn.BatchNorm2d(width))
            for size in channels[finest:]
        )
        self.enlarge = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for _ in range(levels)
        )
        self.out_channels = width

    def forward(
        self, x: Tensor
    ) -> dict[str, Tensor]:  # (n, bands, rows, cols) -> maps by level, finest first
        features = self.encoder(self.shrink(x))[self.first :]
        merged: list[Tensor] = []
        for lateral, feature in zip(reversed(self.lateral), reversed(features), strict=True):
            level = lateral(feature)
            merged.insert(0, level + self.enlarge(merged[0]) if merged else level)
        levels = zip(self.smooth, merged, strict=False)
        return OrderedDict((str(index), smooth(level)) for index, (smooth, level) in enumerate(levels))


def build_pyramid(
    backbone_model: str,
    options: DetectorOptions,
    *,
    bands: Sequence[str],
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> FeaturePyramid:
    """The detector's backbone; its features start at ``options.stride`` image pixels.

    Raises:
        BadInputError: the encoder gives no features at that stride.
    """
    finest = int(math.log2(options.stride // options.downscale))
    encoder, channels = build_levels(
        backbone_model,
        finest=finest,
        depth=max(options.depth, options.resolutions),
        downscale=options.downscale,
        bands=bands,
        pretrained=pretrained,
        scheme=scheme,
    )
    return FeaturePyramid(
        encoder,
        channels,
        downscale=options.downscale,
        finest=finest,
        levels=options.levels,
        width=options.width,
    )


def detector_arguments(
    model_type: str, options: DetectorOptions, *, classes: int, bands: int
) -> dict[str, Any]:
    """The plain arguments from which the detector is built here and in the package.

    Label 0 is the background, labels 1 to ``classes`` are the classes in the order of the package.
    """
    sizes: tuple[tuple[float, ...], ...]
    levels = range(options.levels)
    kept = 300
    if model_type in ("FCOS", *TWO_STAGES):
        sizes = tuple((float(options.anchor_size * 2**level),) for level in levels)
    else:
        scales = options.scales or tuple(2 ** (third / 3) for third in range(3))
        sizes = tuple(tuple(options.anchor_size * 2**level * scale for scale in scales) for level in levels)
    ratios = ((1.0,) if model_type == "FCOS" else options.ratios,) * options.levels
    shared = {
        "num_classes": classes + 1,
        "bands": bands,
        "anchor_sizes": sizes,
        "aspect_ratios": ratios,
        "size_divisible": options.size_divisor,
    }
    names = [str(level) for level in levels]
    if model_type in TWO_STAGES:
        return {
            **shared,
            "featmap_names": names,
            "box_score_thresh": _LEAST_SCORE,
            "box_nms_thresh": options.nms_overlap,
            "box_detections_per_img": kept,
            # A fraction of torchvision's numbers, which are of pictures of a megapixel.
            "box_batch_size_per_image": 128,
            "rpn_pre_nms_top_n_train": 1000,
            "rpn_post_nms_top_n_train": 500,
            "rpn_pre_nms_top_n_test": 1000,
            "rpn_post_nms_top_n_test": 500,
            **({"mask_width": options.width} if model_type == "MASKRCNN" else {}),
        }
    own: dict[str, Any] = {}
    if model_type == "FCOS":
        own = {
            "head_convolutions": options.head_convolutions,
            "center_sampling_radius": options.center_radius,
        }
    if model_type == "SSD":
        own = {"featmap_names": names}
    return {
        **shared,
        "score_thresh": _LEAST_SCORE,
        "nms_thresh": options.nms_overlap,
        "detections_per_img": kept,
        "topk_candidates": 1000,
        **own,
    }


def build_object_detector(model_type: str, backbone: FeaturePyramid, arguments: dict[str, Any]) -> nn.Module:
    """The detector, ready to train."""
    detector = build_detector(backbone, cast(DetectorName, model_type), arguments)
    if model_type == "FCOS":
        # Boxes start at the anchor's size: with zeros half of them would sit behind a closed ReLU at first,
        # and a short training cannot afford that.
        regression = cast(nn.Conv2d, detector.get_submodule("head.regression_head.bbox_reg"))
        nn.init.constant_(cast(Tensor, regression.bias), 1.0)
    return detector
