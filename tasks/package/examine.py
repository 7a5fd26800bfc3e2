"""What a package says about itself and all that is wrong with it, without running any of it."""

from __future__ import annotations

import json
import math
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.package.builtin import Builtin, resolve
from tasks.package.checks import Problem, UnpackLimits, inside, read_root_definition
from tasks.package.definition import CellSize, ModelDefinition
from tasks.package.dlpk import existing_digest, unpack_and_check
from tasks.package.function_source import FunctionArgument, function_arguments
from tasks.package.weights_check import weights_rows

_METRIC_KEYS = ("accuracy", "average_precision_score", "PSNR", "SSIM")
_MONITORED = "monitored_"


@dataclass(frozen=True)
class PackageFile:
    """One member: its path and its unpacked size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Examination:
    """What a package says about itself, and what is wrong with it.

    Attributes:
        file: name of the file.
        name: stem of the ``.emd``; None where there is none.
        digest: SHA-256 of the file, hexadecimal.
        size: of the file, bytes.
        files: members as the zip lists them.
        definition: None where it cannot be read; fields with a problem are missing.
        arguments: of the packaged function, as far as its source says; None: the function is built in,
            missing or cannot be parsed.
        problems: all of them, in the order of the checks; empty for a package that can be used.
        weights: what the weight file says about itself, as rows of the card.
    """

    file: str
    name: str | None
    digest: str
    size: int
    files: list[PackageFile]
    definition: ModelDefinition | None
    arguments: list[FunctionArgument] | None
    problems: list[Problem]
    weights: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the card, the whole definition and the problems with their remedies."""
        return {
            "file": self.file,
            "name": self.name,
            "sha256": self.digest,
            "size": self.size,
            "sound": not self.problems,
            "problems": [item.to_dict() for item in self.problems],
            "card": dict(card_rows(self)),
            "files": [asdict(item) for item in self.files],
            "arguments": None if self.arguments is None else [asdict(item) for item in self.arguments],
            "definition": None if self.definition is None else self.definition.to_dict(),
        }


def examine_package(dlpk: Path, limits: UnpackLimits | None = None) -> Examination:
    """Look into a package, sound or not.

    Raises:
        NotFoundError: there is no such file.
    """
    digest = existing_digest(dlpk)
    with tempfile.TemporaryDirectory(prefix="package-") as scratch:
        folder, problems = unpack_and_check(dlpk, Path(scratch), limits)
        definition = None
        arguments = None
        weights: list[tuple[str, str]] = []
        if folder is not None:
            definition, _ = read_root_definition(folder)
        if folder is not None and definition is not None and definition.model_file:
            file = inside(folder, definition.model_file)
            weights = weights_rows(file) if file is not None and file.is_file() else []
        if folder is not None and definition is not None and definition.builtin_function is None:
            function = inside(folder, definition.inference_function or "")
            if function is not None and function.is_file():
                arguments = function_arguments(function)
    return Examination(
        file=dlpk.name,
        name=folder.name if folder is not None else None,
        digest=digest,
        size=dlpk.stat().st_size,
        files=_listed(dlpk) if not any(item.check == "zip" for item in problems) else [],
        definition=definition,
        arguments=arguments,
        problems=problems,
        weights=weights,
    )


def _listed(dlpk: Path) -> list[PackageFile]:
    with zipfile.ZipFile(dlpk) as archive:
        return [
            PackageFile(item.filename, item.file_size)
            for item in archive.infolist()
            if not item.filename.endswith("/")
        ]


def card_rows(examination: Examination) -> list[tuple[str, str]]:
    """The card: what and its value, one row each; what is unknown is left out."""
    rows = [
        ("name", examination.name or "unknown"),
        ("sha256", examination.digest),
        ("size", f"{examination.size:,} bytes in {len(examination.files)} files"),
    ]
    if examination.definition is None:
        return rows
    return rows + definition_rows(examination.definition) + examination.weights


def definition_rows(definition: ModelDefinition) -> list[tuple[str, str]]:
    """The card's rows that the definition alone decides."""
    model = [definition.model_name, definition.extras.get("Version")]
    tile = [definition.image_width, definition.image_height]
    rows = [
        ("type", definition.model_type or ""),
        ("model", " ".join(str(item) for item in model if isinstance(item, str) and item)),
        ("framework", " / ".join(filter(None, [definition.framework, definition.configuration_name]))),
        ("function", _function(definition)),
        ("weights", definition.model_file or ", ".join(definition.model_files or [])),
        ("tile", f"{tile[0]} x {tile[1]} pixels" if all(tile) else ""),
        ("bands", _bands(definition)),
        ("cell size", _cell_sizes(definition)),
        ("description", definition.description or ""),
    ]
    rows += [(name, text) for name, text in metrics_of(definition).items()]
    return [(name, text) for name, text in rows if text]


def _function(definition: ModelDefinition) -> str:
    builtin = resolve(definition)
    if isinstance(builtin, Builtin):
        return builtin.label
    return definition.builtin_function or definition.inference_function or ""


def _bands(definition: ModelDefinition) -> str:
    bands = ", ".join(str(band) for band in definition.extract_bands or [])
    names = ", ".join(definition.bands or [])
    if bands and names:
        return f"{bands} ({names})"
    return bands or names


def _cell_sizes(definition: ModelDefinition) -> str:
    least, most = definition.min_cell_size, definition.max_cell_size
    if least is None or most is None or (least.x, least.y) == (most.x, most.y):
        either = least or most
        return _cell_size(either) if either is not None else ""
    return f"{_cell_size(least)} to {_cell_size(most)}"


def _cell_size(size: CellSize) -> str:
    reference = f" (EPSG:{size.wkid})" if size.wkid is not None else ""
    return f"{size.x:g} x {size.y:g}{reference}"


def metrics_of(definition: ModelDefinition) -> dict[str, str]:
    """What training measured, as text by name; ``per class`` metrics by ``metric of class``."""
    extras = definition.extras
    found: dict[str, str] = {}
    for key, value in extras.items():
        if key in _METRIC_KEYS or key.startswith(_MONITORED):
            found |= _flat(key.removeprefix(_MONITORED).replace("_", " "), value)
    per_class = extras.get("per_class_metrics")
    if isinstance(per_class, str):
        try:
            per_class = json.loads(per_class)
        except (ValueError, RecursionError):
            per_class = None
    if isinstance(per_class, Mapping):
        for name, row in per_class.items():
            if isinstance(row, Mapping):
                for metric, value in row.items():
                    found |= _flat(f"{metric} of {name}", value)
    return found


def _flat(key: str, value: object) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {f"{key} of {name}": text for name, item in value.items() if (text := _number(item))}
    text = _number(value)
    return {key: text} if text else {}


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return ""
    return f"{number:.4g}" if math.isfinite(number) else ""
