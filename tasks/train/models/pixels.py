"""Networks that give every pixel a class."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tasks.train.models.encoders import LITE, build_encoder, smp_name
from tasks.train.models.options import PixelOptions


class PixelNetwork(nn.Module):
    """A segmentation network, between averaging the input and enlarging the scores where asked.

    Args:
        segmentation: (n, bands, rows, cols) -> (n, classes, rows, cols).
        downscale: the input is averaged over cells of ``downscale`` pixels, and scores are interpolated back.
    """

    def __init__(self, segmentation: nn.Module, *, downscale: int) -> None:
        super().__init__()
        self.shrink: nn.Module = nn.Identity()
        self.enlarge: nn.Module = nn.Identity()
        if downscale > 1:
            self.shrink = nn.AvgPool2d(downscale)
            self.enlarge = nn.Upsample(scale_factor=float(downscale), mode="bilinear", align_corners=False)
        self.segmentation = segmentation

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols) -> logits (n, classes, rows, cols)
        scores: Tensor = self.enlarge(self.segmentation(self.shrink(x)))
        return scores


def build_unet(
    backbone_model: str, options: PixelOptions, *, bands: int, channels: int, pretrained: bool
) -> PixelNetwork:
    """A U-Net (Ronneberger et al., 2015) of segmentation-models-pytorch.

    Args:
        channels: number of scores per pixel: the background and the classes.
    """
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch import encoders

    if backbone_model == LITE:
        encoder: nn.Module = build_encoder(backbone_model, bands=bands, depth=5, pretrained=pretrained)
        # smp takes encoders by name from its own table only.
        entry: dict[str, Any] = {"encoder": lambda **_: encoder, "params": {}, "pretrained_settings": {}}
        name = "chipline_efficientnet_lite0"
        encoders.encoders[name] = entry
        try:
            unet = smp.Unet(
                name,
                encoder_weights=None,
                in_channels=bands,
                decoder_channels=options.decoder,
                classes=channels,
            )
        finally:
            del encoders.encoders[name]
    else:
        encoder = build_encoder(backbone_model, bands=bands, depth=5, pretrained=pretrained)
        unet = smp.Unet(
            smp_name(backbone_model),
            encoder_weights=None,
            in_channels=bands,
            decoder_channels=options.decoder,
            classes=channels,
        )
        unet.encoder.load_state_dict(encoder.state_dict())
    return PixelNetwork(unet, downscale=options.downscale)
