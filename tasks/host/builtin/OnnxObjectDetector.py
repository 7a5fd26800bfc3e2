"""Built in: detection by an ONNX model that gives boxes, labels and scores.

docs/formats/python-raster-function.md, "ONNX".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np
from chipline_boxes import objects
from chipline_onnx import OnnxNetwork

_OUTPUTS = ["boxes", "labels", "scores"]


class OnnxObjectDetector:
    """Boxes with the name of their class and the model's score."""

    def __init__(self) -> None:
        self.name = "ONNX object detector"
        self.description = "Runs an ONNX model that finds boxes, labels and scores."

    def initialize(self, **kwargs: Any) -> None:
        """Loads the model; ``model``: path of the ``.emd`` or its text."""
        self.definition = builtin.Definition(kwargs["model"])
        self.network = OnnxNetwork(self.definition, int(kwargs.get("device", -1)))
        if not set(_OUTPUTS) <= set(self.network.outputs):
            given = ", ".join(self.network.outputs)
            raise ValueError(f"the model gives {given}, where {', '.join(_OUTPUTS)} are expected")

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """Padding, threshold and batch size."""
        return [
            *builtin.leading_parameters(),
            builtin.padding_parameter(self.definition),
            builtin.threshold_parameter(self.definition.number("Threshold", 0.5)),
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
        parts = [self._found(chip[np.newaxis]) for chip in self.tiles.chips(block)]
        result: dict[str, str] = objects(
            self.definition,
            self.tiles,
            np.concatenate([boxes for boxes, _, _ in parts]),
            np.concatenate([scores for _, scores, _ in parts]),
            np.concatenate([labels for _, _, labels in parts]),
            np.repeat(np.arange(len(parts)), [len(scores) for _, scores, _ in parts]),
        )
        return result

    def _found(self, chip: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (n, 4) ymin, xmin, ymax, xmax, scores and labels of one chip, above the threshold."""
        (answer,) = self.network.run(chip, _OUTPUTS)
        boxes, labels, scores = answer[0].reshape(-1, 4), answer[1].reshape(-1), answer[2].reshape(-1)
        if not len(boxes) == len(labels) == len(scores):
            raise ValueError(
                f"the model gives {len(boxes)} boxes, {len(labels)} labels, {len(scores)} scores"
            )
        good = np.isfinite(boxes).all(axis=1) & (scores > self.threshold)
        # xmin, ymin, xmax, ymax, as torchvision's detectors give them
        return boxes[good][:, [1, 0, 3, 2]], scores[good], np.rint(labels[good]).astype(int)
