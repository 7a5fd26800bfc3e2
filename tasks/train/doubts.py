"""What a training can be doubted for: told in its log, in MLflow, on its page and in its metrics."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.train.parameters import TrainParameters
from tasks.train.splits import Split
from tasks.training_data import Chip, TrainingData


def doubts_of(
    parameters: TrainParameters, data: Sequence[TrainingData], chips: Sequence[Chip], split: Split
) -> list[str]:
    """One sentence each, with the remedy.

    Args:
        data: the training data.
        chips: of all folders.
        split: indices into ``chips``.
    """
    found = []
    if parameters.kind == "labels":
        single = all(len(chip.values) == 1 for chip in chips)
        if single and len({value for chip in chips for value in chip.values}) == 1:
            found.append(
                f"All chips are of one class ({data[0].classes.names[0]}): the classifier will give it to "
                "every object. Add chips of what is not of that class, as a class of its own."
            )
    if split.by == "lot":
        found.append(
            "No chip says where it lies: those that validate were drawn by lot, and may show what training "
            "chips show. Export chips with world files, or name chips of other ground as validation_folder."
        )
    if split.by == "areas" and split.buffer == 0:
        found.append(
            "There is no buffer between training and validation chips, for it would have cost more than "
            "half of the chips: neighbours share trees and light. Export more chips, or name chips of other "
            "ground as validation_folder."
        )
    return found
