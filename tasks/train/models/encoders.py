"""Encoders by their ArcGIS or timm names; each gives features at strides 2, 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn

from tasks.errors import BadInputError
from tasks.train.models.backbones import LITE, TIMM_PREFIX, smp_name
from tasks.train.models.efficientnet_lite import EfficientNetLite0
from tasks.train.models.encoder_weights import EncoderStart, find_weights

WeightInit = Literal["RANDOM", "RED_BAND", "ALL_RANDOM"]
_RGB = ("red", "green", "blue")


def build_encoder(
    backbone_model: str,
    *,
    bands: Sequence[str],
    depth: int,
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
    output_stride: int = 32,
) -> nn.Module:
    """An encoder as segmentation-models-pytorch has them: it gives ``[x, stride 2, stride 4, …]``.

    Encoders whose features start at stride 4 (ConvNeXt, Swin) give an empty one at stride 2.

    Args:
        backbone_model: a checked name, see :func:`tasks.train.models.backbones.check_backbone`.
        bands: names of the input bands.
        depth: 1 to 5, the number of resolutions.
        pretrained: start from ImageNet weights. Those of EFFICIENTNET_LITE0 are installed with Chipline, the
            others are fetched from the Hugging Face hub, or taken from its local cache.
        scheme: how the first layer starts, see :func:`first_layer`.
        output_stride: 32, or 16 or 8 for dilated convolutions in place of the last strides.

    Raises:
        BadInputError: timm has no such encoder, it cannot be used so, or the weights cannot be fetched.
    """
    network = _plain(backbone_model, len(bands), depth, output_stride)
    if pretrained:
        start_encoder(network, backbone_model, bands=bands, scheme=scheme, start=EncoderStart())
    return network


def build_levels(
    backbone_model: str,
    *,
    finest: int,
    depth: int,
    downscale: int,
    bands: Sequence[str],
    pretrained: bool,
    scheme: WeightInit,
) -> tuple[nn.Module, list[int]]:
    """An encoder (see :func:`build_encoder`) of which some resolutions are used, and the channels of all.

    Args:
        finest: the first one that is used; its stride is ``2 ** finest``.
        depth: 1 to 5, the number of resolutions.
        downscale: pixels of the image to one of the encoder's input.

    Raises:
        BadInputError: see :func:`build_encoder`; or the encoder gives no features at that stride.
    """
    encoder = build_encoder(backbone_model, bands=bands, depth=depth, pretrained=pretrained, scheme=scheme)
    channels = [int(size) for size in cast("list[int]", encoder.out_channels)]
    if 0 in channels[finest:]:
        stride = downscale << finest
        raise BadInputError(
            f"The backbone {backbone_model} gives no features at a stride of {stride} pixels.",
            f"Give the model argument stride = {2 * stride}, or choose another backbone_model.",
        )
    return encoder, channels


def start_encoder(
    encoder: nn.Module, backbone_model: str, *, bands: Sequence[str], scheme: WeightInit, start: EncoderStart
) -> str:
    """Put the weights into an encoder that it starts from, and say which they are.

    Args:
        encoder: from :func:`build_encoder`, with random weights.
        bands: names of the input bands.
        scheme: how the first layer starts, see :func:`first_layer`.
        start: where the weights come from.

    Raises:
        BadInputError: the weights cannot be had, or are of another encoder.
    """
    found = find_weights(encoder, backbone_model, start, lambda: _fetched(backbone_model))
    if found is None:
        return f"random weights: those of {backbone_model} could not be fetched, and random ones are allowed"
    own = encoder.state_dict()
    first = _first_layer_of(encoder, len(bands)) + ".weight"
    state = dict(found.state)
    if state[first].shape[1] == len(_RGB):
        # Three bands are what the weights are of; the first layer is fitted to the bands at hand.
        state[first] = first_layer(state[first], bands, scheme, own[first])
    encoder.load_state_dict(state)
    return found.text


def first_layer(weight: Tensor, bands: Sequence[str], scheme: WeightInit, fresh: Tensor) -> Tensor:
    """Weights of the first convolution for any bands, from those for red, green and blue.

    The colours of the weights go to the bands of that name, where all three are there, else to the first
    three bands. RANDOM: other bands start with random weights; RED_BAND: with those of red; ALL_RANDOM: all
    bands start with random weights. Fewer than three bands get the mean of the colours each, scaled so that
    the size of the response stays, whatever the scheme says but ALL_RANDOM.

    Args:
        weight: (out, 3, rows, cols) of the trained encoder.
        bands: names of the bands.
        scheme: see above.
        fresh: (out, bands, rows, cols), random weights.
    """
    if scheme == "ALL_RANDOM":
        return fresh
    if len(bands) < len(_RGB):
        return weight.sum(dim=1, keepdim=True).expand_as(fresh) / len(bands)
    result = fresh.clone()
    if scheme == "RED_BAND":
        result[:] = weight[:, :1]
    for colour, band in enumerate(_colours(bands)):
        result[:, band] = weight[:, colour]
    return result


def _colours(bands: Sequence[str]) -> list[int]:
    names = [name.strip().lower() for name in bands]
    if all(names.count(colour) == 1 for colour in _RGB):
        return [names.index(colour) for colour in _RGB]
    return [0, 1, 2]


def _first_layer_of(encoder: nn.Module, bands: int) -> str:
    for name, child in encoder.named_modules():
        if isinstance(child, nn.Conv2d) and child.in_channels == bands:
            return str(name)
    raise BadInputError(
        "The encoder has no first convolution over the bands, which its ImageNet weights could be fitted to.",
        "Give the model argument pretrained = False, or choose another backbone_model.",
    )


def _plain(backbone_model: str, bands: int, depth: int, output_stride: int) -> nn.Module:
    """The encoder with random weights."""
    if backbone_model == LITE:
        return EfficientNetLite0(bands, depth, output_stride)
    from segmentation_models_pytorch.encoders import get_encoder

    try:
        return cast(
            nn.Module,
            get_encoder(
                smp_name(backbone_model),
                in_channels=bands,
                depth=depth,
                weights=None,
                output_stride=output_stride,
            ),
        )
    # RuntimeError: timm knows no such model.
    except (ValueError, RuntimeError, TypeError, KeyError, IndexError) as error:
        raise BadInputError(
            f"The backbone {backbone_model} cannot be used here: {error}.",
            "Choose another backbone_model. Of timm's, those fit that give features at strides 4 to 32 for "
            "pictures of any size"
            + (", and that can be dilated (DEEPLAB needs it)." if output_stride != 32 else "."),
        ) from error


def _fetched(backbone_model: str) -> nn.Module:
    """The encoder of three bands with its ImageNet weights, from the hub or its local cache.

    Its layers are named alike for every depth and stride.
    """
    from segmentation_models_pytorch.encoders import get_encoder

    network = get_encoder(smp_name(backbone_model), in_channels=len(_RGB), depth=5, weights="imagenet")
    return cast(nn.Module, network)


def check_exists(backbone_model: str) -> None:
    """Refuse a ``timm:`` name that timm does not know; loads timm only where it is asked for.

    Raises:
        BadInputError: with names that come near.
    """
    if not backbone_model.startswith(TIMM_PREFIX):
        return
    import difflib

    import timm

    name = backbone_model.removeprefix(TIMM_PREFIX)
    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5)
    raise BadInputError(
        f"timm has no encoder {name!r}.",
        f"Close to it: {', '.join(near)}." if near else "Look at timm.list_models() for the names.",
    )
