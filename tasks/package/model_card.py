"""The model card of a package that is built here: what it is, of what it was made, how good it is, limits.

One Markdown file at the package's root, for whoever opens the zip; it is made of the definition and of what
training tells, and says the same for the same training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tasks.package.contract import LARGEST_ENLARGEMENT, RESAMPLED_BEYOND
from tasks.package.definition import ModelDefinition
from tasks.package.examine import definition_rows

CARD = "MODEL_CARD.md"

_WHAT = {
    "ImageClassification": "gives every pixel a class",
    "ObjectDetection": "finds objects, each as a box with a class and a confidence",
    "InstanceDetection": "finds objects, each as an outline with a class and a confidence",
    "PanopticSegmenter": "gives every pixel a class, and finds objects, each as an outline with a confidence",
    "ObjectClassification": "gives given objects a class",
    "SuperResolution": "makes imagery of finer cells",
    "Pix2Pix": "makes a picture of another kind of each picture",
    "CycleGAN": "makes pictures of one kind from those of another, both ways",
}
_COUNTS = ("pixels", "objects")
_MEASURES = ("accuracy", "precision", "recall", "f1", "iou", "map", "calibration", "psnr", "ssim")
"""Parts of the names of measures; the rest of the metrics says how the training went."""
_ALL = "all"
_MEAN_OF = {"miou": "iou", "f1_score": "f1", "average_precision": "ap"}
_FEW = {"pixels": 10_000, "objects": 30}
"""With fewer of a class on the validation chips its numbers are chance."""


class BandFacts(Protocol):
    """One band of the training chips, in pixel values."""

    @property
    def name(self) -> str: ...
    @property
    def minimum(self) -> float: ...
    @property
    def maximum(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...


@dataclass(frozen=True)
class TrainingFacts:
    """What a package was trained on.

    Attributes:
        data: per training data folder its name and its identity (run key, or hash of the inventory).
        metadata_format: of the folders, for example Classified_Tiles.
        bands: statistics of the chips, in the network's order of bands.
        chips: how many, by use: train, validation, dropped.
        area: (xmin, ymin, xmax, ymax) of the chips in map units; None where they have no georeference.
        crs: of the area, for people, for example EPSG:32612.
    """

    data: Sequence[tuple[str, str]]
    metadata_format: str
    bands: Sequence[BandFacts]
    chips: Mapping[str, int | None]
    area: tuple[float, float, float, float] | None = None
    crs: str = ""

    @property
    def tile_statistics(self) -> list[dict[str, Any]]:
        """The value of AllTilesStats (docs/formats/training-data.md), which imagery is compared with."""
        return [
            {
                "BandName": band.name,
                "Min": float(band.minimum),
                "Max": float(band.maximum),
                "Mean": float(band.mean),
                "StdDev": float(band.std),
            }
            for band in self.bands
        ]


def model_card(name: str, definition: ModelDefinition, training: TrainingFacts | None = None) -> str:
    """The card as Markdown.

    Args:
        name: of the package.
        definition: of the package; ``Chipline.Metrics`` holds what training measured. Its ``intervals``,
            where there are any, hold two numbers by class and measure, the means over the classes under
            ``all``, and with them ``level`` and the number of ``blocks`` of ground.
        training: what it was trained on, where that is known.
    """
    own = definition.extras.get("Chipline")
    metrics = own.get("Metrics") if isinstance(own, Mapping) else None
    metrics = metrics if isinstance(metrics, Mapping) else {}
    what = _WHAT.get(definition.model_type or "", "analyses imagery")
    rows = [(key, text) for key, text in definition_rows(definition) if key in _ABOUT]
    blocks = [
        f"# {_cell(name)}",
        f"A network that {what}. Trained and packed by Chipline; this page is made of what training left.",
        _table(("", ""), rows),
        "## Classes",
        _table(
            ("value", "name", "colour"),
            [
                (str(item.value), item.name, "" if item.color is None else ", ".join(map(str, item.color)))
                for item in definition.classes or []
            ],
        ),
        "## Training data",
        *_training(training),
        "## Numbers",
        *_numbers(metrics),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(definition, metrics, training)),
    ]
    return "\n\n".join(blocks) + "\n"


_ABOUT = ("type", "model", "framework", "function", "tile", "bands", "cell size", "description")


def _training(training: TrainingFacts | None) -> Iterator[str]:
    if training is None:
        yield "Not stated."
        return
    rows = [(f"data set {name}", identity) for name, identity in training.data]
    rows.append(("format", training.metadata_format))
    told = {use: "not compared" if count is None else str(count) for use, count in training.chips.items()}
    rows += [(f"chips: {use}", count) for use, count in told.items()]
    if training.area is not None:
        xmin, ymin, xmax, ymax = training.area
        rows.append(
            (f"area {training.crs}".strip(), f"x {xmin:.8g} to {xmax:.8g}, y {ymin:.8g} to {ymax:.8g}")
        )
    yield _table(("", ""), rows)
    yield _table(
        ("band", "smallest", "largest", "mean", "standard deviation"),
        [
            (band.name, *(f"{value:.5g}" for value in (band.minimum, band.maximum, band.mean, band.std)))
            for band in training.bands
        ],
    )


def _numbers(metrics: Mapping[str, Any]) -> Iterator[str]:
    intervals = _rows(metrics.get("intervals"))
    of_all = intervals.get(_ALL, {})
    overall = [
        (key.replace("_", " "), _measure(value, of_all.get(_MEAN_OF.get(key, ""))))
        for key, value in metrics.items()
        if isinstance(value, int | float) and any(part in key.lower() for part in _MEASURES)
    ]
    per_class = _rows(metrics.get("per_class"))
    if not overall and not per_class:
        yield "Nothing was measured."
        return
    stated: Mapping[str, Any] = metrics.get("intervals") or {}
    level, ground = stated.get("level"), stated.get("blocks")
    bracket = " No intervals."
    if intervals and isinstance(level, int | float):
        bracket = f" In brackets: {level:.0%} intervals, by a bootstrap over {ground} blocks of ground."
    yield f"On the validation chips, which no training chip overlaps.{bracket}"
    if overall:
        yield _table(("measure", "value"), overall)
    if per_class:
        columns = list(dict.fromkeys(key for row in per_class.values() for key in row))
        yield _table(
            ("class", *columns),
            [
                (
                    name,
                    *(_measure(row.get(key), intervals.get(name, {}).get(key)) for key in columns),
                )
                for name, row in per_class.items()
            ],
        )


def _rows(found: Any) -> dict[str, Mapping[str, Any]]:
    """The entries that are rows themselves."""
    if not isinstance(found, Mapping):
        return {}
    return {str(name): row for name, row in found.items() if isinstance(row, Mapping)}


def _measure(value: Any, interval: Any) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if value == int(value) and abs(value) > 1 else f"{value:.3f}"
    if isinstance(interval, Sequence) and len(interval) == 2 and None not in interval:
        text += f" ({float(interval[0]):.3f} to {float(interval[1]):.3f})"
    return text


def _limits(
    definition: ModelDefinition, metrics: Mapping[str, Any], training: TrainingFacts | None
) -> Iterator[str]:
    yield (
        "The numbers are of chips from the same imagery and ground as the training's. Another region, season "
        "or sensor gives other numbers: measure them there."
    )
    if definition.min_cell_size is not None:
        yield (
            f"Objects look as they do in cells of {_size(definition)}. Imagery whose cells differ by more "
            f"than a factor of {RESAMPLED_BEYOND:g} is resampled; cells coarser by more than a factor "
            f"of {LARGEST_ENLARGEMENT:g} do not show what the network looks for."
        )
    if training is not None:
        yield "Pixel values must be on the scale of the table above; a host compares them before it computes."
    for name, row in _rows(metrics.get("per_class")).items():
        for count in _COUNTS:
            seen = row.get(count)
            if isinstance(seen, int | float) and seen < _FEW[count]:
                yield (
                    f"The class {_cell(name)} has only {seen:.0f} {count} on the validation chips: "
                    "its numbers are chance."
                )
    threshold = metrics.get("threshold")
    if isinstance(threshold, int | float):
        yield (
            f"Objects below a confidence of {threshold:.2f} are left out; the value was chosen on the "
            "validation chips, so that precision and recall there are a little too good."
        )


def _size(definition: ModelDefinition) -> str:
    rows = dict(definition_rows(definition))
    return rows.get("cell size", "the training's size")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
