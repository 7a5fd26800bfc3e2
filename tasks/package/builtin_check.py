"""What is wrong with a package that asks for a built-in function, without its framework.

A frozen graph is a serialised ``GraphDef``: field 1 repeats ``NodeDef``, whose field 1 is the name and field
2 the operation (tensorflow/core/framework/graph.proto and node_def.proto; wire format: protobuf.dev,
"Encoding"). Reading the names needs no TensorFlow, so a laptop says what a worker would meet.
"""

from __future__ import annotations

import ast
import mmap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tasks.package.builtin import GENERIC, ONNX, Builtin, NotBuiltIn, resolve
from tasks.package.definition import ModelDefinition
from tasks.package.onnx_check import classifier_problems, detector_problems

Fault = tuple[Literal["function", "weights", "numbers"], str, str]
Locate = Callable[[str], Path | None]

_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_VARIABLES = ("Variable", "VariableV2", "VarHandleOp")
_MOST_NODES = 2_000_000
_FREEZE = (
    "Freeze the graph: tensorflow.compat.v1.graph_util.convert_variables_to_constants (TensorFlow 1), or "
    "convert_variables_to_constants_v2 of the concrete function (TensorFlow 2)."
)
_RENAME = "Export the graph as the {configuration} exporter does: it needs the tensors {tensors}."
_SAVE_KERAS = "Save the whole model: model.save('model.h5') or model.save('model.keras')."


def builtin_problems(definition: ModelDefinition, locate: Locate) -> Iterator[Fault]:
    """(check, what is wrong, remedy) for a definition that asks for a built-in function; else nothing.

    Args:
        definition: of the package.
        locate: a path inside the package, None for what leaves it.
    """
    builtin = resolve(definition)
    if builtin is None:
        return
    if isinstance(builtin, NotBuiltIn):
        yield "function", builtin.problem, builtin.remedy
        return
    for key, length in (("ImageHeight", definition.image_height), ("ImageWidth", definition.image_width)):
        if length is None:
            yield (
                "numbers",
                f"{key} is missing, and the function {builtin.label.replace('built in: ', '')} needs it",
                f"Set {key} to the size of the network's input in pixels.",
            )
    if builtin.configuration == "MaskRCNN":
        yield from _module_problems(definition, locate)
    elif builtin in GENERIC.values():
        yield from _child_problems(definition, builtin.configuration, locate)
    weights = locate(definition.model_file) if definition.model_file else None
    if weights is not None and weights.is_file() and builtin in ONNX.values():
        yield from _onnx_problems(definition, weights, builtin)
    if weights is None or not weights.is_file() or not builtin.endings:
        return
    if weights.suffix.lower() not in builtin.endings:
        listed = " or ".join(builtin.endings)
        yield (
            "weights",
            f"ModelFile {weights.name} is none of {listed}, which {builtin.framework} "
            f"{builtin.configuration} reads",
            _FREEZE if builtin.tensors else _SAVE_KERAS,
        )
    elif builtin.tensors:
        yield from _graph_problems(weights, builtin)
    else:
        yield from _keras_problems(weights)


def _module_problems(definition: ModelDefinition, locate: Locate) -> Iterator[Fault]:
    given = definition.model_configuration
    for key in ("Architecture", "Config"):
        named = given.get(key) if isinstance(given, dict) else None
        if not isinstance(named, str) or not named:
            yield (
                "function",
                f"ModelConfiguration.{key} is missing: MaskRCNN needs the module of its network",
                'Write {"Name": "MaskRCNN", "Architecture": "mrcnn/network", "Config": "mrcnn/network"}.',
            )
            continue
        stem = named.removesuffix(".py")
        paths = [locate(f"{stem}.py"), locate(f"{stem}/__init__.py")]
        if not any(path is not None and path.is_file() for path in paths):
            yield (
                "function",
                f"ModelConfiguration.{key} {named!r} is no module in the package",
                "Put the .py that defines `model` and `config` into the package.",
            )


def _onnx_problems(definition: ModelDefinition, weights: Path, builtin: Builtin) -> Iterator[Fault]:
    look = classifier_problems if builtin == ONNX["imageclassifier.py"] else detector_problems
    with suppress(ValueError):  # no ONNX model: told among the weights
        for text in look(weights, definition):
            yield (
                "weights",
                f"ModelFile {weights.name} cannot be run by the built-in {builtin.configuration}: {text}",
                'Export the model as docs/formats/python-raster-function.md, "ONNX", says, correct the '
                "definition, or give the package a function of its own.",
            )


def _child_problems(definition: ModelDefinition, class_name: str, locate: Locate) -> Iterator[Fault]:
    named = (definition.configuration_name or "").replace("\\", "/").removesuffix(".py")
    path = locate(f"{named}.py")
    if path is None or not path.is_file():
        yield (
            "function",
            f"ModelConfiguration {named!r} is neither predefined nor a module in the package",
            f"Put the .py that defines {class_name} into the package, or name a predefined configuration.",
        )
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield "function", f"{path.name} cannot be parsed ({error})", "Correct the module."
        return
    # It may also be imported, or made in a condition: only a module that never says the name is refused.
    names = {getattr(node, "name", None) for node in ast.walk(tree)}
    names |= {getattr(node, "asname", None) or getattr(node, "id", None) for node in ast.walk(tree)}
    if class_name not in names and "*" not in names:
        yield (
            "function",
            f"{path.name} defines no class {class_name}, which the ModelType {definition.model_type} needs",
            f"Define {class_name} with load_model(path) and inference(batch, **scalars) in it.",
        )


def _keras_problems(weights: Path) -> Iterator[Fault]:
    with weights.open("rb") as file:
        start = file.read(8)
    wanted = _ZIP if weights.suffix.lower() == ".keras" else _HDF5
    if not start.startswith(wanted):
        kind = "a Keras archive" if wanted is _ZIP else "an HDF5 file"
        yield "weights", f"ModelFile {weights.name} is not {kind}, as its name says", _SAVE_KERAS


def _graph_problems(weights: Path, builtin: Builtin) -> Iterator[Fault]:
    try:
        nodes = graph_nodes(weights)
    except ValueError as error:
        yield "weights", f"ModelFile {weights.name} is no frozen graph ({error})", _FREEZE
        return
    variables = [name for name, operation in nodes.items() if operation in _VARIABLES]
    if variables:
        shown = ", ".join(sorted(variables)[:3])
        yield (
            "weights",
            f"ModelFile {weights.name} is a graph that is not frozen: it holds variables ({shown})",
            _FREEZE,
        )
    absent = [name for name in builtin.tensors if name not in nodes]
    if absent:
        yield (
            "weights",
            f"the graph {weights.name} has no tensor {', '.join(absent)}",
            _RENAME.format(configuration=builtin.configuration, tensors=", ".join(builtin.tensors)),
        )


def graph_nodes(path: Path) -> dict[str, str]:
    """Operation by node name of a serialised ``GraphDef``.

    Raises:
        ValueError: the file is none.
    """
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    nodes: dict[str, str] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[0] == 0x08:
            raise ValueError("it is a SavedModel")
        for number, start, end in _fields(data, 0, len(data)):
            if number != 1:
                continue
            texts = {
                inner: bytes(data[low:high]).decode("utf-8", "replace")
                for inner, low, high in _fields(data, start, end)
                if inner in (1, 2)
            }
            nodes[texts.get(1, "")] = texts.get(2, "")
            if len(nodes) > _MOST_NODES:
                raise ValueError(f"it has more than {_MOST_NODES} nodes")
    if not nodes:
        raise ValueError("it has no nodes")
    return nodes


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the length-delimited fields of one message; others are stepped over."""
    while position < end:
        key, position = _varint(data, position, end)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field has the number 0")
        if kind == 0:
            _, position = _varint(data, position, end)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _varint(data, position, end)
            if position + length > end:
                raise ValueError("it is cut off")
            yield number, position, position + length
            position += length
        else:
            raise ValueError(f"a field has the wire type {kind}")
    if position != end:
        raise ValueError("it is cut off")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError("it is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than 10 bytes")
