"""A package from a model that was trained elsewhere: weights, definition, inference function, other files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import NotFoundError, PackageError
from tasks.package.definition import ModelDefinition, read_definition
from tasks.package.dlpk import Package, open_package, write_dlpk

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a package that we make may be called; it becomes part of URIs and of MLflow's names."""


def check_name(name: str) -> None:
    """Refuse a name that cannot be part of a URI and a file name everywhere.

    Raises:
        PackageError: it has other characters, or is too long.
    """
    if not NAME.fullmatch(name):
        raise PackageError(
            f"{name!r} is no name for a package.",
            "Use letters, digits, '.', '_' and '-', starting with a letter or digit, 100 at most.",
        )


def safe_name(stem: str) -> str:
    """A name that :func:`check_name` takes, as near to ``stem`` as can be."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:100] or "package"


def files_below(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their path inside a package: a file at its root, a folder under its own name.

    Raises:
        NotFoundError: a path does not exist.
        PackageError: two of them would have the same path.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise NotFoundError(f"There is no {path} to pack.", "Check the path.")
        inside = [item for item in sorted(path.rglob("*")) if item.is_file()] if path.is_dir() else [path]
        for item in inside:
            member = item.relative_to(path.parent).as_posix()
            if "__pycache__" in item.parts:
                continue  # compiled by the machine that packs, and different on each
            if member in found:
                raise PackageError(f"The file {member} is given twice.", "Give every file once.")
            found[member] = item
    return found


def pack_package(
    *,
    name: str,
    definition: Path,
    weights: Path | None,
    function: Path | None,
    extra: Mapping[str, Path],
    into: Path,
) -> tuple[Path, str]:
    """Write ``<into>/<name>.dlpk``, the same bytes for the same content, and open it again to check it.

    The weights get the path that the definition names; a definition without ModelFile or InferenceFunction
    gets the names of the files given.

    Args:
        name: stem of the package and of the ``.emd`` inside.
        definition: the ``.emd``; read tolerantly, written strictly.
        weights: None where the definition needs none.
        function: the inference function's ``.py``; None for a built-in or predefined one.
        extra: further files by their path inside the package, for example modules that the function imports.
        into: folder of the package; a package of that name there is replaced.

    Returns:
        Path and SHA-256 of the package.

    Raises:
        NotFoundError: a file is missing.
        PackageError: the definition cannot be read, names other files, or the package would break its
            contract; nothing is written then.
    """
    check_name(name)
    given = [definition, *(path for path in (weights, function) if path is not None), *extra.values()]
    for path in given:
        if not path.is_file():
            raise NotFoundError(f"There is no file {path} to pack.", "Check the path.")
    described = read_definition(_text(definition))
    files: dict[str, bytes | Path] = {}
    changes: dict[str, Any] = {}
    if weights is not None:
        member = described.model_file if described.model_file not in (None, "", ".") else weights.name
        if Path(str(member)).suffix.lower() != weights.suffix.lower():
            raise PackageError(
                f"The definition names the weights {member!r}, and {weights.name} is another kind of file.",
                "Name in ModelFile the file that you give.",
            )
        changes["model_file"] = member
        files[str(member)] = weights
    if function is not None:
        changes["inference_function"] = _function_member(described, function)
        files[changes["inference_function"]] = function
    for member, path in extra.items():
        if member in files:
            raise PackageError(f"The file {member} is given twice.", "Give every file once.")
        files[member] = path
    # Only what changes: a key that the definition does not have must not appear as null.
    written: ModelDefinition = described.model_copy(update=changes)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=".packing-") as scratch:
        made = Path(scratch) / f"{name}.dlpk"
        write_dlpk(made, written, files)
        package: Package = open_package(made, Path(scratch) / "opened")
        made.replace(into / made.name)
    return into / made.name, package.digest


def _text(definition: Path) -> str:
    try:
        return definition.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PackageError(
            f"The definition {definition.name} is not UTF-8 text ({error}).", "Save it as UTF-8."
        ) from error


def _function_member(definition: ModelDefinition, function: Path) -> str:
    named = definition.inference_function
    if named is None:
        return function.name
    # A function is looked up by its class, which has the name of its file: renaming would lose it.
    if definition.builtin_function is not None or Path(named).name != function.name:
        raise PackageError(
            f"The definition asks for the function {named!r}, and {function.name} is given.",
            "Name in InferenceFunction the file that you give, or leave the function out.",
        )
    return named
