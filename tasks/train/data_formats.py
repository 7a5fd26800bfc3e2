"""Which metadata formats a model type can learn from: those that hold what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.errors import BadInputError, TrainingDataError
from tasks.training_data.formats import format_of, formats_holding

if TYPE_CHECKING:
    from tasks.train.parameters import TrainParameters
    from tasks.training_data.sample import Holding

_NEEDS: dict[str, tuple[Holding, str]] = {
    "pixels": ("masks", "class masks"),
    "objects": ("boxes", "boxes"),
    "instances": ("instances", "masks of single objects"),
    "labels": ("values", "a class of each chip"),
    "change": ("masks", "class masks"),
}


def check_format(parameters: TrainParameters, metadata_format: str, where: str) -> None:
    """Refuse training data that does not hold what the model type learns from.

    Args:
        metadata_format: of the training data.
        where: its folder, for the message.

    Raises:
        TrainingDataError: with the formats that would do.
    """
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
