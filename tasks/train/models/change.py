"""Networks that compare two dates: one encoder for both, the difference of its features, a U-Net's decoder.

After Daudt et al., "Fully Convolutional Siamese Networks for Change Detection", 2018 (FC-Siam-diff and
FC-Siam-conc), with segmentation-models-pytorch's encoders and decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tasks.train.models.encoders import WeightInit, build_encoder
from tasks.train.models.layers import scaling
from tasks.train.models.options import ChangeOptions

_DEPTH = 5


class ChangeNetwork(nn.Module):
    """Both dates through the same encoder; what differs at each resolution goes to the decoder.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`; of the bands of one date.
        bands: of one date.
        channels: number of scores per pixel.
        decoder: channels of the decoder, coarsest resolution first.
        concatenate: both dates' features side by side, in place of the size of their difference.
        downscale: the input is averaged over cells of so many pixels, and scores are interpolated back.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        bands: int,
        channels: int,
        decoder: Sequence[int],
        concatenate: bool,
        downscale: int,
    ) -> None:
        super().__init__()
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        self.bands = bands
        self.concatenate = concatenate
        self.shrink, self.enlarge = scaling(downscale)
        self.encoder = encoder
        widths = [(2 if concatenate else 1) * int(width) for width in cast("list[int]", encoder.out_channels)]
        self.decoder = UnetDecoder(
            encoder_channels=widths, decoder_channels=tuple(decoder), n_blocks=len(decoder)
        )
        self.head = nn.Conv2d(decoder[-1], channels, 3, padding=1)
        initialize_decoder(self.decoder)
        initialize_head(self.head)

    def forward(self, x: Tensor) -> Tensor:  # (n, bands of both dates, rows, cols) -> (n, scores, rows, cols)
        small = self.shrink(x)
        before = self.encoder(small[:, : self.bands])
        after = self.encoder(small[:, self.bands :])
        features = [self._compared(one, other) for one, other in zip(before, after, strict=True)]
        scores: Tensor = self.enlarge(self.head(self.decoder(features)))
        return scores

    def _compared(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.cat([before, after], dim=1) if self.concatenate else torch.abs(after - before)


def build_change_network(
    backbone_model: str,
    options: ChangeOptions,
    *,
    bands: Sequence[str],
    channels: int,
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> ChangeNetwork:
    """The network of CHANGEDETECTOR, ready to train.

    Args:
        bands: names of the bands of one date.
        channels: number of scores per pixel: no change, and the kinds of change.
        pretrained, scheme: of the encoder, see :func:`tasks.train.models.encoders.build_encoder`.

    Raises:
        BadInputError: there is no such encoder, or its weights cannot be fetched.
    """
    encoder = build_encoder(backbone_model, bands=bands, depth=_DEPTH, pretrained=pretrained, scheme=scheme)
    return ChangeNetwork(
        encoder,
        bands=len(bands),
        channels=channels,
        decoder=options.decoder,
        concatenate=options.fusion == "concatenation",
        downscale=options.downscale,
    )
