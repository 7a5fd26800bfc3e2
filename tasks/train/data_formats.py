"""Which metadata formats a model type can learn from: those that hold what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.errors import BadInputError, TrainingDataError
from tasks.training_data.formats import format_of, formats_holding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tasks.train.parameters import TrainParameters
    from tasks.training_data import TrainingData
    from tasks.training_data.sample import Holding

_NEEDS: dict[str, tuple[Holding, str]] = {
    "pixels": ("masks", "class masks"),
    "objects": ("boxes", "boxes"),
    "instances": ("instances", "masks of single objects"),
    "panoptic": ("instances", "masks of single objects"),
    "labels": ("values", "a class of each chip"),
    "change": ("masks", "class masks"),
    "edges": ("masks", "class masks"),
    "roads": ("masks", "class masks"),
    "connected roads": ("masks", "class masks"),
}

# Pictures alone: here the format itself is what is needed.
_PICTURES = {
    "resolution": "Export_Tiles",
    "translation": "Export_Tiles",
    "fine translation": "Export_Tiles",
    "cycle": "CycleGAN",
}


def check_format(parameters: TrainParameters, metadata_format: str, where: str) -> None:
    """Refuse training data that does not hold what the model type learns from.

    Args:
        metadata_format: of the training data.
        where: its folder, for the message.

    Raises:
        TrainingDataError: with the formats that would do.
    """
    if parameters.kind in _PICTURES:
        wanted = _PICTURES[parameters.kind]
        if metadata_format != wanted:
            raise TrainingDataError(
                f"{parameters.model_type} learns from pictures, but {where} holds {metadata_format}.",
                f"Export the training data with metadata_format = {wanted}, or choose another model_type.",
            )
        return
    holding, words = _NEEDS[parameters.kind]
    try:
        fits = holding in format_of(metadata_format).holds
    except BadInputError:
        fits = False
    if not fits:
        raise TrainingDataError(
            f"{parameters.model_type} learns from {words}, but {where} holds {metadata_format}.",
            f"Export the training data with metadata_format = {' or '.join(formats_holding(holding))}, or "
            "choose another model_type.",
        )


def check_agreement(data: Sequence[TrainingData]) -> None:
    """Refuse folders that do not go together.

    Raises:
        TrainingDataError: with the first thing in which two of them differ.
    """
    first = _traits(data[0])
    for item in data[1:]:
        for (what, mine), (_, wanted) in zip(_traits(item), first, strict=True):
            if mine != wanted:
                raise TrainingDataError(
                    f"{item.folder} has another {what} than {data[0].folder}: {mine} in place of {wanted}.",
                    "Train on folders that were exported with the same settings.",
                )


def _traits(item: TrainingData) -> list[tuple[str, object]]:
    """What all folders of a training share; colours of classes are a matter of taste."""
    from tasks.training_data.images import pixel_type

    return [
        ("metadata format", item.metadata_format),
        ("list of classes", [(one.value, one.name) for one in item.classes]),
        ("tile size", item.tile_size),
        ("list of bands", item.band_names),
        ("pixel type", pixel_type(item.chips[0].image)),
        ("reference system", item.image_space),
    ]
