"""Built in: TensorFlow ObjectDetectionAPI, a frozen graph with the tensors of that exporter.

docs/formats/python-raster-function.md, "Predefined configurations".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np
from chipline_tensorflow import FrozenGraph

_TENSORS = ["detection_boxes:0", "detection_scores:0", "detection_classes:0"]
_SAME_OBJECT = 0.5  # overlap (intersection over union) of one object's boxes in two chips
_NEAR = 8  # pixels: two chips may place one object's centre on either side of the line between them


class TensorFlowObjectDetector:
    """Boxes with the name of their class and a confidence from 0 to 1."""

    def __init__(self) -> None:
        self.name = "TensorFlow object detector"
        self.description = "Runs a frozen graph of the TensorFlow Object Detection API."

    def initialize(self, **kwargs: Any) -> None:
        """Loads the graph; ``model``: path of the ``.emd`` or its text."""
        self.definition = builtin.Definition(kwargs["model"])
        self.graph = FrozenGraph(self.definition)

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after raster, model and device."""
        return [
            *builtin.leading_parameters(),
            builtin.padding_parameter(self.definition),
            builtin.threshold_parameter(self.definition.number("Threshold", 0.6)),
            *builtin.batch_parameters(self.definition),
        ]

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout and the threshold as it is used."""
        self.tiles = builtin.Tiles(self.definition, scalars)
        self.threshold = float(scalars["score_threshold"])
        return {**self.tiles.configuration(self.definition), "threshold": self.threshold}

    def getFields(self) -> str:
        """The output table's fields, as Esri JSON."""
        text: str = builtin.fields_text()
        return text

    def getGeometryType(self) -> int:
        """4: polygons."""
        return 4

    def vectorize(self, **pixelBlocks: Any) -> dict[str, str]:
        """The objects of one block; takes ``raster_pixels`` and ``raster_mask``."""
        block, _ = builtin.cleaned(pixelBlocks["raster_pixels"], pixelBlocks["raster_mask"])
        boxes, scores, classes = self.graph.run("image_tensor:0", _TENSORS, self.tiles.chips(block))
        places = np.array(self.tiles.places(), dtype=np.float64)  # (chips, 2) row, col
        good = np.isfinite(boxes).all(axis=-1) & (scores > self.threshold)
        chip, index = np.nonzero(good)
        # ymin, xmin, ymax, xmax as parts of the chip -> pixels of the block with its padding
        found = boxes[chip, index].astype(np.float64) * np.array(
            [self.tiles.height, self.tiles.width, self.tiles.height, self.tiles.width]
        )
        found += np.tile(places[chip], 2)
        confidences, labels = scores[chip, index], np.rint(classes[chip, index]).astype(int)
        kept = self._once(found, confidences, labels, chip)
        features: list[dict[str, Any]] = []
        for place in kept:
            top, left, bottom, right = (found[place] - self.tiles.padding).tolist()
            ring = [[left, top], [right, top], [right, bottom], [left, bottom]]
            name = self.definition.class_name(int(labels[place]))
            features.append(builtin.feature(len(features) + 1, name, float(confidences[place]), [ring]))
        answer: dict[str, str] = builtin.feature_set(features)
        return answer

    def _once(
        self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, chips: np.ndarray
    ) -> list[int]:
        """Indices of the boxes that stay: each object once, though the chips of a block overlap.

        A chip answers for the objects whose centre lies in its inner part, or outside the inner block, where
        the host settles what neighbouring blocks saw.
        """
        if self.tiles.side == 1:
            return list(range(len(boxes)))
        near = float(min(_NEAR, self.tiles.padding))
        inner = np.array([self.tiles.inner_rows, self.tiles.inner_cols], dtype=np.float64)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - self.tiles.padding
        cell = np.array(self.tiles.places(), dtype=np.float64)[chips] / inner  # (n, 2) place in the grid
        first, last = cell == 0, cell == self.tiles.side - 1
        low = np.where(first, -np.inf, cell * inner - near)
        high = np.where(last, np.inf, (cell + 1) * inner + near)
        own = ((centre >= low) & (centre < high)).all(axis=1)
        kept: list[int] = []
        for place in np.argsort(-scores, kind="stable").tolist():
            rivals = [item for item in kept if chips[item] != chips[place] and labels[item] == labels[place]]
            if own[place] and not (_overlaps(boxes[place], boxes[rivals]) > _SAME_OBJECT).any():
                kept.append(place)
        return sorted(kept)


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with others, (n, 4) of ymin, xmin, ymax, xmax."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.clip(sides, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    result: np.ndarray = common / np.maximum(areas - common, 1e-9)
    return result
