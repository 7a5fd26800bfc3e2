"""Networks for what is thin: edges, roads.

``HED_EDGEDETECTOR`` after Xie and Tu, "Holistically-Nested Edge Detection", 2015: every resolution of the
encoder answers by itself, and so does a weighted sum of all. ``MULTITASK_ROADEXTRACTOR`` after Batra et al.,
"Improved Road Connectivity by Joint Learning of Orientation and Segmentation", 2019: the network also learns
which way a road runs; its stacked refinement is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.train.models.encoders import WeightInit, build_encoder
from tasks.train.models.options import EdgeOptions, RoadOptions

_DEPTH = 5


class EdgeNetwork(nn.Module):
    """Logits (n, 2, rows, cols): of no edge, which is 0, and of an edge.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`.
        downscale: the input is averaged over cells of so many pixels.
    """

    def __init__(self, encoder: nn.Module, *, downscale: int) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(downscale) if downscale > 1 else nn.Identity()
        self.encoder = encoder
        widths = [int(width) for width in cast("list[int]", encoder.out_channels)][1:]
        # Encoders that start at stride 4 have an empty feature before.
        self.used = [number for number, width in enumerate(widths, start=1) if width > 0]
        self.sides = nn.ModuleList([nn.Conv2d(widths[number - 1], 1, 1) for number in self.used])
        self.fuse = nn.Conv2d(len(self.used), 1, 1)
        nn.init.constant_(self.fuse.weight, 1.0 / len(self.used))
        nn.init.zeros_(cast(Tensor, self.fuse.bias))

    def answers(self, x: Tensor) -> Tensor:
        """Logits of an edge: of each resolution, and of all together  # (n, resolutions + 1, rows, cols)."""
        features = self.encoder(self.shrink(x))
        each = torch.cat(
            [
                functional.interpolate(
                    side(features[number]), size=x.shape[-2:], mode="bilinear", align_corners=False
                )
                for side, number in zip(self.sides, self.used, strict=True)
            ],
            dim=1,
        )
        return torch.cat([each, self.fuse(each)], dim=1)

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols) -> logits (n, 2, rows, cols)
        logits = self.answers(x)[:, -1:]
        return torch.cat([torch.zeros_like(logits), logits], dim=1)


class RoadNetwork(nn.Module):
    """A U-Net whose decoder also tells which way a road runs; that branch helps in training only.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`.
        decoder: channels of the decoder, coarsest resolution first.
        directions: number of bins that 180 degrees are divided into.
        downscale: the input is averaged over cells of so many pixels, and scores are interpolated back.
    """

    def __init__(
        self, encoder: nn.Module, *, decoder: Sequence[int], directions: int, downscale: int
    ) -> None:
        super().__init__()
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        self.shrink: nn.Module = nn.Identity()
        self.enlarge: nn.Module = nn.Identity()
        if downscale > 1:
            self.shrink = nn.AvgPool2d(downscale)
            self.enlarge = nn.Upsample(scale_factor=float(downscale), mode="bilinear", align_corners=False)
        self.encoder = encoder
        widths = [int(width) for width in cast("list[int]", encoder.out_channels)]
        self.decoder = UnetDecoder(
            encoder_channels=widths, decoder_channels=tuple(decoder), n_blocks=len(decoder)
        )
        self.head = nn.Conv2d(decoder[-1], 2, 3, padding=1)
        self.direction = nn.Conv2d(decoder[-1], directions, 3, padding=1)
        initialize_decoder(self.decoder)
        for head in (self.head, self.direction):
            initialize_head(head)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of road (n, 2, rows, cols), and of its direction (n, directions, rows, cols)."""
        features = self.decoder(self.encoder(self.shrink(x)))
        return self.enlarge(self.head(features)), self.enlarge(self.direction(features))

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols) -> logits (n, 2, rows, cols)
        scores: Tensor = self.enlarge(self.head(self.decoder(self.encoder(self.shrink(x)))))
        return scores


def build_line_network(
    backbone_model: str,
    options: EdgeOptions | RoadOptions,
    *,
    bands: Sequence[str],
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> EdgeNetwork | RoadNetwork:
    """The network, ready to train.

    Args:
        bands: names of the input bands.
        pretrained, scheme: of the encoder, see :func:`tasks.train.models.encoders.build_encoder`.

    Raises:
        BadInputError: there is no such encoder, or its weights cannot be fetched.
    """
    encoder = build_encoder(backbone_model, bands=bands, depth=_DEPTH, pretrained=pretrained, scheme=scheme)
    if isinstance(options, EdgeOptions):
        return EdgeNetwork(encoder, downscale=options.downscale)
    return RoadNetwork(
        encoder,
        decoder=options.decoder,
        directions=180 // options.orient_bin_size,
        downscale=options.downscale,
    )


def directions_of(roads: Tensor, bins: int, reach: float) -> Tensor:
    """Which way the road of each pixel runs, by the structure tensor of the mask.

    Of the gradients of the smoothed mask, weighted around each pixel, the direction across is the one with
    most of them (Bigün and Granlund, 1987); the road runs at right angles to it.

    Args:
        roads: 1 on roads, else 0  # (n, rows, cols) float32
        bins: that 180 degrees are divided into.
        reach: standard deviation of the weights, in pixels.

    Returns:
        Numbers of bins from 0; bin i holds angles from i to i + 1 bin widths, anticlockwise from the rows'
        direction  # (n, rows, cols) int64
    """
    smooth = _blurred(roads[:, None], max(reach / 2, 0.8))
    padded = functional.pad(smooth, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    xx, yy, xy = (_blurred(part, reach) for part in (across * across, down * down, across * down))
    # Rows run downwards: the angle of the gradient is turned about.
    normal = 0.5 * torch.atan2(-2 * xy, xx - yy)
    angle = (normal + torch.pi / 2).remainder(torch.pi)
    found = (angle / torch.pi * bins).floor().long().clamp(0, bins - 1)
    return found[:, 0]


def _blurred(x: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(2.5 * sigma))
    places = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    weights = weights / weights.sum()
    padded = functional.pad(x, (radius,) * 4, mode="replicate")
    rows = functional.conv2d(padded, weights.view(1, 1, -1, 1))
    return functional.conv2d(rows, weights.view(1, 1, 1, -1))
