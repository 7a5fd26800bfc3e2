"""Looks into ONNX files without running them: where their data lies, and what goes in and out.

An ONNX file may keep its tensors in other files, by a path of its own choice; one that leaves the package
would make the reader open files of the machine. Format: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.package.definition import ModelDefinition

# protobuf, in which ONNX files are written, reads no more.
_MAX_BYTES = 2**31 - 1


@dataclass(frozen=True)
class OnnxSummary:
    """What an ONNX file says about itself.

    Attributes:
        opset: version by domain; the standard operators' domain is ``ai.onnx``.
        inputs: ``name float32 (batch, 3, 256, 256)``, one each.
        outputs: likewise.
    """

    opset: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def onnx_problems(path: Path, folder: Path) -> list[str]:
    """What speaks against loading an ONNX file of the package in ``folder``; empty where nothing does."""
    try:
        model = _read(path)
    except ValueError as error:
        return [f"the weights {path.name} are no ONNX model ({error})"]
    problems = []
    for location in sorted({place for tensor in _external_tensors(model) for place in _locations(tensor)}):
        place = f"the weights {path.name} keep data in {location!r:.120}"
        target = _beside(path, location, folder)
        if target is None:
            problems.append(f"{place}, which lies outside the package")
        elif not target.is_file():
            problems.append(f"{place}, which is not in the package")
    return problems


def onnx_summary(path: Path) -> OnnxSummary:
    """Opset, inputs and outputs.

    Raises:
        ValueError: the file is no ONNX model.
    """
    model = _read(path)
    return OnnxSummary(
        opset={item.domain or "ai.onnx": item.version for item in model.opset_import},
        inputs=tuple(map(_value, _inputs(model))),
        outputs=tuple(_value(item) for item in model.graph.output),
    )


def classifier_problems(path: Path, definition: ModelDefinition) -> list[str]:
    """Why the built-in classifier cannot run a model; empty where it can, as far as the file says.

    Source of the rules: docs/formats/python-raster-function.md, "ONNX".
    """
    model, problems = _with_input_problems(path, definition)
    output = model.graph.output[0]
    sizes, count = _sizes(output), len(definition.classes or [])
    if _kind(output) != "float32" or len(sizes) != 4:
        problems.append(f"its output is {_value(output)}, not float32 (n, classes, rows, cols)")
    elif sizes[1] is not None and sizes[1] not in (count, count + 1):
        problems.append(f"it scores {sizes[1]} classes, and the definition names {count}")
    return problems


def detector_problems(path: Path, definition: ModelDefinition) -> list[str]:
    """Why the built-in detector cannot run a model; empty where it can, as far as the file says."""
    model, problems = _with_input_problems(path, definition)
    names = [item.name for item in model.graph.output]
    missing = [name for name in ("boxes", "labels", "scores") if name not in names]
    if missing:
        problems.append(f"its outputs are {', '.join(names)}, without {', '.join(missing)}")
    return problems


def _with_input_problems(path: Path, definition: ModelDefinition) -> tuple[Any, list[str]]:
    model = _read(path)
    inputs = _inputs(model)
    given = "; ".join(map(_value, inputs))
    if len(inputs) != 1 or _kind(inputs[0]) != "float32" or len(_sizes(inputs[0])) != 4:
        return model, [f"it takes {given}, not one float32 (n, bands, rows, cols)"]
    bands = len(definition.extract_bands) if definition.extract_bands else None
    expected = (None, bands, definition.image_height, definition.image_width)
    pairs = zip(_sizes(inputs[0]), expected, strict=True)
    if all(own is None or said is None or own == said for own, said in pairs):
        return model, []
    said = ", ".join("n" if size is None else str(size) for size in expected)
    return model, [f"it takes {given}, and the definition's bands and image size are ({said})"]


def _read(path: Path) -> Any:
    # Here, so that importing the checks loads no library of a framework.
    import onnx
    from google.protobuf.message import DecodeError

    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, RecursionError) as error:
        raise ValueError(str(error) or "it cannot be decoded") from error
    if not model.opset_import or not model.graph.output:
        raise ValueError("it has no graph")
    return model


def _external_tensors(message: Any) -> Iterator[Any]:
    """Every tensor that keeps its data elsewhere, wherever in the file: subgraphs, functions, attributes."""
    from google.protobuf.message import Message
    from onnx import TensorProto

    waiting = [message]
    while waiting:
        current = waiting.pop()
        if isinstance(current, TensorProto):
            if current.external_data or current.data_location == TensorProto.EXTERNAL:
                yield current
            continue
        for field, value in current.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if isinstance(value, Message) else value)


def _locations(tensor: Any) -> list[str]:
    # All of them, should one be given twice: readers differ in which one counts.
    return [str(entry.value) for entry in tensor.external_data if entry.key == "location"] or [""]


def _beside(path: Path, location: str, folder: Path) -> Path | None:
    """The file that a location means, counted from the model's folder; None outside the package."""
    if not location or "\\" in location or ":" in location or "\0" in location or location.startswith("/"):
        return None
    if ".." in location.split("/") or len(location.encode()) > 1000:
        return None
    target = (path.parent / location).resolve()
    return target if target.is_relative_to(folder.resolve()) else None


def _inputs(model: Any) -> list[Any]:
    # Up to version 3 of the format the weights were listed among the inputs.
    held = {tensor.name for tensor in model.graph.initializer}
    return [item for item in model.graph.input if item.name not in held]


def _kind(item: Any) -> str:
    from onnx import TensorProto

    number = item.type.tensor_type.elem_type
    kind = TensorProto.DataType.Name(number).lower() if number in TensorProto.DataType.values() else "unknown"
    return {"float": "float32", "double": "float64"}.get(kind, kind)


def _sizes(item: Any) -> list[int | None]:
    """The shape; None for a size that is open."""
    return [size.dim_value or None for size in item.type.tensor_type.shape.dim]


def _value(item: Any) -> str:
    sizes = [size.dim_param or str(size.dim_value or "?") for size in item.type.tensor_type.shape.dim]
    return f"{item.name} {_kind(item)} ({', '.join(sizes)})"
