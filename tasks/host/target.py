"""Which file of a package is its inference function, and what the function is told about its input."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from tasks.errors import PackageError
from tasks.package.builtin import NotBuiltIn, resolve
from tasks.package.definition import ModelDefinition


class RunnablePackage(Protocol):
    """What the host needs of an unpacked package (``tasks.package.Package`` has it)."""

    @property
    def folder(self) -> Path:
        """Where its files lie."""

    @property
    def definition(self) -> ModelDefinition:
        """Its ``.emd``."""

    @property
    def digest(self) -> str:
        """SHA-256 of its file."""

    @property
    def emd_path(self) -> Path:
        """The ``.emd`` file."""


def function_path(folder: Path, definition: ModelDefinition) -> Path:
    """The inference function of an unpacked package, or the built-in one that it asks for.

    Paths in definitions are often Windows-made: backslashes, another case than the file's.

    Raises:
        PackageError: it asks for a function that is not built in here, names none, or the file is not in
            the folder.
    """
    builtin = resolve(definition)
    if isinstance(builtin, NotBuiltIn):
        raise PackageError(f"The package {folder.name} cannot run: {builtin.problem}.", builtin.remedy)
    if builtin is not None:
        return builtin.path
    named = definition.inference_function
    if not named:
        raise PackageError(
            f"The package {folder.name} names no InferenceFunction.",
            "Add the function's file to the package and its name to the .emd.",
        )
    path = _without_case(folder, named)
    if path is None or not path.resolve().is_relative_to(folder.resolve()):
        raise PackageError(
            f"The inference function {named} is not in the package {folder.name}.",
            "Put the file where the .emd's InferenceFunction says, inside the package.",
        )
    return path.resolve()


def _without_case(folder: Path, relative: str) -> Path | None:
    current = folder
    for part in relative.replace("\\", "/").split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            return None
        exact = current / part
        if not exact.exists():
            alike = [entry for entry in current.iterdir() if entry.name.lower() == part.lower()]
            if len(alike) != 1:
                return None
            exact = alike[0]
        current = exact
    return current if current.is_file() else None


def default_raster_info(definition: ModelDefinition) -> dict[str, Any]:
    """What ``updateRasterInfo`` gets when the caller says nothing of the raster: bands of the definition."""
    bands = len(definition.extract_bands) if definition.extract_bands else 3
    width, height = definition.image_width or 256, definition.image_height or 256
    extent = [0.0, 0.0, float(width), float(height)]
    return {
        "bandCount": bands,
        "pixelType": "u1",
        "noData": None,
        "cellSize": [1.0, 1.0],
        "extent": extent,
        "spatialReference": 3857,
        "nativeExtent": extent,
        "nativeSpatialReference": 3857,
    }


def class_names(definition: ModelDefinition) -> dict[int, str]:
    """Class name by class value."""
    return {entry.value: entry.name for entry in definition.classes or []}
