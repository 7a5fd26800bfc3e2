"""Blocks that several of our networks are made of."""

from __future__ import annotations

from torch import Tensor, nn


def convolution(before: int, after: int, *, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution, its normalisation and ReLU; it keeps rows and columns, or divides them by the stride."""
    return [
        nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]


def scaling(downscale: int) -> tuple[nn.Module, nn.Module]:
    """Averages a picture over cells of so many pixels, and interpolates scores back; 1: neither."""
    if downscale == 1:
        return nn.Identity(), nn.Identity()
    enlarge = nn.Upsample(scale_factor=float(downscale), mode="bilinear", align_corners=False)
    return nn.AvgPool2d(downscale), enlarge


class Residual(nn.Module):
    """Two convolutions beside the way straight through.

    Args:
        width: channels of the input and of the output.
        inner: channels between the two convolutions.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(width, inner),
            nn.Conv2d(inner, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.end = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (n, width, rows, cols) -> the same
        result: Tensor = self.end(x + self.layers(x))
        return result
