"""Looks into ONNX files without running them: where their data lies, and what goes in and out.

An ONNX file may keep its tensors in other files, by a path of its own choice; one that leaves the package
would make the reader open files of the machine. Format: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    held = {tensor.name for tensor in model.graph.initializer}
    return OnnxSummary(
        opset={item.domain or "ai.onnx": item.version for item in model.opset_import},
        # Up to version 3 of the format the weights were listed among the inputs.
        inputs=tuple(_value(item) for item in model.graph.input if item.name not in held),
        outputs=tuple(_value(item) for item in model.graph.output),
    )


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


def _value(item: Any) -> str:
    from onnx import TensorProto

    tensor = item.type.tensor_type
    known = tensor.elem_type in TensorProto.DataType.values()
    kind = TensorProto.DataType.Name(tensor.elem_type).lower() if known else "unknown"
    kind = {"float": "float32", "double": "float64"}.get(kind, kind)
    sizes = [size.dim_param or str(size.dim_value or "?") for size in tensor.shape.dim]
    return f"{item.name} {kind} ({', '.join(sizes)})"
