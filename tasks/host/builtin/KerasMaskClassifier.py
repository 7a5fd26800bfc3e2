"""Built in: Keras MaskRCNN as a pixel classifier: the objects' class ids, painted.

docs/formats/python-raster-function.md, "Predefined configurations".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np
from chipline_mask_rcnn import MaskNetwork


class KerasMaskClassifier:
    """A class id per pixel, 0 where there is no object."""

    def __init__(self) -> None:
        self.name = "Keras Mask R-CNN, pixels"
        self.description = "Paints the objects of a Mask R-CNN in Matterport's manner."

    def initialize(self, **kwargs: Any) -> None:
        """Makes the network and loads its weights; ``model``: path of the ``.emd`` or its text."""
        self.definition = builtin.Definition(kwargs["model"])
        self.network = MaskNetwork(self.definition)

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after raster, model and device."""
        return [*builtin.leading_parameters(), builtin.padding_parameter(self.definition)]

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout: one image at a time."""
        self.tiles = builtin.Tiles(self.definition, scalars, batched=False)
        answer: dict[str, Any] = self.tiles.configuration(self.definition)
        return answer

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """One band of class ids, with the names and colours of their values."""
        table = self.definition.attribute_table()
        kwargs["output_info"].update(bandCount=1, pixelType="i4", noData=None, rasterAttributeTable=table)
        return kwargs

    def updatePixels(self, tlc: Any, shape: Any, props: Any, **pixelBlocks: Any) -> dict[str, np.ndarray]:  # noqa: ARG002
        """The class ids of one block, int32 (1, ty, tx); where objects overlap the surest counts."""
        block, valid = builtin.cleaned(pixelBlocks["raster_pixels"], pixelBlocks["raster_mask"])
        (chip,) = builtin.channels_last(self.tiles.chips(block))
        masks, classes, scores = self.network.detect(chip)
        painted = np.zeros(chip.shape[:2], np.int32)
        for number in np.argsort(scores, kind="stable").tolist():
            painted[masks[:, :, number]] = classes[number]
        painted[~valid] = 0
        return {"output_pixels": self.tiles.joined(painted[None])}
