"""Built in: pixel classification by an ONNX model that gives a score per class and pixel.

docs/formats/python-raster-function.md, "ONNX".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np
from chipline_onnx import OnnxNetwork


class OnnxImageClassifier:
    """Every pixel gets the value of the class with the highest score."""

    def __init__(self) -> None:
        self.name = "ONNX image classifier"
        self.description = "Runs an ONNX model that scores the classes of each pixel."

    def initialize(self, **kwargs: Any) -> None:
        """Loads the model; ``model``: path of the ``.emd`` or its text."""
        self.definition = builtin.Definition(kwargs["model"])
        self.network = OnnxNetwork(self.definition, int(kwargs.get("device", -1)))

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """Padding and batch size."""
        own = [builtin.padding_parameter(self.definition), *builtin.batch_parameters(self.definition)]
        return [*builtin.leading_parameters(), *own]

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout."""
        self.tiles = builtin.Tiles(self.definition, scalars)
        answer: dict[str, Any] = self.tiles.configuration(self.definition)
        return answer

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """One band of class values, with their names and colours."""
        table = self.definition.attribute_table()
        kwargs["output_info"].update(bandCount=1, pixelType="i4", noData=None, rasterAttributeTable=table)
        return kwargs

    def updatePixels(self, tlc: Any, shape: Any, props: Any, **pixelBlocks: Any) -> dict[str, np.ndarray]:  # noqa: ARG002
        """The class values of one block, int32 (1, ty, tx)."""
        block, valid = builtin.cleaned(pixelBlocks["raster_pixels"], pixelBlocks["raster_mask"])
        chips = self.tiles.chips(block)
        answers = self.network.run(chips, self.network.outputs[:1])
        scores = np.concatenate([answer[0] for answer in answers])[: len(chips)]
        best = self._values(scores)[scores.argmax(axis=1)]
        pixels = self.tiles.joined(best).astype(np.int32)
        return {"output_pixels": np.where(self.tiles.inner(valid), pixels, 0)}

    def _values(self, scores: np.ndarray) -> np.ndarray:
        """The class value of each channel: Classes in their order, after a background where one is left."""
        values = [value for value, _, _ in self.definition.classes]
        channels = scores.shape[1] if scores.ndim == 4 else 0
        if channels == len(values) + 1 and 0 not in values:
            values = [0, *values]
        if channels != len(values):
            raise ValueError(
                f"the model gives {scores.shape}, where (n, {len(values)}, rows, cols) is expected: one "
                "score per class of the definition, or one more, the first, for the background"
            )
        return np.array(values)
