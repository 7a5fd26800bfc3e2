"""Networks that give every pixel a class: segmentation-models-pytorch's, around any encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tasks.errors import BadInputError
from tasks.train.models.encoders import WeightInit, build_encoder
from tasks.train.models.layers import scaling
from tasks.train.models.options import PixelOptions

_OWN_ENCODER = "chipline_encoder"


@dataclass(frozen=True)
class Architecture:
    """How a model type is built with segmentation-models-pytorch.

    Attributes:
        name: its class there.
        depth: resolutions of the encoder.
        output_stride: of the encoder.
        widths: its arguments that ``width`` sets, each with its share of it.
        decoder: whether it takes ``decoder_channels`` per resolution.
    """

    name: str
    depth: int = 5
    output_stride: int = 32
    widths: tuple[tuple[str, float], ...] = ()
    decoder: bool = False


ARCHITECTURES = {
    # Ronneberger et al., 2015
    "UNET": Architecture("Unet", decoder=True),
    # Zhou et al., 2018
    "UNETPLUSPLUS": Architecture("UnetPlusPlus", decoder=True),
    # Fan et al., 2020
    "MANET": Architecture("MAnet", decoder=True),
    # Chaurasia and Culurciello, 2017
    "LINKNET": Architecture("Linknet"),
    # Kirillov et al., "Panoptic Feature Pyramid Networks", 2019
    "FPN": Architecture(
        "FPN", widths=(("decoder_pyramid_channels", 1.0), ("decoder_segmentation_channels", 1.0))
    ),
    # Zhao et al., 2017
    "PSPNET": Architecture("PSPNet", depth=3, widths=(("psp_out_channels", 2.0),)),
    # Chen et al., "DeepLabv3+", 2018
    "DEEPLAB": Architecture("DeepLabV3Plus", output_stride=16, widths=(("decoder_channels", 1.0),)),
    # Xiao et al., 2018
    "UPERNET": Architecture("UPerNet", widths=(("decoder_channels", 1.0),)),
    # Xie et al., 2021: its decoder, on any encoder
    "SEGFORMER": Architecture("Segformer", widths=(("decoder_segmentation_channels", 1.0),)),
}


class PixelNetwork(nn.Module):
    """A segmentation network, between averaging the input and enlarging the scores where asked.

    Args:
        segmentation: (n, bands, rows, cols) -> (n, classes, rows, cols).
        downscale: the input is averaged over cells of ``downscale`` pixels, and scores are interpolated back.
    """

    def __init__(self, segmentation: nn.Module, *, downscale: int) -> None:
        super().__init__()
        self.shrink, self.enlarge = scaling(downscale)
        self.segmentation = segmentation

    def forward(self, x: Tensor) -> Tensor:  # (n, bands, rows, cols) -> logits (n, classes, rows, cols)
        scores: Tensor = self.enlarge(self.segmentation(self.shrink(x)))
        return scores


def build_pixel_network(
    model_type: str,
    backbone_model: str,
    options: PixelOptions,
    *,
    bands: Sequence[str],
    channels: int,
    pretrained: bool,
    scheme: WeightInit = "RANDOM",
) -> PixelNetwork:
    """The network of a model type, ready to train.

    Args:
        model_type: one of :data:`ARCHITECTURES`.
        bands: names of the input bands.
        channels: number of scores per pixel: the background and the classes.
        pretrained, scheme: of the encoder, see :func:`tasks.train.models.encoders.build_encoder`.

    Raises:
        BadInputError: the encoder does not fit the model type.
    """
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch import encoders

    chosen = ARCHITECTURES[model_type]
    encoder = build_encoder(
        backbone_model,
        bands=bands,
        depth=chosen.depth,
        pretrained=pretrained,
        scheme=scheme,
        output_stride=chosen.output_stride,
    )
    values: dict[str, Any] = {}
    if chosen.decoder:
        values["decoder_channels"] = options.decoder
    if options.width is not None:
        values.update({name: int(options.width * share) for name, share in chosen.widths})
    # smp takes encoders by name from its own table only.
    entry: dict[str, Any] = {"encoder": lambda **_: encoder, "params": {}, "pretrained_settings": {}}
    encoders.encoders[_OWN_ENCODER] = entry
    settled = ("set_in_channels", "make_dilated")  # smp would do again what build_encoder has done
    for method in settled:
        encoder.__dict__[method] = _nothing
    try:
        network = getattr(smp, chosen.name)(
            _OWN_ENCODER, encoder_weights=None, in_channels=len(bands), classes=channels, **values
        )
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise BadInputError(
            f"{model_type} cannot be built around {backbone_model}: {error}.",
            "Choose another backbone_model.",
        ) from error
    finally:
        del encoders.encoders[_OWN_ENCODER]
        for method in settled:
            del encoder.__dict__[method]
    return PixelNetwork(network, downscale=options.downscale)


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a method that has been called already."""
