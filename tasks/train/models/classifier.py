"""Networks that give a whole chip its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from tasks.train.models.encoders import WeightInit, build_encoder
from tasks.train.models.options import ClassifierOptions


class ChipClassifier(nn.Module):
    """An encoder, the mean of its coarsest feature over the chip, and one linear layer.

    Args:
        encoder: see :func:`tasks.train.models.encoders.build_encoder`.
        classes: number of scores.
    """

    def __init__(self, encoder: nn.Module, *, classes: int, downscale: int, dropout: float) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(downscale) if downscale > 1 else nn.Identity()
        self.encoder = encoder
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(int(cast(list[int], encoder.out_channels)[-1]), classes)

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols) -> logits (n, classes)
        feature = self.encoder(self.shrink(x))[-1]
        logits: Tensor = self.head(self.dropout(self.flatten(self.pool(feature))))
        return logits


def build_classifier(
    backbone_model: str,
    options: ClassifierOptions,
    *,
    bands: Sequence[str],
    classes: int,
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> ChipClassifier:
    """The classifier, ready to train."""
    encoder = build_encoder(backbone_model, bands=bands, depth=5, pretrained=pretrained, scheme=scheme)
    return ChipClassifier(encoder, classes=classes, downscale=options.downscale, dropout=options.dropout)
