"""Built in: Keras MaskRCNN, objects with their outlines.

docs/formats/python-raster-function.md, "Predefined configurations".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
from chipline_mask_rcnn import MaskNetwork, outlines


class KerasMaskDetector:
    """Outlines with the name of their class and a confidence from 0 to 1."""

    def __init__(self) -> None:
        self.name = "Keras Mask R-CNN"
        self.description = "Runs a Mask R-CNN in Matterport's manner, whose code the package carries."

    def initialize(self, **kwargs: Any) -> None:
        """Makes the network and loads its weights; ``model``: path of the ``.emd`` or its text."""
        self.definition = builtin.Definition(kwargs["model"])
        self.network = MaskNetwork(self.definition)

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after raster, model and device."""
        return [
            *builtin.leading_parameters(),
            builtin.padding_parameter(self.definition),
            # The network has a threshold of its own: all that it reports, unless a person wants less.
            builtin.threshold_parameter(self.definition.number("Threshold", 0.0)),
        ]

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout: one image at a time."""
        self.tiles = builtin.Tiles(self.definition, scalars, batched=False)
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
        (chip,) = builtin.channels_last(self.tiles.chips(block))
        masks, classes, scores = self.network.detect(chip)
        features: list[dict[str, Any]] = []
        for number in range(len(classes)):
            rings = outlines(masks[:, :, number], self.tiles.padding)
            score = float(scores[number])
            if rings and score >= self.threshold:
                name = self.definition.class_name(int(classes[number]))
                features.append(builtin.feature(len(features) + 1, name, score, rings))
        answer: dict[str, str] = builtin.feature_set(features)
        return answer
