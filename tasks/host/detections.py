"""What ``vectorize`` returns, read defensively: the text comes from foreign code.

Format: docs/formats/python-raster-function.md, "Vectors". Coordinates stay as the function gave them: pixels
relative to the top-left of the inner block, x to the right, y down; they may be negative or reach beyond it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_NAME_KEYS = ("class", "classname", "label")
_VALUE_KEYS = ("classvalue", "value")
MAX_FEATURES = 1_000_000
MAX_POINTS = 20_000_000

Point = tuple[float, float]
Attribute = str | int | float | bool | None
GeometryKind = Literal["point", "multipoint", "polyline", "polygon"]

GEOMETRY_TYPES: dict[int, GeometryKind] = {1: "point", 2: "multipoint", 3: "polyline", 4: "polygon"}
"""What the numbers of ``getGeometryType`` mean."""


class DetectionsError(ValueError):
    """The text is not what a Python raster function's ``vectorize`` may return."""


@dataclass(frozen=True)
class Detection:
    """One feature of a block.

    Attributes:
        class_name: name of the class; by the class value where the function gave a value only. A feature of
            several labels has them all, separated by ``;``.
        confidence_raw: as the function gave it (0-100 or 0-1, docs/formats/python-raster-function.md); of
            several labels the highest, 0 for a feature without a label.
        rings: rings of (x, y) in pixels of the inner block, not closed: the first is not repeated at the end.
            Of a polyline its paths, of points one ring of one point each.
        attributes: everything the function wrote, with its own names.
        kind: what the geometry is.
    """

    class_name: str
    confidence_raw: float
    rings: list[list[Point]]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    kind: GeometryKind = "polygon"


def read_detections(
    text: bytes,
    *,
    class_names: Mapping[int, str],
    without_confidence: bool = False,
    kind: GeometryKind | None = None,
) -> list[Detection]:
    """The detections in the JSON text of ``output_vectors``.

    Args:
        text: UTF-8 JSON of an Esri feature set.
        class_names: class name by class value, for functions that write values only.
        without_confidence: the function announces no confidence field; its features then count 1.0.
        kind: the geometry that the function announces; None: any.

    Raises:
        DetectionsError: no JSON, no features, another geometry, a coordinate that is no finite number, no
            class, no confidence.
    """
    points_left = MAX_POINTS
    detections = []
    for number, feature in enumerate(features_in(text)):
        found, rings = _parts(feature.get("geometry"), number)
        if found != (kind or found):
            raise DetectionsError(f"feature {number} is a {found}, and getGeometryType announces a {kind}")
        points_left -= sum(len(ring) for ring in rings)
        if points_left < 0:
            raise DetectionsError(f"output_vectors has more than {MAX_POINTS} points")
        attributes = attributes_of(feature, number)
        confidence = _confidence(attributes, number, without_confidence)
        detections.append(
            Detection(class_name_of(attributes, class_names, number), confidence, rings, attributes, found)
        )
    return detections


def features_in(text: bytes) -> list[dict[str, Any]]:
    """The feature objects of a feature set's UTF-8 JSON text; none of an empty text.

    Raises:
        DetectionsError: no JSON, no list of objects, or more than ``MAX_FEATURES``.
    """
    if not text.strip():
        return []
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DetectionsError(f"output_vectors is no JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("features"), list):
        raise DetectionsError("output_vectors has no list of features")
    features: list[dict[str, Any]] = document["features"]
    if len(features) > MAX_FEATURES:
        raise DetectionsError(f"output_vectors has {len(features)} features, more than {MAX_FEATURES}")
    for number, feature in enumerate(features):
        if not isinstance(feature, dict):
            raise DetectionsError(f"feature {number} is no JSON object")
    return features


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def attributes_of(feature: Mapping[str, Any], number: int) -> dict[str, Attribute]:
    """The attributes of feature ``number`` under the function's own names; nested ones as JSON text.

    Raises:
        DetectionsError: it has none.
    """
    given = feature.get("attributes")
    if not isinstance(given, dict):
        raise DetectionsError(f"feature {number} has no attributes")
    return {
        key: value if value is None or isinstance(value, (str, int, float, bool)) else json.dumps(value)
        for key, value in given.items()
    }


def _parts(geometry: Any, number: int) -> tuple[GeometryKind, list[list[Point]]]:
    if not isinstance(geometry, dict):
        raise DetectionsError(f"feature {number} has no geometry")
    kind: GeometryKind
    if "rings" in geometry:
        kind, lists = "polygon", geometry["rings"]
    elif "paths" in geometry:
        kind, lists = "polyline", geometry["paths"]
    elif "points" in geometry:
        points = geometry["points"]
        kind, lists = "multipoint", [[point] for point in points] if isinstance(points, list) else points
    elif "x" in geometry and "y" in geometry:
        kind, lists = "point", [[[geometry["x"], geometry["y"]]]]
    else:
        raise DetectionsError(
            f"feature {number} has no rings, paths or points, and no x and y (keys: {', '.join(geometry)})"
        )
    if not isinstance(lists, list):
        raise DetectionsError(
            f"the {'rings' if kind == 'polygon' else 'parts'} of feature {number} are no list"
        )
    return kind, [_ring(ring, number, closed=kind == "polygon") for ring in lists if ring]


def _ring(ring: Any, number: int, *, closed: bool) -> list[Point]:
    if not isinstance(ring, list):
        raise DetectionsError(f"a ring of feature {number} is no list")
    points = []
    for point in ring:
        if not isinstance(point, list) or len(point) < 2:
            raise DetectionsError(f"feature {number} has a point that is no [x, y]")
        x, y = point[0], point[1]
        if isinstance(x, bool) or isinstance(y, bool) or not isinstance(x, (int, float)):
            raise DetectionsError(f"feature {number} has a coordinate that is no number")
        if not isinstance(y, (int, float)) or not (abs(x) < 1e9 and abs(y) < 1e9):
            raise DetectionsError(f"feature {number} has a coordinate that is no finite number of pixels")
        points.append((float(x), float(y)))
    if closed and len(points) > 1 and points[0] == points[-1]:
        points.pop()
    return points


def class_name_of(attributes: Mapping[str, Attribute], class_names: Mapping[int, str], number: int) -> str:
    """The class of feature ``number``: a name as it stands, a value by ``class_names``.

    Raises:
        DetectionsError: no attribute tells a class.
    """
    by_key = {key.lower(): value for key, value in attributes.items()}
    for key in _NAME_KEYS:
        value = by_key.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return class_names.get(int(value), _number_text(value))
    for key in _VALUE_KEYS:
        value = by_key.get(key)
        if value is None or isinstance(value, bool):
            continue
        parsed = _number(value)
        return str(value) if parsed is None else class_names.get(int(parsed), _number_text(parsed))
    raise DetectionsError(
        f"feature {number} has no class: none of Class, Classname, Label, Classvalue, Value is among "
        f"{', '.join(attributes) or 'its attributes'}"
    )


def _confidence(attributes: Mapping[str, Attribute], number: int, without_confidence: bool) -> float:
    confidences = confidences_of(attributes, number, without_confidence=without_confidence)
    return max(confidences, default=0.0)


def confidences_of(
    attributes: Mapping[str, Attribute], number: int, *, without_confidence: bool
) -> tuple[float, ...]:
    """The confidences of feature ``number`` as the function gave them: one per label; none without a label.

    Raises:
        DetectionsError: it has none though the function announces one, or one that is no finite number.
    """
    for key, value in attributes.items():
        if key.lower() != "confidence":
            continue
        if value == "" and _is_unlabelled(attributes):
            return ()
        # Several labels share one text: 0.9;0.4
        parts = value.split(";") if isinstance(value, str) and ";" in value else [value]
        given = [part for part in parts if not isinstance(part, str) or part.strip()]
        numbers = [None if isinstance(part, bool) else _number(part) for part in given]
        known = tuple(item for item in numbers if item is not None)
        if not known or len(known) != len(numbers):
            raise DetectionsError(
                f"feature {number} has a Confidence that is no finite number: {value!r:.40}"
            )
        return known
    if without_confidence:
        return (1.0,)
    raise DetectionsError(f"feature {number} has no Confidence, though the function announces one")


def _is_unlabelled(attributes: Mapping[str, Attribute]) -> bool:
    return any(key.lower() == "label" and value == "" for key, value in attributes.items())


def _number(value: Attribute) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _number_text(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
