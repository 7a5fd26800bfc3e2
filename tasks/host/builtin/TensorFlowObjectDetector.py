"""Built in: TensorFlow ObjectDetectionAPI, a frozen graph with the tensors of that exporter.

docs/formats/python-raster-function.md, "Predefined configurations".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np
from chipline_boxes import objects
from chipline_tensorflow import FrozenGraph

_TENSORS = ["detection_boxes:0", "detection_scores:0", "detection_classes:0"]


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
        good = np.isfinite(boxes).all(axis=-1) & (scores > self.threshold)
        chip, index = np.nonzero(good)
        # ymin, xmin, ymax, xmax as parts of the chip -> pixels of it
        found = boxes[chip, index].astype(np.float64) * np.array(
            [self.tiles.height, self.tiles.width, self.tiles.height, self.tiles.width]
        )
        labels = np.rint(classes[chip, index]).astype(int)
        answer: dict[str, str] = objects(
            self.definition, self.tiles, found, scores[chip, index], labels, chip
        )
        return answer
