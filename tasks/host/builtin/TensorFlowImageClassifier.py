"""Built in: TensorFlow DeepLab, a frozen graph with the tensors of that exporter.

docs/formats/python-raster-function.md, "Predefined configurations".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np
from chipline_tensorflow import FrozenGraph


class TensorFlowImageClassifier:
    """A class value per pixel."""

    def __init__(self) -> None:
        self.name = "TensorFlow image classifier"
        self.description = "Runs a frozen graph of DeepLab."

    def initialize(self, **kwargs: Any) -> None:
        """Loads the graph; ``model``: path of the ``.emd`` or its text."""
        self.definition = builtin.Definition(kwargs["model"])
        self.graph = FrozenGraph(self.definition)

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set; the batch is the definition's ``BatchSize``, as in ArcGIS."""
        return [*builtin.leading_parameters(), builtin.padding_parameter(self.definition)]

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
        """The class values of one block, int32 (1, ty, tx): the network's indices as they are."""
        block, valid = builtin.cleaned(pixelBlocks["raster_pixels"], pixelBlocks["raster_mask"])
        tensors = ["SemanticPredictions:0"]
        (found,) = self.graph.run("ImageTensor:0", tensors, self.tiles.chips(block))
        if found.ndim == 4 and found.shape[-1] == 1:
            found = found[..., 0]
        pixels = self.tiles.joined(found).astype(np.int32)
        return {"output_pixels": np.where(self.tiles.inner(valid), pixels, 0)}
