"""Packages of one convolution, so that a test can say what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.labels import ClassSchema
from tasks.package import Package, open_package
from tasks.package.build import build_package

_SOURCE = """
import torch


class Near(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d({bands}, {scores}, {size}, padding={size} // 2)

    def forward(self, images):
        return self.head(images)


def build():
    return Near()
"""


@dataclass(frozen=True)
class _Scaled:
    """Pixel values from 0 to ``maximum`` become the network's input: from 0 to 1, then by mean and std."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    imagenet: bool = False


def one_layer(
    folder: Path,
    weight: Tensor,
    bias: Tensor,
    classes: Mapping[int, str],
    *,
    scale: tuple[float, float, float] = (255.0, 0.0, 1.0),
    **more: Any,
) -> Package:
    """A package for pixels of tiles of 64 with 16 of padding, made and opened.

    Args:
        weight: of the convolution  # (scores, bands, size, size)
        bias: # (scores,)
        classes: names by value, after the background.
        scale: the largest pixel value, mean and standard deviation, alike for all bands.
        more: other arguments of ``build_package``.
    """
    scores, bands, size, _ = weight.shape
    maximum, mean, std = ((value,) * bands for value in scale)
    values: dict[str, Any] = {"tile_size": 64, "padding": 16, "batch_size": 4, "cell_size": 0.5, **more}
    path = build_package(
        kind="pixels",
        name="near",
        network_source=_SOURCE.format(bands=bands, scores=scores, size=size),
        state_dict={"head.weight": weight, "head.bias": bias},
        classes=ClassSchema.from_values(dict(classes)),
        normalisation=_Scaled((0.0,) * bands, maximum, mean, std),
        wkid=32612,
        band_names=[str(number + 1) for number in range(bands)],
        metrics={},
        metrics_html="<html></html>",
        characteristics={},
        extra_definition={},
        into=folder,
        **values,
    )
    return open_package(path, folder / "near")
