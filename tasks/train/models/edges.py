"""Networks for edges: every resolution of an encoder answers, and so do all of them together.

``HED_EDGEDETECTOR`` after Xie and Tu, "Holistically-Nested Edge Detection", 2015. ``BDCN_EDGEDETECTOR`` after
He et al., "Bi-Directional Cascade Network for Perceptual Edge Detection", 2019.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class EdgeNetwork(nn.Module):
    """Logits (n, 2, rows, cols): of no edge, which is 0, and of an edge.

    Attributes:
        weights: of each answer's loss, in the order of :meth:`answers`.
        balance: weight of what is no edge, beside what would make both weigh the same.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`.
        downscale: the input is averaged over cells of so many pixels.
    """

    weights: tuple[float, ...]
    balance = 1.0

    def __init__(self, encoder: nn.Module, *, downscale: int) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(downscale) if downscale > 1 else nn.Identity()
        self.encoder = encoder
        widths = [int(width) for width in cast("list[int]", encoder.out_channels)][1:]
        # Encoders that start at stride 4 have an empty feature before.
        self.used = [number for number, width in enumerate(widths, start=1) if width > 0]
        self.widths = [widths[number - 1] for number in self.used]

    def sides_of(self, features: list[Tensor], rows: int, cols: int) -> list[Tensor]:
        """What the resolutions answer, each by itself  # (n, 1, rows, cols) each."""
        raise NotImplementedError

    def fused(self, each: Tensor) -> Tensor:
        """What all of them together answer  # (n, sides, rows, cols) -> (n, 1, rows, cols)."""
        raise NotImplementedError

    def answers(self, x: Tensor) -> Tensor:
        """Logits of an edge: of each resolution, and of all together  # (n, answers, rows, cols)."""
        features = self.encoder(self.shrink(x))
        rows, cols = x.shape[-2:]
        each = torch.cat(self.sides_of([features[number] for number in self.used], rows, cols), dim=1)
        return torch.cat([each, self.fused(each)], dim=1)

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols) -> logits (n, 2, rows, cols)
        return scores_of(self.answers(x))


def scores_of(answers: Tensor) -> Tensor:
    """The last answer (n, answers, rows, cols) as logits of no edge and of an edge  # (n, 2, rows, cols)"""
    logits = answers[:, -1:]
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


class NestedEdges(EdgeNetwork):
    """HED: one convolution tells the edges of each resolution."""

    def __init__(self, encoder: nn.Module, *, downscale: int) -> None:
        super().__init__(encoder, downscale=downscale)
        self.sides = nn.ModuleList([nn.Conv2d(width, 1, 1) for width in self.widths])
        self.fuse = _fusion(len(self.widths))
        self.weights = (1.0,) * (len(self.widths) + 1)

    def sides_of(self, features: list[Tensor], rows: int, cols: int) -> list[Tensor]:
        pairs = zip(self.sides, features, strict=True)
        return [_enlarged(side(feature), rows, cols) for side, feature in pairs]

    def fused(self, each: Tensor) -> Tensor:
        result: Tensor = self.fuse(each)
        return result


class CascadedEdges(EdgeNetwork):
    """BDCN: each resolution learns the edges of its own scale, which the finer and the coarser ones leave.

    Each gives two answers: one is added to what all finer ones found, one to what all coarser ones found
    (equations 2 to 4). What the others found is taken as it is: no gradient goes there. Before it answers a
    resolution looks around itself at several distances (the paper's scale enhancement module, one for each
    resolution of the encoder where the paper has one for each layer of VGG-16).

    Args:
        width: channels of these modules.
    """

    balance = 1.1

    def __init__(self, encoder: nn.Module, *, downscale: int, width: int) -> None:
        super().__init__(encoder, downscale=downscale)
        self.scales = nn.ModuleList([ScaleEnhancement(own, width) for own in self.widths])
        self.finer = nn.ModuleList([nn.Conv2d(_REDUCED, 1, 1) for _ in self.widths])
        self.coarser = nn.ModuleList([nn.Conv2d(_REDUCED, 1, 1) for _ in self.widths])
        self.fuse = _fusion(2 * len(self.widths))
        self.weights = (0.5,) * (2 * len(self.widths)) + (1.1,)

    def sides_of(self, features: list[Tensor], rows: int, cols: int) -> list[Tensor]:
        enhanced = [scale(feature) for scale, feature in zip(self.scales, features, strict=True)]
        finer, coarser = (
            [_enlarged(head(item), rows, cols) for head, item in zip(heads, enhanced, strict=True)]
            for heads in (self.finer, self.coarser)
        )
        return [*_added_up(finer), *reversed(_added_up(coarser[::-1]))]

    def fused(self, each: Tensor) -> Tensor:
        result: Tensor = self.fuse(each)
        return result


_REDUCED = 21  # channels that a scale enhancement module gives, as in the paper's code
_DISTANCE = 4  # pixels between the places that its first dilated convolution sees


class ScaleEnhancement(nn.Module):
    """Looks around at three distances, by dilated convolutions side by side.

    Args:
        channels: of the input.
        width: of the convolutions.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        reaches = [_DISTANCE * number for number in (1, 2, 3)]
        self.around = nn.ModuleList(
            [nn.Conv2d(width, width, 3, padding=reach, dilation=reach) for reach in reaches]
        )
        self.reduce = nn.Conv2d(width, _REDUCED, 1)

    def forward(self, x: Tensor) -> Tensor:  # (n, channels, rows, cols) -> (n, 21, rows, cols)
        x = functional.relu(self.first(x))
        total = x
        for look in self.around:
            total = total + functional.relu(look(x))
        reduced: Tensor = self.reduce(total)
        return reduced


def _added_up(answers: list[Tensor]) -> list[Tensor]:
    """Each answer with those before it, which do not learn from it."""
    sums = [answers[0]]
    for answer in answers[1:]:
        sums.append(answer + sums[-1].detach())
    return sums


def _fusion(sides: int) -> nn.Conv2d:
    """Begins as the mean of the sides."""
    fuse = nn.Conv2d(sides, 1, 1)
    nn.init.constant_(fuse.weight, 1.0 / sides)
    nn.init.zeros_(cast(Tensor, fuse.bias))
    return fuse


def _enlarged(x: Tensor, rows: int, cols: int) -> Tensor:
    return functional.interpolate(x, size=(rows, cols), mode="bilinear", align_corners=False)
