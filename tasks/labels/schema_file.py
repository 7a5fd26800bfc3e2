"""Class schema files: the classes of a labelling project, as JSON (docs/labels.md).

The format is Chipline's own::

    {"classes": [{"value": 1, "name": "Tree", "color": "#2a9d8f",
                  "children": [{"value": 11, "name": "Oak", "color": [42, 120, 60]}]},
                 {"value": 2, "name": "Road"}]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tasks.errors import LabelError
from tasks.labels.schema import ClassSchema, Color, LabelClass, palette_color
from tasks.store import ObjectStore

_LARGEST_FILE = 4 * 2**20
_LARGEST_VALUE = 2**31 - 1  # what an integer field of a Shapefile, GeoPackage or geodatabase holds
_REMEDY = (
    'Write {"classes": [{"value": 1, "name": "Tree", "color": "#2a9d8f", "children": []}]}; '
    "docs/labels.md describes the file."
)


def _color(given: object) -> object:
    if isinstance(given, str):
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", given):
            raise ValueError("write a colour as '#rrggbb' or [red, green, blue]")
        return tuple(int(given[start : start + 2], 16) for start in (1, 3, 5))
    if isinstance(given, list) and len(given) == 3 and all(type(item) is int for item in given):
        return tuple(given)
    raise ValueError("write a colour as '#rrggbb' or [red, green, blue]")


_Channel = Annotated[int, Field(ge=0, le=255)]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    value: Annotated[int, Field(ge=1, le=_LARGEST_VALUE)]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    color: Annotated[tuple[_Channel, _Channel, _Channel] | None, BeforeValidator(_color)] = None
    children: list[_Node] = []


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    classes: Annotated[list[_Node], Field(min_length=1)]


def read_schema_file(uri: str) -> ClassSchema:
    """The classes of a class schema file, parents and children alike, ordered by value.

    A class that has children is a class of its own, for what was not told apart; each child keeps its
    parent's value in :attr:`~tasks.labels.schema.LabelClass.parent`. A class without a colour gets the
    palette's.

    Args:
        uri: the JSON file, in the store or on disk.

    Raises:
        NotFoundError: no such object.
        LabelError: no JSON, a key that is not known, a value or a name that occurs twice, a value below 1.
    """
    store = ObjectStore()
    size = store.stat(uri).size
    if size > _LARGEST_FILE:
        raise LabelError(f"The class schema file {uri} has {size} bytes.", _REMEDY)
    return parse_schema(store.get(uri), uri)


def parse_schema(data: bytes, name: str) -> ClassSchema:
    """The classes of a class schema file's content; ``name`` names it in errors.

    Raises:
        LabelError: as :func:`read_schema_file`.
    """
    try:
        content = _File.model_validate(json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        more = f" ({error.error_count() - 1} more such errors)" if error.error_count() > 1 else ""
        raise LabelError(
            f"The class schema file {name} is not right at {place}: {first['msg'].lower()}{more}.", _REMEDY
        ) from error
    except (ValueError, RecursionError) as error:
        raise LabelError(
            f"The class schema file {name} is no JSON that can be read: {error}.", _REMEDY
        ) from error
    names: dict[int, str] = {}
    colors: dict[int, Color] = {}
    parents: dict[int, int] = {}
    for node, parent in _walk(content.classes, None):
        if node.value in names:
            raise LabelError(
                f"The class schema file {name} has the value {node.value} twice "
                f"({names[node.value]!r} and {node.name!r}).",
                "Give every class a value of its own.",
            )
        names[node.value] = node.name.strip()
        if not names[node.value]:
            raise LabelError(f"The class {node.value} of {name} has no name.", _REMEDY)
        if node.color is not None:
            colors[node.value] = node.color
        if parent is not None:
            parents[node.value] = parent
    flat = ClassSchema.from_values(names, _with_palette(sorted(names), colors))
    return ClassSchema(
        tuple(LabelClass(item.value, item.name, item.color, parents.get(item.value)) for item in flat)
    )


def schema_document(schema: ClassSchema) -> dict[str, Any]:
    """A schema as the content of a class schema file; inverse of :func:`parse_schema`."""
    nodes: dict[int, dict[str, Any]] = {
        item.value: {
            "value": item.value,
            "name": item.name,
            "color": "#{:02x}{:02x}{:02x}".format(*item.color),
        }
        for item in schema
    }
    roots: list[dict[str, Any]] = []
    for item in schema:
        parent = nodes.get(item.parent) if item.parent is not None else None
        (roots if parent is None else parent.setdefault("children", [])).append(nodes[item.value])
    return {"classes": roots}


def _walk(nodes: list[_Node], parent: int | None) -> Iterator[tuple[_Node, int | None]]:
    for node in nodes:
        yield node, parent
        yield from _walk(node.children, node.value)


def _with_palette(values: list[int], given: dict[int, Color]) -> dict[int, Color]:
    """A colour for every class: those given, else the palette's, but none that was given to another."""
    colors, used, further = dict(given), set(given.values()), len(values)
    for index, value in enumerate(values):
        if value in given:
            continue
        color = palette_color(index)
        while color in used:
            color, further = palette_color(further), further + 1
        colors[value] = color
        used.add(color)
    return colors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; a key that occurs twice would otherwise hide its first value."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} occurs twice in one object")
    return dict(pairs)
