"""What is wrong with a package: every problem with its remedy, in the order of the checks.

The checks and their order are stated in ``docs/formats/emd-dlpk.md``. Nothing of a package is imported,
loaded or executed, and nothing depends on the machine: a laptop and a worker say the same.
"""

from __future__ import annotations

import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from tasks.package.builtin_check import builtin_problems
from tasks.package.definition import MODEL_TYPES, ModelDefinition, parse_definition
from tasks.package.weights_check import weights_problems, weights_remedy

Check = Literal["zip", "members", "definition", "model type", "function", "weights", "classes", "numbers"]
CHECKS: tuple[Check, ...] = get_args(Check)

_REMEDIES: dict[Check, str] = {
    "zip": "Download the file or pack it again; a .dlpk is a plain zip file.",
    "members": "Pack it again from plain files and folders, with relative paths and every name once.",
    "definition": "Put one .emd, a JSON object in UTF-8, at the root of the zip.",
    "model type": "Set ModelType to what the model does, for example ObjectDetection or ImageClassification.",
    "function": "Put the inference function's .py into the package and name it in InferenceFunction, "
    "or name a predefined Framework and ModelConfiguration.",
    "weights": "Put the weights into the package and name them in ModelFile.",
    "classes": 'Give Classes as a list of {"Value": 1, "Name": "Tree", "Color": [0, 160, 0]}.',
    "numbers": "Correct the value in the .emd; docs/formats/emd-dlpk.md lists the keys.",
}
_CHECK_OF_KEY: dict[str, Check] = {
    "ModelType": "model type",
    "InferenceFunction": "function",
    "Framework": "function",
    "ModelConfiguration": "function",
    "ModelFile": "weights",
    "ModelFiles": "weights",
    "Classes": "classes",
}
# A definition is a few kilobytes; the largest with per-band statistics and metrics stay below one megabyte.
_MAX_DEFINITION_BYTES = 16 * 2**20


@dataclass(frozen=True)
class UnpackLimits:
    """What a package may grow to when it is unpacked."""

    members: int = 20_000
    bytes: int = 16 * 2**30
    ratio: int = 200  # unpacked over packed, for members beyond ratio_from bytes
    ratio_from: int = 16 * 2**20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a package, and what to do about it."""

    check: Check
    text: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return {"check": self.check, "problem": self.text, "remedy": self.remedy}


def problem(check: Check, text: str, remedy: str = "") -> Problem:
    """A problem; without a remedy of its own it gets the one of its check."""
    return Problem(check, text, remedy or _REMEDIES[check])


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """The problems by check; those of one check stay as they were found."""
    return sorted(problems, key=lambda item: CHECKS.index(item.check))


def clean_member(name: str) -> str:
    """A member's path with forward slashes.

    Windows tools have written backslashes into zips; they mean folders, for attackers too.
    """
    return name.replace("\\", "/")


def is_root_definition(name: str) -> bool:
    """Whether a clean member path is an ``.emd`` at the root, with a stem that can name a package."""
    return "/" not in name and name.lower().endswith(".emd") and bool(name[: -len(".emd")].strip(". "))


def path_problem(name: str) -> str | None:
    """What is wrong with a member's path; None if it is plain, relative and stays inside."""
    cleaned = clean_member(name)
    parts = cleaned.rstrip("/").split("/")
    if cleaned.startswith("/") or (len(cleaned) > 1 and cleaned[1] == ":"):
        return "its path is absolute"
    if ".." in parts:
        return "its path leaves the package ('..')"
    if not cleaned.strip("/") or "" in parts or "." in parts:
        return "its path has an empty part"
    # Control characters, and halves of surrogate pairs, which no file system takes.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in cleaned):
        return "its path has control characters"
    if any(len(part.encode()) > 200 for part in parts) or len(cleaned) > 1000:
        return "its path is too long"
    return None


def member_problems(
    infos: list[zipfile.ZipInfo], limits: UnpackLimits
) -> tuple[list[Problem], list[zipfile.ZipInfo]]:
    """What is wrong with a zip's members, and the members that may be unpacked nevertheless.

    None may be unpacked where the package as a whole breaks a limit.
    """
    if len(infos) > limits.members:
        return [_member(f"it has {len(infos)} members, more than {limits.members}")], []
    found: list[str] = []
    wrong: set[int] = set()
    seen: dict[str, str] = {}
    for index, info in enumerate(infos):
        fault = path_problem(info.filename) or _kind_problem(info) or _size_problem(info, limits)
        if fault:
            found.append(f"member {info.filename!r}: {fault}")
            wrong.add(index)
        folded = unicodedata.normalize("NFC", clean_member(info.filename)).rstrip("/").casefold()
        if folded in seen and not (info.filename.endswith("/") and seen[folded] == info.filename):
            found.append(f"member {info.filename!r} occurs twice (also as {seen[folded]!r})")
            wrong.add(index)
        seen[folded] = info.filename
    files = {key for key, name in seen.items() if not clean_member(name).endswith("/")}
    for key in seen:
        parents = {str(parent) for parent in PurePosixPath(key).parents}
        for parent in sorted(parents & files):
            found.append(f"member {seen[parent]!r} is a file and a folder")
            wrong |= {index for index, info in enumerate(infos) if info.filename == seen[key]}
    total = sum(info.file_size for info in infos)
    if total > limits.bytes:
        found.append(f"it would unpack to {total} bytes, more than {limits.bytes}")
        wrong = set(range(len(infos)))
    sound = [info for index, info in enumerate(infos) if index not in wrong]
    return [_member(text) for text in found], sound


def _member(text: str) -> Problem:
    return problem("members", text)


def _kind_problem(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        return "it is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it is neither a file nor a folder"
    if info.flag_bits & 0x1:
        return "it is encrypted"
    return None


def _size_problem(info: zipfile.ZipInfo, limits: UnpackLimits) -> str | None:
    if info.file_size > limits.ratio_from and info.file_size > limits.ratio * max(info.compress_size, 1):
        return f"it unpacks to more than {limits.ratio} times its packed size"
    return None


def root_problems(names: list[str]) -> list[Problem]:
    """Whether there is one model definition at the root, judged by the members' paths."""
    cleaned = [clean_member(name) for name in names]
    roots = [name for name in cleaned if is_root_definition(name)]
    if len(roots) == 1:
        return []
    if roots:
        listed = ", ".join(sorted(roots))
        return [
            problem(
                "definition",
                f"it has {len(roots)} model definitions at its root ({listed}), not one",
                "Leave one .emd at the root.",
            )
        ]
    nested = sorted(name for name in cleaned if name.lower().endswith(".emd"))
    if nested:
        return [
            problem(
                "definition",
                f"its model definition lies in a folder ({nested[0]}), not at the root: "
                "zip the files themselves, not their folder",
                "Pack it again with all files at the root of the zip.",
            )
        ]
    return [problem("definition", "it has no model definition (.emd) at its root")]


def root_definition(folder: Path) -> Path:
    """The ``.emd`` of an unpacked package that has one."""
    return next(path for path in sorted(folder.iterdir()) if is_root_definition(path.name) and path.is_file())


def read_root_definition(folder: Path) -> tuple[ModelDefinition | None, list[str]]:
    """The definition of an unpacked package and what is wrong with its fields."""
    emd = root_definition(folder)
    if emd.stat().st_size > _MAX_DEFINITION_BYTES:
        return None, [f"the .emd is larger than {_MAX_DEFINITION_BYTES} bytes"]
    try:
        text = emd.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return None, [f"the .emd is not UTF-8 text ({error})"]
    return parse_definition(text)


def package_problems(folder: Path) -> list[Problem]:
    """Everything that is wrong with an unpacked package, in the order of the checks."""
    definition, field_problems = read_root_definition(folder)
    if definition is None:
        return [problem("definition", text) for text in field_problems]
    found: list[Problem] = []
    for text in field_problems:
        found.append(problem(_CHECK_OF_KEY.get(_key_of(text), "numbers"), text))
    wrong = {_key_of(text) for text in field_problems}
    if "ModelType" not in wrong:
        found += _type_problems(definition)
    if "InferenceFunction" not in wrong:
        found += _function_problems(definition, folder)
    if "ModelFile" not in wrong:
        found += _weights_problems(definition, folder)
    if "Classes" not in wrong:
        found += _class_problems(definition)
    found += [problem("numbers", text) for text in _number_problems(definition)]
    if not wrong & {"InferenceFunction", "Framework", "ModelConfiguration"}:
        found += [problem(*fault) for fault in builtin_problems(definition, partial(inside, folder))]
    return in_order(found)


def _key_of(text: str) -> str:
    return text.split(":")[0].split(".")[0]


def _type_problems(definition: ModelDefinition) -> Iterator[Problem]:
    if definition.model_type is None:
        yield problem("model type", "ModelType is missing")
    elif definition.model_type not in MODEL_TYPES:
        yield problem(
            "model type",
            f"ModelType {definition.model_type!r} is unknown (known: {', '.join(MODEL_TYPES)})",
        )


def _function_problems(definition: ModelDefinition, folder: Path) -> Iterator[Problem]:
    if definition.builtin_function is not None:
        return
    named = definition.inference_function
    if not named:
        yield problem(
            "function",
            "InferenceFunction is missing, and Framework and ModelConfiguration "
            f"({definition.framework!r}, {definition.configuration_name!r}) name no predefined one",
        )
        return
    path = inside(folder, named)
    if path is None:
        yield problem("function", f"InferenceFunction {named!r} lies outside the package")
    elif path.suffix.lower() != ".py":
        yield problem("function", f"InferenceFunction {named!r} is not a Python file")
    elif not path.is_file():
        yield problem("function", f"InferenceFunction {named!r} is not in the package")


def _weights_problems(definition: ModelDefinition, folder: Path) -> Iterator[Problem]:
    names = [name for name in [definition.model_file, *(definition.model_files or [])] if name]
    for name in names:
        if name == ".":
            continue
        path = inside(folder, name.replace("\\", "/"))
        if path is None:
            yield problem("weights", f"ModelFile {name!r} lies outside the package")
        elif not path.exists():
            yield problem("weights", f"ModelFile {name!r} is not in the package")
        elif path.is_file():
            for text in weights_problems(path, folder):
                yield problem("weights", text, weights_remedy(path))
    # Prompted detectors bring no weights; whoever names a predefined framework must have some.
    if not names and definition.framework and definition.builtin_function is not None:
        yield problem("weights", "ModelFile is missing")


def _class_problems(definition: ModelDefinition) -> Iterator[Problem]:
    needed = definition.model_type in ("ObjectDetection", "ImageClassification", "InstanceDetection")
    if not definition.classes:
        if needed:
            yield problem("classes", "Classes is missing or empty")
        return
    values = [item.value for item in definition.classes]
    twice: set[int] = set()
    seen: set[int] = set()
    for value in values:
        (twice if value in seen else seen).add(value)
    for value in sorted(twice):
        yield problem(
            "classes", f"Classes has the value {value} more than once", "Give every class a value of its own."
        )
    for index, item in enumerate(definition.classes):
        if not item.name.strip():
            yield problem("classes", f"Classes.{index}.Name is empty", "Give every class a name.")


def _number_problems(definition: ModelDefinition) -> Iterator[str]:
    for key, number, least in (
        ("ImageHeight", definition.image_height, 1),
        ("ImageWidth", definition.image_width, 1),
        ("BatchSize", definition.batch_size, 1),
        ("ModelPadding", definition.model_padding, 0),
        ("Padding", definition.padding, 0),
    ):
        if number is not None and number < least:
            yield f"{key} is {number}, must be at least {least}"
    for key, size in (("MinCellSize", definition.min_cell_size), ("MaxCellSize", definition.max_cell_size)):
        if size is not None and not (size.x > 0 and size.y > 0):
            yield f"{key} is {size.x} x {size.y}, must be positive"
    bands = definition.extract_bands or []
    if any(isinstance(band, int) and band < 0 for band in bands):
        yield f"ExtractBands {bands} has a negative band"
    if definition.data_range is not None and not definition.data_range[0] < definition.data_range[1]:
        yield f"DataRange {list(definition.data_range)} is empty"


def inside(folder: Path, name: str) -> Path | None:
    """``folder/name`` if it stays inside ``folder``; None for what leaves it, or is no path at all."""
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        return None
    # Longer than what a file system takes, so no file of the package.
    if len(name) > 1000 or any(len(part.encode()) > 255 for part in name.split("/")):
        return None
    candidate = (folder / name).resolve()
    return candidate if candidate.is_relative_to(folder.resolve()) else None
