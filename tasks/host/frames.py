"""What a child says of its function, read with distrust: each value is of the expected kind, or empty."""

from __future__ import annotations

import json
from typing import Any


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object."""
    return value if isinstance(value, dict) else {}


def fields(given: Any) -> list[dict[str, Any]]:
    """The field list of ``getFields``, which is JSON text, or an object already."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return []
    listed = given.get("fields") if isinstance(given, dict) else given
    return dicts(listed)


def by_band(given: Any) -> dict[int, dict[str, Any]]:
    """Key metadata by output band, from pairs."""
    pairs = given if isinstance(given, list) else []
    return {band: mapping(values) for band, values in pairs if isinstance(band, int)}


def dicts(value: Any) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
