"""Networks for roads, which learn more of a road than where it is: which way it runs, and what it joins.

After Batra et al., "Improved Road Connectivity by Joint Learning of Orientation and Segmentation", 2019. What
``CONNECTNET`` learns beside, which pixels and neighbours lie on one road, is after Kampffmeyer et al.,
"ConnNet: A Long-Range Relation-Aware Pixel-Connectivity Network for Salient Segmentation", 2018, at two
distances as in Mei et al., "CoANet: Connectivity Attention Network for Road Extraction", 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tasks.train.models.layers import Residual, convolution, scaling

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
REACHES = (1, 3)
"""Pixels to the neighbours that a pixel may be connected with."""
ROADS = 2  # scores: of no road, and of a road


@dataclass(frozen=True)
class RoadAnswer:
    """Logits of one answer.

    Attributes:
        roads: # (n, 2, rows, cols)
        directions: # (n, bins, rows, cols)
        connections: with each neighbour at each reach # (n, 8 reaches, rows, cols); None: not learnt.
    """

    roads: Tensor
    directions: Tensor
    connections: Tensor | None


class RoadNetwork(nn.Module):
    """Logits (n, 2, rows, cols): of no road, and of a road. All else it tells helps in training only.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`.
        directions: number of bins that 180 degrees are divided into.
        connected: also learns connections.
        downscale: the input is averaged over cells of so many pixels, and scores are interpolated back.
    """

    def __init__(self, encoder: nn.Module, *, directions: int, connected: bool, downscale: int) -> None:
        super().__init__()
        self.shrink, self.enlarge = scaling(downscale)
        self.encoder = encoder
        self.outputs = [ROADS, directions, *([len(NEIGHBOURS) * len(REACHES)] if connected else [])]

    def told(self, x: Tensor, branches: int) -> list[list[Tensor]]:
        """The logits of the first branches, answer by answer; the last answer is the one that counts.

        Args:
            x: # (n, bands, rows, cols)
            branches: 1: roads only.
        """
        raise NotImplementedError

    def answers(self, x: Tensor) -> list[RoadAnswer]:
        """All that is told, each of the size of the input; the last one is what counts."""
        found = []
        for parts in self.told(x, len(self.outputs)):
            whole = [self.enlarge(part) for part in parts]
            found.append(RoadAnswer(whole[0], whole[1], whole[2] if len(whole) > 2 else None))
        return found

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols) -> logits (n, 2, rows, cols)
        scores: Tensor = self.enlarge(self.told(x, 1)[-1][0])
        return scores


class DecodedRoads(RoadNetwork):
    """One decoder for all branches: a U-Net's (``unet``) or LinkNet's (``linknet``).

    Args:
        decoder: channels of the U-Net's decoder, coarsest resolution first; None: LinkNet's.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        decoder: Sequence[int] | None,
        directions: int,
        connected: bool,
        downscale: int,
    ) -> None:
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        super().__init__(encoder, directions=directions, connected=connected, downscale=downscale)
        widths = [int(width) for width in cast("list[int]", encoder.out_channels)]
        if decoder is None:
            last = _LINKNET_WIDTH
            self.decoder: nn.Module = LinknetDecoder(widths, prefinal_channels=last, n_blocks=len(widths) - 1)
        else:
            last = decoder[-1]
            self.decoder = UnetDecoder(
                encoder_channels=widths, decoder_channels=tuple(decoder), n_blocks=len(decoder)
            )
        self.heads = nn.ModuleList([nn.Conv2d(last, count, 3, padding=1) for count in self.outputs])
        initialize_decoder(self.decoder)
        for head in self.heads:
            initialize_head(head)

    def told(self, x: Tensor, branches: int) -> list[list[Tensor]]:
        features = self.decoder(self.encoder(self.shrink(x)))
        return [[head(features) for head in list(self.heads)[:branches]]]


_LINKNET_WIDTH = 32
_LEVELS = 3  # of an hourglass, from stride 4 down to stride 32
_FINE_WIDTH = 32  # channels at the input's resolution


class StackedRoads(RoadNetwork):
    """Hourglasses one after the other, each of which looks at what the one before found (``hourglass``).

    The first resolutions of the encoder bring the picture to a quarter of its size. Each hourglass goes down
    once for all branches and up again for each, and answers at that size; features and answers are added up
    for the next one. What the last one gives is brought back to the size of the input.

    Args:
        width: channels of the hourglasses.
        stacks: how many there are.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: int,
        stacks: int,
        directions: int,
        connected: bool,
        downscale: int,
    ) -> None:
        super().__init__(encoder, directions=directions, connected=connected, downscale=downscale)
        first = int(cast("list[int]", encoder.out_channels)[-1])
        self.entry = nn.Sequential(nn.Conv2d(first, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stacks = nn.ModuleList([Hourglass(width, len(self.outputs)) for _ in range(stacks)])
        self.coarse = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(width, count, 1) for count in self.outputs]) for _ in range(stacks - 1)]
        )
        self.features_on = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(width, width, 1) for _ in self.outputs]) for _ in range(stacks - 1)]
        )
        self.answers_on = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(count, width, 1) for count in self.outputs]) for _ in range(stacks - 1)]
        )
        self.up = nn.Upsample(scale_factor=4.0, mode="bilinear", align_corners=False)
        self.fine = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Upsample(scale_factor=2.0, mode="nearest"),
                    *convolution(width, _FINE_WIDTH),
                    nn.Upsample(scale_factor=2.0, mode="nearest"),
                    *convolution(_FINE_WIDTH, _FINE_WIDTH),
                    nn.Conv2d(_FINE_WIDTH, count, 1),
                )
                for count in self.outputs
            ]
        )

    def told(self, x: Tensor, branches: int) -> list[list[Tensor]]:
        features = self.entry(self.encoder(self.shrink(x))[-1])
        found: list[list[Tensor]] = []
        for number, stack in enumerate(self.stacks):
            last = number == len(self.stacks) - 1
            # Whatever is asked for, all branches go on to the next hourglass.
            streams = cast(Hourglass, stack)(features, branches if last else len(self.outputs))
            if last:
                found.append([fine(s) for fine, s in zip(self.fine, streams, strict=False)])
                break
            parts = [
                cast(nn.ModuleList, group[number])
                for group in (self.coarse, self.features_on, self.answers_on)
            ]
            answers = [head(stream) for head, stream in zip(parts[0], streams, strict=True)]
            for on, given in ((parts[1], streams), (parts[2], answers)):
                for layer, one in zip(on, given, strict=True):
                    features = features + layer(one)
            found.append([self.up(answer) for answer in answers[:branches]])
        return found


class Hourglass(nn.Module):
    """Down once, up again for each branch.

    Args:
        width: channels.
        branches: how many ways up.
    """

    def __init__(self, width: int, branches: int) -> None:
        super().__init__()
        self.skips = nn.ModuleList([Residual(width, width // 2) for _ in range(_LEVELS)])
        self.down = nn.ModuleList([Residual(width, width // 2) for _ in range(_LEVELS)])
        self.up = nn.ModuleList(
            [nn.ModuleList([Residual(width, width // 2) for _ in range(_LEVELS)]) for _ in range(branches)]
        )
        self.shrink = nn.MaxPool2d(2)
        self.enlarge = nn.Upsample(scale_factor=2.0, mode="nearest")

    def forward(self, x: Tensor, branches: int) -> list[Tensor]:
        """# (n, width, rows, cols), multiples of 8 -> of each branch the same."""
        aside = []
        for skip, step in zip(self.skips, self.down, strict=True):
            aside.append(skip(x))
            x = step(self.shrink(x))
        streams = []
        for way in list(self.up)[:branches]:
            stream = x
            steps = list(cast(nn.ModuleList, way))
            for step, kept in zip(steps, reversed(aside), strict=True):
                stream = kept + self.enlarge(step(stream))
            streams.append(stream)
        return streams


def connections_of(roads: Tensor) -> Tensor:
    """Which pixels lie on a road together with a neighbour.

    Args:
        roads: 1 on roads, else 0  # (n, rows, cols) float32

    Returns:
        1 where both do, for each of ``REACHES`` the ``NEIGHBOURS`` in their order; beyond the picture there
        is no road  # (n, 8 reaches, rows, cols) float32
    """
    rows, cols = roads.shape[-2:]
    most = max(REACHES)
    frame = nn.functional.pad(roads, (most,) * 4)
    found = [
        roads * frame[:, most + reach * down : most + reach * down + rows, most + reach * right :][..., :cols]
        for reach in REACHES
        for down, right in NEIGHBOURS
    ]
    return torch.stack(found, dim=1)
