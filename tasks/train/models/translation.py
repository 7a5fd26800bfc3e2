"""Networks that make pictures of pictures, and those that judge them in training.

The generator is a U-Net (Ronneberger et al., 2015) of segmentation-models-pytorch's parts. All it computes
with depends on a pixel's surroundings alone: no layer normalises over the whole tile, so that tiles fit
together without seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from tasks.train.models.encoders import WeightInit, build_encoder
from tasks.train.models.layers import Residual, convolution

_DEPTH = 5


class Generator(nn.Module):
    """Gives a picture of the size of its input.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`.
        bands: of the output.
        decoder: channels of the decoder, coarsest resolution first.
        residual: what is computed is added to the input, and starts as nothing; the bands are the same then.
    """

    def __init__(self, encoder: nn.Module, *, bands: int, decoder: Sequence[int], residual: bool) -> None:
        super().__init__()
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        self.residual = residual
        self.encoder = encoder
        widths = [int(width) for width in cast("list[int]", encoder.out_channels)]
        self.decoder = UnetDecoder(
            encoder_channels=widths, decoder_channels=tuple(decoder), n_blocks=len(decoder)
        )
        self.head = nn.Conv2d(decoder[-1], bands, 3, padding=1)
        initialize_decoder(self.decoder)
        initialize_head(self.head)
        if residual:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols), normalised -> the same, normalised
        made: Tensor = self.head(self.decoder(self.encoder(x)))
        return x + made if self.residual else made


class EnhancedGenerator(nn.Module):
    """Coarse to fine: a U-Net at half of the resolution, and around it layers at the whole one.

    After Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs", 2018
    (pix2pixHD): the U-Net, with an encoder in place of the paper's first layers, is its global generator, the
    layers around are its local enhancer.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`; of depth 4.
        bands: of the output.
        decoder: channels of the U-Net's decoder, coarsest resolution first; as many as the encoder is deep.
        global_blocks: residual blocks between encoder and decoder.
        local_blocks: the same in the layers around.
        width: channels of the layers around at half of the resolution; half of it at the whole one.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        bands: int,
        decoder: Sequence[int],
        global_blocks: int,
        local_blocks: int,
        width: int,
    ) -> None:
        super().__init__()
        from segmentation_models_pytorch.base.initialization import initialize_decoder
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        self.encoder = encoder
        widths = [int(channels) for channels in cast("list[int]", encoder.out_channels)]
        self.shrink = nn.AvgPool2d(2)
        self.middle = nn.Sequential(*[Residual(widths[-1], widths[-1]) for _ in range(global_blocks)])
        self.decoder = UnetDecoder(
            encoder_channels=widths, decoder_channels=tuple(decoder), n_blocks=len(decoder)
        )
        initialize_decoder(self.decoder)
        self.first = nn.Sequential(
            *convolution(widths[0], width // 2, size=7), *convolution(width // 2, width, stride=2)
        )
        self.join = nn.Conv2d(decoder[-1], width, 1)
        self.last = nn.Sequential(
            *[Residual(width, width) for _ in range(local_blocks)],
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            *convolution(width, width // 2),
            nn.Conv2d(width // 2, bands, 7, padding=3),
        )

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols), normalised -> the same, normalised
        features = self.encoder(self.shrink(x))
        coarse = self.decoder([*features[:-1], self.middle(features[-1])])
        made: Tensor = self.last(self.first(x) + self.join(coarse))
        return made


class PatchDiscriminator(nn.Module):
    """Judges patches of 70 x 70 pixels (Isola et al., "Image-to-Image Translation…", 2017, PatchGAN).

    Its normalisation is that of each picture: real and made ones are judged apart, in batches of any size.

    Args:
        bands: of what is judged.
        width: channels of the first layer.
    """

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(bands, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number, stride in enumerate((2, 2, 1)):
            before, after = width * 2**number, width * 2 ** (number + 1)
            layers += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                nn.InstanceNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width * 8, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols) -> (n, 1, about rows / 8, cols / 8)
        scores: Tensor = self.layers(x)
        return scores

    def told(self, x: Tensor) -> list[Tensor]:
        """What each layer makes of pictures, and the scores at the end."""
        found = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                found.append(x)
        return [*found, x]


class PyramidDiscriminator(nn.Module):
    """Several judges, each of which sees the pictures at half of the resolution of the one before.

    Source: Wang et al., 2018, section 3.2.

    Args:
        bands, width: of each, see :class:`PatchDiscriminator`.
        judges: how many.
    """

    def __init__(self, bands: int, width: int, judges: int) -> None:
        super().__init__()
        self.judges = nn.ModuleList([PatchDiscriminator(bands, width) for _ in range(judges)])
        self.shrink = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """Of each judge what its layers make of the pictures, and its scores at the end."""
        found = []
        for number, judge in enumerate(self.judges):
            x = self.shrink(x) if number else x
            found.append(cast(PatchDiscriminator, judge).told(x))
        return found


def build_generator(
    backbone_model: str,
    *,
    bands: Sequence[str],
    output_bands: int,
    decoder: Sequence[int],
    residual: bool,
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> Generator:
    """A generator, ready to train.

    Args:
        bands: names of the input's.
        pretrained, scheme: of the encoder, see :func:`tasks.train.models.encoders.build_encoder`.

    Raises:
        BadInputError: there is no such encoder, or its weights cannot be fetched.
    """
    encoder = build_encoder(backbone_model, bands=bands, depth=_DEPTH, pretrained=pretrained, scheme=scheme)
    return Generator(encoder, bands=output_bands, decoder=decoder, residual=residual)


def build_enhanced_generator(
    backbone_model: str,
    *,
    bands: Sequence[str],
    output_bands: int,
    decoder: Sequence[int],
    global_blocks: int,
    local_blocks: int,
    width: int,
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> EnhancedGenerator:
    """The generator of PIX2PIXHD, ready to train.

    Args:
        bands: names of the input's.
        decoder: of the five resolutions of the input; the finest is left out.
        global_blocks, local_blocks, width: see :class:`EnhancedGenerator`.
        pretrained, scheme: of the encoder, see :func:`tasks.train.models.encoders.build_encoder`.

    Raises:
        BadInputError: there is no such encoder, or its weights cannot be fetched.
    """
    encoder = build_encoder(
        backbone_model, bands=bands, depth=_DEPTH - 1, pretrained=pretrained, scheme=scheme
    )
    return EnhancedGenerator(
        encoder,
        bands=output_bands,
        decoder=decoder[: _DEPTH - 1],
        global_blocks=global_blocks,
        local_blocks=local_blocks,
        width=width,
    )


class BothWays(nn.Module):
    """The two generators of CYCLEGAN."""

    def __init__(self, a_to_b: Generator, b_to_a: Generator) -> None:
        super().__init__()
        self.a_to_b = a_to_b
        self.b_to_a = b_to_a
