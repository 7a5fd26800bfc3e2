"""Chipline's inference function for pixel classification; runs in ArcGIS-like hosts.

It travels inside packages and needs numpy and torch only, beside ``chipline_runtime.py``. The interface is
stated in docs/formats/python-raster-function.md. ``updatePixels`` is built on ``predict_scores``, which a
host may also call itself to blend tiles or to keep probabilities.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import torch

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - packages have no parents

import chipline_runtime as runtime

try:
    import arcpy  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # a host without it decides by the device number alone
    arcpy = None


class ChiplineImageClassifier:
    """Gives every pixel the value of its most probable class; 0 is NoData and background."""

    def __init__(self) -> None:
        self.name = "Chipline pixel classifier"
        self.description = "Classifies the pixels of a raster with the network of this package."
        self.network: Any = None
        self.tiles: Any = None
        self.score_values: list[int] = []
        self.predict_background = True
        self.test_time_augmentation = False

    def initialize(self, **kwargs: Any) -> None:
        """Loads the network; ``model``: path of the ``.emd`` or its text, ``device``: ArcGIS's number."""
        if "model" not in kwargs:
            return
        here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
        self.network = runtime.PackagedNetwork(kwargs["model"], int(kwargs.get("device", -1)), here, arcpy)
        listed = [int(entry["Value"]) for entry in self.network.classes]
        # Channel 0 of the network is the background unless a class has the value 0.
        implied = listed if 0 in listed else [0, *listed]
        self.score_values = [int(value) for value in self.network.own.get("ScoreValues", implied)]
        self.tiles = runtime.super_tile(self.network, {})

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after raster, model and device."""
        augmented = runtime.as_bool(self.network.definition.get("test_time_augmentation", False))
        background = runtime.as_bool(self.network.own.get("PredictBackground", True))
        parameters: list[dict[str, Any]] = runtime.leading_parameters() + runtime.tile_parameters(
            self.network
        )
        if 0 in self.score_values:
            parameters.append(
                runtime.parameter(
                    "predict_background",
                    "GPString",
                    background,
                    "Predict background",
                    "False: every pixel gets one of the classes, never 0.",
                    ["True", "False"],
                )
            )
        parameters.append(
            runtime.parameter(
                "test_time_augmentation",
                "GPString",
                augmented,
                "Test time augmentation",
                "True: averages the scores of the tile and its mirror images; four times the work.",
                ["True", "False"],
            )
        )
        return parameters

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout, and that ``predict_scores`` is offered.

        Beyond the common keys: ``predict_scores`` True, ``number_of_scores``, and ``score_values``, the class
        value of each score in order.
        """
        self.tiles = runtime.super_tile(self.network, scalars)
        own = self.network.own
        self.predict_background = runtime.as_bool(
            scalars.get("predict_background", own.get("PredictBackground", True))
        )
        self.test_time_augmentation = runtime.as_bool(
            scalars.get(
                "test_time_augmentation", self.network.definition.get("test_time_augmentation", False)
            )
        )
        settings: dict[str, Any] = runtime.configuration(self.network, self.tiles)
        settings.update(
            predict_background=str(self.predict_background),
            test_time_augmentation=str(self.test_time_augmentation),
            predict_scores=True,
            number_of_scores=len(self.score_values),
            score_values=tuple(self.score_values),
        )
        return settings

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """One band of the smallest fitting type, with the classes as attribute table."""
        output = kwargs["output_info"]
        output["bandCount"] = 1
        output["pixelType"] = self._pixel_type()
        output["statistics"] = ()
        output["histogram"] = ()
        output["rasterAttributeTable"] = json.dumps(self._attribute_table())
        return kwargs

    def _pixel_type(self) -> str:
        low, high = min(0, *self.score_values), max(0, *self.score_values)
        for kind in ("u1", "i2", "u2"):
            limits = np.iinfo(kind)
            if limits.min <= low and high <= limits.max:
                return kind
        return "i4"

    def _attribute_table(self) -> dict[str, Any]:
        kinds = {"OID": "OID", "Value": "Integer", "Class": "String", "Red": "Integer"}
        kinds.update(Green="Integer", Blue="Integer")
        features = []
        for number, entry in enumerate(self.network.classes, start=1):
            red, green, blue = entry.get("Color") or (128, 128, 128)
            attributes = {"OID": number, "Value": int(entry["Value"]), "Class": entry["Name"]}
            attributes.update(Red=int(red), Green=int(green), Blue=int(blue))
            features.append({"attributes": attributes})
        return {
            "displayFieldName": "",
            "fieldAliases": {name: name for name in kinds},
            "fields": [
                {"name": name, "type": "esriFieldType" + kind, "alias": name} for name, kind in kinds.items()
            ],
            "features": features,
        }

    def predict_scores(self, batch: np.ndarray) -> np.ndarray:
        """Probability of each class for each pixel.

        Args:
            batch: (n, bands, rows, cols), source dtype, raw values, 0 where invalid; bands as extractBands.

        Returns:
            (n, scores, rows, cols) float32 in 0-1, summing to 1; score i belongs to ``score_values[i]``.
        """
        rows, cols = batch.shape[-2:]
        divisor = self.network.size_divisor
        down, right = -rows % divisor, -cols % divisor
        if down or right:
            batch = np.pad(batch, ((0, 0), (0, 0), (0, down), (0, right)))
        with torch.inference_mode():
            images = self.network.normalised(batch)
            scores = self._scores(images)
            if self.test_time_augmentation:
                for axes in ((3,), (2,), (2, 3)):
                    scores = scores + self._scores(images.flip(axes)).flip(axes)
                scores = scores / 4
            result: np.ndarray = scores[:, :, :rows, :cols].contiguous().cpu().numpy()
        if result.shape[1] != len(self.score_values):
            raise ValueError(
                f"the network gives {result.shape[1]} scores, the definition names {len(self.score_values)}"
            )
        return result

    def _scores(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.network.module(images).float(), dim=1)

    def updatePixels(
        self,
        tlc: Any,  # noqa: ARG002 - the host's signature
        shape: Any,  # noqa: ARG002
        props: dict[str, Any],
        **pixelBlocks: Any,
    ) -> dict[str, np.ndarray]:
        """Classifies one block.

        Takes ``raster_pixels`` (bands, ty + 2 padding, tx + 2 padding) and ``raster_mask``; gives
        ``output_pixels`` (1, ty, tx) without the padding, and ``output_mask`` of that shape, 0 for NoData.
        """
        block, valid = runtime.cleaned(pixelBlocks["raster_pixels"], pixelBlocks.get("raster_mask"))
        padding, inner = self.tiles.padding, self.tiles.inner
        middle = slice(padding, padding + inner)
        rows, cols = block.shape[1] - 2 * padding, block.shape[2] - 2 * padding
        values = np.asarray(self.score_values)
        output = np.zeros((rows, cols), dtype=values.dtype)
        valid = valid[padding : padding + rows, padding : padding + cols]
        if valid.any():
            for places, chips in self.tiles.batches(block):
                scores = self.predict_scores(chips)[:, :, middle, middle]
                if not self.predict_background and len(values) > 1:
                    scores[:, values == 0] = -1
                for (row, col), best in zip(places, values[scores.argmax(axis=1)]):  # noqa: B905
                    height, width = min(inner, rows - row), min(inner, cols - col)
                    output[row : row + height, col : col + width] = best[:height, :width]
        output[~valid] = 0
        kind = np.dtype(str(props.get("pixelType", self._pixel_type())))
        return {
            "output_pixels": output[np.newaxis].astype(kind),
            "output_mask": valid[np.newaxis].astype("u1"),
        }
