"""How strongly chips are varied: the recipes, and the ways to write them. No chip is touched here.

``augmentation_parameters`` are pairs of a name and a text ``value;probability``; ``transforms.json`` names
the same in an object. Both are described in docs/training.md, "Augmentation".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.errors import BadInputError

TRANSFORMS = "transforms.json"

StepName = Literal["rotate", "brightness", "contrast", "zoom", "crop", "dihedral"]
Range = tuple[float, float]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Step:
    """One variation of a chip.

    Attributes:
        name: what is done.
        values: least and largest value; one is drawn between them, evenly. rotate: degrees, anticlockwise;
            brightness: 0 black, 0.5 as it is, 1 white; contrast: factor about the mean of each band; zoom:
            factor; crop: edge in pixels, twice.
        probability: of being done at all.
        rows, cols: crop: where the window lies, 0 at the upper left, 1 at the lower right.
    """

    name: StepName
    values: Range = (0.0, 0.0)
    probability: float = 1.0
    rows: Range = (0.0, 1.0)
    cols: Range = (0.0, 1.0)


@dataclass(frozen=True)
class Recipe:
    """How strongly chips are varied; zeros and False leave them as they are.

    Attributes:
        dihedral: the eight turns and mirrors of a square.
        upright: of these only the mirror image left to right: up stays up, in pictures that are no maps.
        brightness: largest shift of all bands, in standard deviations.
        contrast: largest relative change of the spread about the chip's mean.
        tint: largest shift of a single band, in standard deviations.
        scale: largest change of size, as the natural logarithm of the factor.
        steps: done in their order, in place of all else.
    """

    dihedral: bool = True
    upright: bool = False
    brightness: float = 0.4
    contrast: float = 0.2
    tint: float = 0.15
    scale: float = 0.2
    steps: tuple[Step, ...] = ()


DEFAULT = Recipe()
NONE = Recipe(dihedral=False, brightness=0.0, contrast=0.0, tint=0.0, scale=0.0)

_LIMITS: dict[StepName, Range] = {
    "rotate": (-180.0, 180.0),
    "brightness": (0.0, 1.0),
    "contrast": (0.0, 10.0),
    "zoom": (1.0, 10.0),
    "crop": (32.0, 8192.0),
}
# What transforms.json calls the value of a step.
_FIELD_OF: dict[StepName, str] = {
    "rotate": "degrees",
    "brightness": "change",
    "contrast": "scale",
    "zoom": "scale",
    "crop": "size",
}
_ALIASES = {"rand_zoom": "zoom", "rand_crop": "crop", "dihedral_affine": "dihedral"}
_NAMES = ", ".join([*_LIMITS, "dihedral"])
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def recipe_of(augmentation: str, pairs: Sequence[Sequence[str]], *, upright: bool = False) -> Recipe:
    """The recipe that the tool's parameters ask for.

    Args:
        augmentation: DEFAULT, NONE, CUSTOM or FILE; of FILE the pairs are what the file says.
        pairs: ``augmentation_parameters``.
        upright: the chips are pictures with an up, not maps.
    """
    if augmentation == "NONE":
        return NONE
    if augmentation == "DEFAULT":
        return Recipe(upright=upright)
    return Recipe(False, upright, 0.0, 0.0, 0.0, 0.0, steps=steps_of(pairs))


def steps_of(pairs: Sequence[Sequence[str]]) -> tuple[Step, ...]:
    """The steps that ``augmentation_parameters`` name.

    Raises:
        ValueError: a name that is unknown, or a value that cannot be read or lies outside its bounds.
    """
    return tuple(_step(pair) for pair in pairs)


def pairs_of_file(text: str | bytes, where: str) -> list[list[str]]:
    """What a ``transforms.json`` says, as ``augmentation_parameters``.

    Read are a list of such pairs, and an object ``{"Training": {"rotate": {"degrees": 30, "p": 0.5}, …}}``
    whose values are numbers, lists of two, or texts such as "0.4, 0.6".

    Args:
        where: the file, for messages.

    Raises:
        BadInputError: it is none of these, or names what is not known.
    """
    try:
        content = json.loads(text)
        if isinstance(content, dict):
            training = content.get("Training", content.get("training"))
            if not isinstance(training, dict):
                raise ValueError('it has no object "Training"')
            content = [[name, _as_text(str(name), fields)] for name, fields in training.items()]
        if not isinstance(content, list) or not content:
            raise ValueError('it holds neither an object "Training" nor a list of steps')
        pairs = [[str(part) for part in pair] for pair in content]
        steps_of(pairs)
    except (TypeError, ValueError) as error:
        raise BadInputError(
            f"The augmentation of {where} cannot be read: {error}.",
            f"Name the steps under Training, with their values: {_NAMES}.",
        ) from error
    return pairs


def pairs_of_files(folders: Sequence[str], read: Callable[[str], bytes | None]) -> list[list[str]]:
    """What the ``transforms.json`` of the training data says; one of several folders is enough.

    Args:
        folders: of the training data.
        read: gives the file of a folder; None where it has none.

    Raises:
        BadInputError: there is none, they differ, or one cannot be read.
    """
    found = {
        folder: pairs_of_file(content, f"{folder}/{TRANSFORMS}")
        for folder in folders
        if (content := read(folder)) is not None
    }
    if not found:
        raise BadInputError(
            f"augmentation is FILE, but there is no {TRANSFORMS} in {', '.join(folders)}.",
            f"Put {TRANSFORMS} beside esri_model_definition.emd, or choose CUSTOM, DEFAULT or NONE.",
        )
    first = next(iter(found.values()))
    if any(pairs != first for pairs in found.values()):
        raise BadInputError(
            f"The {TRANSFORMS} of {' and '.join(found)} differ.", "Make them equal, or keep one of them."
        )
    return first


def _step(pair: Sequence[str]) -> Step:
    if len(pair) != 2:
        raise ValueError(f"an augmentation is a name and a text of values, not {list(pair)!r}")
    name = _ALIASES.get(pair[0].strip().lower(), pair[0].strip().lower())
    fields = [field.strip() for field in pair[1].split(";")]
    if name == "dihedral":
        return Step("dihedral", probability=_share(fields[0], name))
    if name not in _LIMITS:
        raise ValueError(f"there is no augmentation {pair[0]!r}; there are {_NAMES}")
    most = 4 if name == "crop" else 2
    if len(fields) > most:
        raise ValueError(f"{name} takes {most} values with semicolons between them, not {pair[1]!r}")
    low, high = _range(fields[0], name, "value")
    if name == "rotate" and "," not in fields[0]:
        low, high = -abs(high), abs(high)
    least, largest = _LIMITS[name]
    if not least <= low <= high <= largest:
        raise ValueError(f"{name} takes values from {least:g} to {largest:g}, not {fields[0]}")
    if name == "crop" and (low != high or low != int(low)):
        raise ValueError(f"crop takes one whole number of pixels, not {fields[0]}")
    probability = _share(fields[1], name) if len(fields) > 1 else 1.0
    places = [_range(field, name, "place") for field in fields[2:]]
    if any(not 0 <= start <= end <= 1 for start, end in places):
        raise ValueError(f"crop takes places from 0 to 1, not {';'.join(fields[2:])}")
    rows, cols = [*places, (0.0, 1.0), (0.0, 1.0)][:2]
    return Step(name, (low, high), probability, rows, cols)


def _range(text: str, name: str, what: str) -> Range:
    parts = [part.strip() for part in text.strip("()[] ").split(",")]
    if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise ValueError(f"the {what} of {name} is {text!r}, not a number or (least,largest)")
    numbers = [float(part) for part in parts]
    return numbers[0], numbers[-1]


def _share(text: str, name: str) -> float:
    low, high = _range(text, name, "probability")
    if low != high or not 0 <= low <= 1:
        raise ValueError(f"the probability of {name} is {text!r}, not a number from 0 to 1")
    return low


def _as_text(name: str, fields: Any) -> str:
    known = _ALIASES.get(name, name)
    if not isinstance(fields, Mapping):
        raise ValueError(f"{name} has no object of values")
    order = (
        ["p"]
        if known == "dihedral"
        else [_FIELD_OF.get(known, "value"), "p", *(["row_pct", "col_pct"] if known == "crop" else [])]  # type: ignore[call-overload]
    )
    unknown = sorted(set(fields) - set(order))
    if unknown:
        raise ValueError(f"{name} has no value {', '.join(unknown)}; it has {', '.join(order)}")
    standing = {"p": 1.0, "row_pct": [0, 1], "col_pct": [0, 1]}
    values = []
    for field in order:
        if field not in fields and field not in standing:
            raise ValueError(f"{name} lacks {field}")
        value = fields.get(field, standing.get(field))
        values.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return ";".join(values)
