"""Answers of object classifiers: one per feature, by position."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.host.classified import read_classified
from tasks.host.detections import DetectionsError

NAMES = {1: "tree", 2: "roof; tiled"}


def _text(*attributes: Any) -> bytes:
    return json.dumps({"features": [{"attributes": item} for item in attributes]}).encode()


@pytest.mark.parametrize(
    ("attributes", "label", "pairs"),
    [
        ({"Label": "palm", "Confidence": "0.9"}, "palm", [("palm", 0.9)]),
        ({"Class": "palm", "Confidence": 87.5}, "palm", [("palm", 87.5)]),
        ({"Classvalue": 1, "Confidence": "0.25"}, "tree", [("tree", 0.25)]),
        ({"Label": "palm;oak", "Confidence": "0.4;0.9"}, "palm;oak", [("palm", 0.4), ("oak", 0.9)]),
        ({"Label": "palm; oak", "Confidence": 0.4}, "palm; oak", [("palm", 0.4), ("oak", 0.4)]),
        ({"Label": "roof; tiled", "Confidence": 1}, "roof; tiled", [("roof; tiled", 1.0)]),
        ({"Label": "", "Confidence": ""}, "", []),
        ({"Label": "", "Confidence": "0.3"}, "", []),
    ],
)
def test_labels_with_their_confidences(
    attributes: dict[str, Any], label: str, pairs: list[tuple[str, float]]
) -> None:
    other = {"Label": "x", "Confidence": 1}
    (_, found) = read_classified(_text(other, attributes), count=2, class_names=NAMES)
    assert (found.index, found.label) == (1, label)
    assert list(zip(found.labels, found.confidences_raw, strict=True)) == pairs
    assert found.confidence_raw == max((number for _, number in pairs), default=0.0)
    assert found.attributes == attributes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "0 answers for 1"),
        (_text({"Label": "a", "Confidence": 1}, {"Label": "a", "Confidence": 1}), "2 answers for 1"),
        (_text({"Confidence": 1}), "no class"),
        (_text({"Label": "a"}), "no Confidence"),
        (_text({"Label": "a;b;c", "Confidence": "0.1;0.2"}), "3 labels and 2 confidences"),
        (_text({"Label": "a;b", "Confidence": "0.1;high"}), "no finite number"),
        (_text(None), "no attributes"),
        (b"[", "no JSON"),
    ],
)
def test_what_is_no_answer_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(DetectionsError, match=said):
        read_classified(text, count=1, class_names=NAMES)


def test_labels_without_announced_confidence_count_one() -> None:
    (found,) = read_classified(_text({"Label": "a"}), count=1, class_names=NAMES, without_confidence=True)
    assert found.confidences_raw == (1.0,)
