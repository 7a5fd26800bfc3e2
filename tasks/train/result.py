"""What a training leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.train.assembly import Samples
from tasks.train.models.options import AnyOptions
from tasks.train.modules import TrainingModule
from tasks.train.normalisation import Normalisation
from tasks.train.splits import Split
from tasks.training_data import Chip


@dataclass(frozen=True)
class Trained:
    """What a training leaves, before it is packaged.

    Attributes:
        module: with the best weights, on the CPU, in evaluation mode.
        options: of the network, as the model arguments gave them.
        source: of the network, for the package.
        normalisation: of the input.
        split: indices into ``chips``.
        metrics: values of the best weights on the validation chips, and what led to them.
        effort: seconds and chips per second, which differ from run to run.
        history: one row per epoch.
        times: at which its rows were made, seconds since 1970.
    """

    module: TrainingModule
    options: AnyOptions
    source: str
    normalisation: Normalisation
    chips: list[Chip]
    split: Split
    chip_size: int
    metrics: dict[str, Any]
    effort: dict[str, float]
    history: list[dict[str, float]]
    times: list[float]
    validation: Samples


@dataclass(frozen=True)
class TrainResult:
    """The package of a training and the values it reached on the validation chips.

    ``events``: TensorBoard's event file, where it was asked for.
    """

    package: Path
    metrics: dict[str, Any]
    effort: dict[str, float]
    metrics_html: str
    pictures: dict[str, bytes]
    events: bytes | None = None
