"""Networks for what is thin, by their model type, and what they learn beside the mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tasks.package.functions.chipline_lines import thinned
from tasks.train.models.edges import CascadedEdges, EdgeNetwork, NestedEdges
from tasks.train.models.encoders import WeightInit, build_encoder
from tasks.train.models.options import EdgeOptions, RoadOptions
from tasks.train.models.roads import DecodedRoads, RoadNetwork, StackedRoads

_DEPTH = 5
_STEM = 2  # resolutions of the encoder before the hourglasses
_STACKS = 2
_HOURGLASS_WIDTH = 128
_ENHANCED_WIDTH = 32
_ROAD_SIGMA = 15.0  # pixels; see redrawn


def build_line_network(
    model_type: str,
    backbone_model: str,
    options: EdgeOptions | RoadOptions,
    *,
    bands: Sequence[str],
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> EdgeNetwork | RoadNetwork:
    """The network, ready to train.

    Args:
        model_type: of the tool.
        bands: names of the input bands.
        pretrained, scheme: of the encoder, see :func:`tasks.train.models.encoders.build_encoder`.

    Raises:
        BadInputError: there is no such encoder, or its weights cannot be fetched.
    """
    stacked = isinstance(options, RoadOptions) and options.mtl_model == "hourglass"
    encoder = build_encoder(
        backbone_model,
        bands=bands,
        depth=_STEM if stacked else _DEPTH,
        pretrained=pretrained,
        scheme=scheme,
    )
    if isinstance(options, EdgeOptions):
        if model_type == "HED_EDGEDETECTOR":
            return NestedEdges(encoder, downscale=options.downscale)
        return CascadedEdges(encoder, downscale=options.downscale, width=options.width or _ENHANCED_WIDTH)
    shared: dict[str, Any] = {
        "directions": 180 // options.orient_bin_size,
        "connected": model_type == "CONNECTNET",
        "downscale": options.downscale,
    }
    if stacked:
        return StackedRoads(encoder, width=options.width or _HOURGLASS_WIDTH, stacks=_STACKS, **shared)
    return DecodedRoads(encoder, decoder=options.decoder if options.mtl_model == "unet" else None, **shared)


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


def redrawn(roads: npt.NDArray[np.bool_], gaussian_thresh: float) -> npt.NDArray[np.bool_]:
    """Roads of one width, around the middle lines of a mask.

    A pixel is on a road where ``exp(-d² / 2σ²)`` of its distance d to a middle line reaches the threshold.
    That σ is 15 pixels is our choice; with it ArcGIS's threshold of 0.76 gives 11 pixels to either side.

    Args:
        roads, result: # (rows, cols)
        gaussian_thresh: between 0 and 1.
    """
    rows, cols = roads.shape
    lines = thinned(torch.from_numpy(roads)[None], max(rows, cols))[0].numpy()
    reach = _ROAD_SIGMA * math.sqrt(-2.0 * math.log(gaussian_thresh))
    most = int(reach)
    made = np.zeros_like(roads)
    for down in range(-min(most, rows - 1), min(most, rows - 1) + 1):
        wide = int(math.sqrt(reach**2 - down**2))
        # Whether a line is within so many columns: a count over a window, by sums from the left.
        sums = np.pad(lines.cumsum(axis=1), ((0, 0), (wide + 1, wide)), mode="edge")
        sums[:, : wide + 1] = 0
        near = sums[:, 2 * wide + 1 :] > sums[:, :cols]
        source = slice(max(0, -down), rows - max(0, down))
        made[max(0, down) : rows + min(0, down)] |= near[source]
    return made


def _blurred(x: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(2.5 * sigma))
    places = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    weights = weights / weights.sum()
    padded = functional.pad(x, (radius,) * 4, mode="replicate")
    rows = functional.conv2d(padded, weights.view(1, 1, -1, 1))
    return functional.conv2d(rows, weights.view(1, 1, 1, -1))
