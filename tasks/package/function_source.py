"""What an inference function's source says about its arguments, read without running any of it.

The contract is stated in ``docs/formats/python-raster-function.md``: ``getParameterInfo`` returns a list of
dicts. Functions build that list in many ways; what is written down literally is found, the rest is known only
once the function runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What the host fills in itself.
_FILLED_BY_HOST = {"raster", "rasters", "model", "device"}
_TYPES = {
    "numeric", "string", "raster", "rasters", "dataset",
    "GPString", "GPLong", "GPDouble", "GPBoolean", "GPDataFile", "GPFeatureLayer", "GPRasterLayer",
}  # fmt: skip
_MAX_SOURCE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class FunctionArgument:
    """One argument as the source writes it; empty where it is decided when the function runs."""

    name: str
    data_type: str = ""
    value: str = ""
    description: str = ""


def function_arguments(path: Path) -> list[FunctionArgument] | None:
    """The arguments that a function and the modules beside it write down; None if it cannot be parsed.

    Args:
        path: the function's ``.py``; the other ``.py`` files of its folder that it names are read, too.
    """
    tree = _parsed(path)
    if tree is None:
        return None
    trees = [tree]
    for name in sorted(_imported(tree)):
        sibling = path.parent / f"{name}.py"
        parsed = _parsed(sibling) if sibling.is_file() else None
        if parsed is not None and sibling != path:
            trees.append(parsed)
    found: dict[str, FunctionArgument] = {}
    for each in trees:
        for argument in _arguments(each):
            if argument.name not in _FILLED_BY_HOST:
                found.setdefault(argument.name, argument)
    return list(found.values())


def _parsed(path: Path) -> ast.Module | None:
    if path.stat().st_size > _MAX_SOURCE_BYTES:
        return None
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Written for another Python, or no Python at all. MemoryError: nested too deep for the parser.
        return None


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names if "." not in item.name)
        elif isinstance(node, ast.ImportFrom) and node.module and "." not in node.module:
            yield node.module


def _arguments(tree: ast.Module) -> Iterator[FunctionArgument]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            fields = {
                key.value: value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
            name = _text(fields.get("name"))
            if name and "dataType" in fields:
                yield FunctionArgument(
                    name,
                    _text(fields["dataType"]),
                    _text(fields.get("value")),
                    _text(fields.get("description")) or _text(fields.get("displayName")),
                )
        elif isinstance(node, ast.Call) and len(node.args) >= 2:
            # A helper that makes such a dict: name and data type come first.
            name, kind = _text(node.args[0]), _text(node.args[1])
            if name.isidentifier() and kind in _TYPES:
                value = _text(node.args[2]) if len(node.args) > 2 else ""
                texts = [_text(item) for item in node.args[3:]]
                yield FunctionArgument(name, kind, value, max(texts, key=len, default=""))


def _text(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
        return str(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _text(node.operand)
        return f"-{number}" if number else ""
    return ""
