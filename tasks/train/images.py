"""What a training of a model that makes pictures consists of: chips, samples, network, module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from tasks.errors import TrainingDataError
from tasks.package.network_source import emit_network, emit_networks
from tasks.train.image_chips import Pictures, SideChip, TranslationChips, UnpairedChips
from tasks.train.image_modules import CycleModule, HighResolutionModule, ImageModule, PairedModule
from tasks.train.models.options import (
    CycleOptions,
    HighResolutionOptions,
    ImageOptions,
    ResolutionOptions,
    TranslationOptions,
)
from tasks.train.models.translation import (
    BothWays,
    Generator,
    build_enhanced_generator,
    build_generator,
)
from tasks.train.modules import TrainingModule
from tasks.train.normalisation import Normalisation
from tasks.train.pairs import check_pairs, normalisation_for, second_pictures
from tasks.train.parameters import IMAGE_KINDS, LINE_KINDS, TRANSLATIONS, TrainParameters
from tasks.train.splits import Footprint, Split, overlapping
from tasks.training_data import Chip, TrainingData, read_chip_image, read_chip_image2


def check_pictures(parameters: TrainParameters, item: TrainingData) -> None:
    """Refuse folders whose pictures or classes are not as the model type needs them.

    Raises:
        TrainingDataError: with the remedy.
    """
    if parameters.kind in LINE_KINDS and len(item.classes) != 1:
        raise TrainingDataError(
            f"{parameters.model_type} learns one class; {item.folder} has {len(item.classes)}.",
            "Export labels of one class, or choose a model of pixels such as UNET.",
        )
    second = [chip for chip in item.chips if chip.image2 is not None]
    if parameters.kind in ("change", *TRANSLATIONS) or (parameters.kind == "resolution" and second):
        check_pairs(parameters.model_type, item, same_bands=parameters.kind not in TRANSLATIONS)
    elif parameters.kind == "cycle":
        other = item.other
        if other is None or other.bands != item.bands:
            raise TrainingDataError(
                f"{parameters.model_type} learns from two sides with the same bands; {item.folder} has "
                + ("one side." if other is None else f"{item.bands} bands in A and {other.bands} in B."),
                "Export the training data as CycleGAN with additional_input_raster, from the same bands.",
            )
    elif second:
        raise TrainingDataError(
            f"{item.folder} holds pairs of pictures; {parameters.model_type} learns from single ones.",
            "Export the training data without additional_input_raster.",
        )


def sides_of(data: Sequence[TrainingData]) -> list[TrainingData]:
    """The folders; of those with two sides A, then B, each as training data whose chips know their side."""
    found = []
    for item in data:
        sides = {"": item} if item.other is None else {"A": replace(item, other=None), "B": item.other}
        for side, one in sides.items():
            marked: list[Chip] = [SideChip.of(chip, side) for chip in one.chips] if side else one.chips
            found.append(replace(one, chips=marked))
    return found


def split_sides(
    chips: Sequence[Chip],
    footprints: Sequence[Footprint],
    split: Callable[[list[Footprint]], Split],
) -> Split:
    """Both sides of CycleGAN data split, each by itself; neither learns from the other's validation ground.

    Args:
        footprints: of the chips.
        split: of one side.

    Raises:
        TrainingDataError: no training chip would be left of a side.
    """
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    members = {
        side: [i for i, chip in enumerate(chips) if isinstance(chip, SideChip) and chip.side == side]
        for side in ("A", "B")
    }
    for indices in members.values():
        found = split([footprints[index] for index in indices])
        for part, chosen in zip(parts, (found.train, found.validation, found.dropped), strict=True):
            part += [indices[number] for number in chosen]
    train, validation, dropped = parts
    hit = overlapping(footprints, validation)
    dropped += [index for index in train if hit[index]]
    train = [index for index in train if not hit[index]]
    for side, indices in members.items():
        if not set(indices) & set(train):
            raise TrainingDataError(
                f"Each chip of side {side} overlaps chips that would be kept for validation.",
                "Export more chips, or lower validation_percent.",
            )
    return Split(tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(dropped)))


def output_normalisation(
    parameters: TrainParameters, data: Sequence[TrainingData], apart: Sequence[TrainingData]
) -> Normalisation | None:
    """How pixel values of the pictures that are made become the network's output; None for other models.

    Raises:
        TrainingDataError: a band that is constant over all chips, or statistics of another scale.
    """
    if parameters.kind not in IMAGE_KINDS:
        return None
    if parameters.kind == "cycle":
        return normalisation_for(*([item.other for item in part if item.other] for part in (data, apart)))
    if parameters.kind in TRANSLATIONS:
        return normalisation_for(*([second_pictures(item) for item in part] for part in (data, apart)))
    return normalisation_for(data, apart)


def picture_samples(
    options: ImageOptions,
    chips: list[Chip],
    output: Normalisation | None,
    shared: dict[str, Any],
    scale: float,
) -> Pictures:
    """Chips as samples of pictures, enlarged by ``scale``; ``shared``: what all samples take."""
    assert output is not None
    given = {**shared, "output": output}
    if isinstance(options, CycleOptions):
        return UnpairedChips(chips, **given)
    factor = options.downsample_factor if isinstance(options, ResolutionOptions) else None
    return TranslationChips(chips, factor=factor, scale=scale, **given)


def assemble_pictures(
    parameters: TrainParameters,
    options: ImageOptions,
    train_set: Pictures,
    encoder: dict[str, Any],
    shared: dict[str, Any],
) -> tuple[TrainingModule, str]:
    """The network of the model type, ready to train, in its module, and its source.

    Args:
        encoder: bands, and how it starts.
        shared: what every module takes.

    Raises:
        BadInputError, PackageError: a backbone that does not fit, or that cannot be written out.
    """
    names = tuple(encoder["bands"])
    count = len(train_set.output.mean)
    output_names = names if count == len(names) else tuple(f"Band {i + 1}" for i in range(count))

    def generator(*, residual: bool) -> Generator:
        return build_generator(
            parameters.backbone_model,
            output_bands=count,
            decoder=options.decoder,
            residual=residual,
            **encoder,
        )

    given = {
        "options": options,
        "bands": output_names,
        "normalisation": train_set.normalisation,
        "output": train_set.output,
        **shared,
    }
    if isinstance(options, CycleOptions):
        both = BothWays(generator(residual=True), generator(residual=True))
        ways = {"a_to_b": both.a_to_b, "b_to_a": both.b_to_a}
        parts = nn.ModuleList([both.a_to_b.encoder, both.b_to_a.encoder])
        return CycleModule(both, encoder=parts, **given), emit_networks(ways)
    if isinstance(options, HighResolutionOptions):
        enhanced = build_enhanced_generator(
            parameters.backbone_model,
            output_bands=count,
            decoder=options.decoder,
            global_blocks=options.global_blocks,
            local_blocks=options.local_blocks,
            width=options.width,
            **encoder,
        )
        source = emit_network(enhanced)
        return HighResolutionModule(enhanced, encoder=enhanced.encoder, **given), source
    network = generator(residual=isinstance(options, ResolutionOptions))
    source = emit_network(network)
    if isinstance(options, TranslationOptions):
        return PairedModule(network, encoder=network.encoder, **given), source
    return ImageModule(network, encoder=network.encoder, compared=True, **given), source


_MODEL_TYPES = {
    "SUPERRESOLUTION": "SuperResolution",
    "PIX2PIX": "Pix2Pix",
    "PIX2PIXHD": "Pix2PixHD",
    "CYCLEGAN": "CycleGAN",
}


def translation_keys(
    parameters: TrainParameters, data: TrainingData, module: ImageModule | CycleModule
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the definition of a package says of pictures that it makes: under our own key, and beside it."""
    first, chip = module.normalisation, data.chips[0]
    if isinstance(module, CycleModule):
        assert data.other is not None  # check_pictures has seen it
        types = [read_chip_image(one).dtype.name for one in (chip, data.other.chips[0])]
        ways = {
            "AtoB": _way("a_to_b", first, module.output, types[1]),
            "BtoA": _way("b_to_a", module.output, first, types[0]),
        }
    else:
        target = read_chip_image2(chip) if parameters.kind in TRANSLATIONS else read_chip_image(chip)
        ways = {"forward": _way("", first, module.output, target.dtype.name)}
    further: dict[str, Any] = {"ModelType": _MODEL_TYPES[parameters.model_type]}
    if isinstance(module.options, ResolutionOptions):
        further["downsample_factor"] = module.options.downsample_factor
    return {"Translation": ways}, further


def _way(network: str, given: Normalisation, made: Normalisation, pixel_type: str) -> dict[str, Any]:
    factor, nothing = made.factor.astype(float), made.nothing.astype(float)
    return {
        "Network": network,
        "Input": {"Factor": given.factor.tolist(), "Summand": given.nothing.tolist()},
        "Output": {"Factor": (1 / factor).tolist(), "Summand": (-nothing / factor).tolist()},
        "PixelType": pixel_type,
    }
