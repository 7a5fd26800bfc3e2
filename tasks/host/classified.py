"""What an object classifier says of a batch of features, read defensively: the text comes from foreign code.

Format: docs/formats/python-raster-function.md, "Object classification". Answers belong to features by their
position; the geometry that comes with them is the outline of the chip and means nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tasks.host.detections import (
    Attribute,
    DetectionsError,
    attributes_of,
    class_name_of,
    confidences_of,
    features_in,
)


@dataclass(frozen=True)
class ClassifiedObject:
    """The answer to one feature of a batch.

    Attributes:
        index: position of the feature in the batch, from 0.
        label: as the function wrote it; several labels are joined by ``;``, none is the empty text.
        labels: the single labels in the function's order.
        confidences_raw: one per label, on the function's own scale (0-1 or 0-100).
        attributes: everything the function wrote, with its own names (``ExpMap`` too, base64 text).
    """

    index: int
    label: str
    labels: tuple[str, ...]
    confidences_raw: tuple[float, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)

    @property
    def confidence_raw(self) -> float:
        """That of the surest label; 0 for a feature without one."""
        return max(self.confidences_raw, default=0.0)


def read_classified(
    text: bytes, *, count: int, class_names: Mapping[int, str], without_confidence: bool = False
) -> list[ClassifiedObject]:
    """The answers in the JSON text of ``output_vectors``, one per feature, in the order of the batch.

    Args:
        text: UTF-8 JSON of an Esri feature set; geometries are not looked at.
        count: features that were handed over.
        class_names: class name by class value, for functions that write values only.
        without_confidence: the function announces no confidence field; labels then count 1.0.

    Raises:
        DetectionsError: no feature set, another number of answers, no label, or confidences that are no
            finite numbers or not as many as the labels.
    """
    features = features_in(text)
    if len(features) != count:
        raise DetectionsError(f"{len(features)} answers for {count} features")
    answers = []
    for index, feature in enumerate(features):
        attributes = attributes_of(feature, index)
        label = class_name_of(attributes, class_names, index)
        labels = _labels(label, class_names.values())
        confidences = confidences_of(attributes, index, without_confidence=without_confidence)
        if not labels:
            confidences = ()
        elif len(confidences) == 1:
            confidences *= len(labels)
        if len(labels) != len(confidences):
            raise DetectionsError(
                f"answer {index} has {len(labels)} labels and {len(confidences)} confidences"
            )
        answers.append(ClassifiedObject(index, label, labels, confidences, attributes))
    return answers


def _labels(label: str, known: Collection[str]) -> tuple[str, ...]:
    if label in known:
        return (label,)  # a class may have a semicolon in its name
    return tuple(part for part in (piece.strip() for piece in label.split(";")) if part)
