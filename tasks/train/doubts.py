"""What a training can be doubted for: told in its log, in MLflow, on its page and in its metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tasks.package.dlpk import Package
from tasks.train.leakage import COMPARED_CHIPS
from tasks.train.parameters import TrainParameters
from tasks.train.splits import Split
from tasks.training_data import Chip, TrainingData


def doubts_of(
    parameters: TrainParameters,
    data: Sequence[TrainingData],
    chips: Sequence[Chip],
    split: Split,
    *,
    known_data: Sequence[str] = (),
    package: Package | None = None,
    compared: bool = True,
) -> list[str]:
    """One sentence each, with the remedy.

    Args:
        data: the training data.
        chips: of all folders.
        split: indices into ``chips``.
        known_data: folders of validation chips that the package to go on with has learnt from.
        package: to go on with.
        compared: whether the pixels of training and validation chips were compared.
    """
    found = []
    if not compared:
        found.append(
            f"The pixels of more than {COMPARED_CHIPS} chips are not compared: copies in training and "
            "validation chips would not be seen, but for those whose ground overlaps. Make sure that no "
            "scene was exported twice under another name, or train on fewer chips."
        )
    validated_on = None if package is None else package.definition.training_metrics.get("validation_digest")
    if known_data and package is not None and validated_on != validation_digest(chips, split):
        found.append(
            f"{package.name} has learnt from {', '.join(known_data)}, and chips that validate here may be "
            "among those that it learnt from: their numbers would flatter. Name chips of other ground as "
            "validation_folder, or keep seed, validation_percent and training data as they were."
        )
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


def validation_digest(chips: Sequence[Chip], split: Split) -> str:
    """Says which chips validated: SHA-256 over their names and places, whatever their order."""
    lines = sorted(f"{chips[index].stem} {chips[index].footprint}" for index in split.validation)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
