"""Blocks that several of our networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_TEMPERATURE = 10_000.0  # of the wave lengths that places are told by


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


def counted(line: Tensor) -> Tensor:
    """1, 2, … as float32, as many as ``line`` has: a count that a trace follows, unlike ``torch.arange``."""
    return torch.ones_like(line, dtype=torch.int64).cumsum(0).float()


def places(cells: Tensor, width: int, *, step: int = 1) -> Tensor:
    """Waves by which the cells of a map are told apart, sines and cosines  # (1, rows cols, width).

    Args:
        cells: the map  # (n, channels, rows, cols)
        step: edge of a cell, in the cells that places are counted in.
    """
    lengths = [_TEMPERATURE ** -(4 * number / width) for number in range(width // 4)]
    rows, cols = cells.shape[2], cells.shape[3]
    waves = []
    for axis, line in enumerate((cells[0, 0, :, 0], cells[0, 0, 0, :])):
        middle = (counted(line) - 1) * step + (step - 1) / 2
        angles = middle[:, None] * line.float().new_tensor(lengths)
        for wave in (angles.sin(), angles.cos()):
            spread = wave[:, None, :] if axis == 0 else wave[None, :, :]
            waves.append(spread.expand(rows, cols, width // 4))
    return torch.cat(waves, dim=-1).flatten(0, 1)[None].to(cells.dtype)
