"""Feature sets of foreign functions, the usual and the unusual."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.host.detections import DetectionsError, read_detections

NAMES = {1: "tree", 2: "roof"}
RING = [[0, 0], [4.5, 0], [4.5, 3], [0, 3]]


def _text(attributes: Any, geometry: Any = None) -> bytes:
    geometry = {"rings": [RING]} if geometry is None else geometry
    return json.dumps({"features": [{"attributes": attributes, "geometry": geometry}]}).encode()


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"Class": "palm"}, "palm"),
        ({"Classname": "palm"}, "palm"),
        ({"ClassName": "palm", "Value": 1}, "palm"),
        ({"Label": "palm"}, "palm"),
        ({"Class": 2}, "roof"),
        ({"Classvalue": 1}, "tree"),
        ({"Value": "2"}, "roof"),
        ({"Value": 2.0}, "roof"),
        ({"Value": 9}, "9"),
        ({"Class": None, "Classvalue": 1}, "tree"),
    ],
)
def test_class_comes_from_name_or_value(attributes: dict[str, Any], name: str) -> None:
    (found,) = read_detections(_text({**attributes, "Confidence": 1}), class_names=NAMES)
    assert found.class_name == name


@pytest.mark.parametrize(("given_as", "is_read"), [(87.5, 87.5), ("87.5", 87.5), (0, 0.0), ("0.5", 0.5)])
def test_confidence_is_kept_on_its_own_scale(given_as: object, is_read: float) -> None:
    (found,) = read_detections(_text({"Class": "a", "Confidence": given_as}), class_names=NAMES)
    assert found.confidence_raw == is_read
    assert found.attributes["Confidence"] == given_as


def test_closed_and_open_rings_read_alike_and_holes_stay() -> None:
    hole = [[1, 1], [2, 1], [2, 2]]
    closed = {"rings": [[*RING, RING[0]], [*hole, hole[0]], []]}
    attributes = {"Class": "a", "Confidence": 1}
    (found,) = read_detections(_text(attributes, closed), class_names=NAMES)
    (as_open,) = read_detections(_text(attributes, {"rings": [RING, hole]}), class_names=NAMES)
    assert found == as_open
    assert found.rings == [
        [(0.0, 0.0), (4.5, 0.0), (4.5, 3.0), (0.0, 3.0)],
        [(1.0, 1.0), (2.0, 1.0), (2.0, 2.0)],
    ]


@pytest.mark.parametrize(
    ("geometry", "kind", "rings"),
    [
        ({"x": -1, "y": 2.5}, "point", [[(-1.0, 2.5)]]),
        ({"points": [[1, 2], [3, 4]]}, "multipoint", [[(1.0, 2.0)], [(3.0, 4.0)]]),
        ({"paths": [[[0, 0], [5, 1], [0, 0]]]}, "polyline", [[(0.0, 0.0), (5.0, 1.0), (0.0, 0.0)]]),
        ({"rings": [[[0, 0], [5, 1], [0, 3], [0, 0]]]}, "polygon", [[(0.0, 0.0), (5.0, 1.0), (0.0, 3.0)]]),
    ],
)
def test_geometries_of_every_type(geometry: dict[str, Any], kind: str, rings: list[Any]) -> None:
    (found,) = read_detections(_text({"Class": "a", "Confidence": 1}, geometry), class_names=NAMES)
    assert (found.kind, found.rings) == (kind, rings)


def test_no_text_and_no_features_are_no_detections() -> None:
    assert read_detections(b"", class_names=NAMES) == []
    assert read_detections(b'{"features": []}', class_names=NAMES) == []


def test_confidence_may_be_missing_only_where_the_function_announces_none() -> None:
    text = _text({"Class": "a"})
    with pytest.raises(DetectionsError, match="no Confidence"):
        read_detections(text, class_names=NAMES)
    (found,) = read_detections(text, class_names=NAMES, without_confidence=True)
    assert found.confidence_raw == 1.0


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        b"{",
        b"[]",
        b"3",
        b'{"features": {}}',
        b'{"features": [3]}',
        b"[" * 200_000,
        _text(None),
        _text({"Confidence": 1}),
        _text({"Class": "a", "Confidence": "high"}),
        _text({"Class": "a", "Confidence": True}),
        _text({"Class": "a", "Confidence": None}),
        _text({"Class": "a", "Confidence": "inf"}),
        b'{"features": [{"attributes": {"Class": "a", "Confidence": NaN}, "geometry": {"rings": []}}]}',
        _text({"Class": "a", "Confidence": 1}, {"curveRings": []}),
        _text({"Class": "a", "Confidence": 1}, {"points": 3}),
        _text({"Class": "a", "Confidence": 1}, {"points": [3]}),
        _text({"Class": "a", "Confidence": 1}, {"rings": [[[0, "1"]]]}),
        _text({"Class": "a", "Confidence": 1}, {"rings": [[[0]]]}),
        _text({"Class": "a", "Confidence": 1}, {"rings": [3]}),
        _text({"Class": "a", "Confidence": 1}, {"rings": [[[0, 1e300]]]}),
        _text({"Class": "a", "Confidence": 1}, {"rings": [[[True, 0]]]}),
        b'{"features": [{"attributes": {"Class": "a", "Confidence": 1}, "geometry": '
        b'{"rings": [[[' + b"9" * 400 + b", 0]]]}}]}",
    ],
)
def test_what_is_no_feature_set_is_refused(text: bytes) -> None:
    with pytest.raises(DetectionsError):
        read_detections(text, class_names=NAMES)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "features",
                    "attributes",
                    "geometry",
                    "rings",
                    "paths",
                    "points",
                    "Class",
                    "Confidence",
                    "Value",
                    "x",
                    "y",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps({"features": [value]}).encode()))
def test_any_bytes_are_read_or_refused_but_never_break(text: bytes) -> None:
    try:
        found = read_detections(text, class_names=NAMES)
    except DetectionsError:
        return
    for detection in found:
        assert all(abs(x) < 1e9 and abs(y) < 1e9 for ring in detection.rings for x, y in ring)


@pytest.mark.parametrize(
    ("attributes", "name", "confidence"),
    [
        ({"Label": "palm", "Confidence": "0.9"}, "palm", 0.9),
        ({"Label": "palm;oak", "Confidence": "0.4;0.9"}, "palm;oak", 0.9),
        ({"Label": "", "Confidence": ""}, "", 0.0),
    ],
)
def test_labels_of_object_classifiers(attributes: dict[str, Any], name: str, confidence: float) -> None:
    (found,) = read_detections(_text(attributes), class_names=NAMES)
    assert (found.class_name, found.confidence_raw) == (name, confidence)
    assert found.attributes == attributes


@pytest.mark.parametrize("given_as", ["0.4;high", ";", ""])
def test_confidences_that_are_no_numbers_are_refused(given_as: str) -> None:
    with pytest.raises(DetectionsError, match="Confidence"):
        read_detections(_text({"Label": "palm;oak", "Confidence": given_as}), class_names=NAMES)
