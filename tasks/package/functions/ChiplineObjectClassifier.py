"""Chipline's inference function for object classification; runs in ArcGIS-like hosts.

It travels inside packages and needs numpy and torch only, beside ``chipline_runtime.py``. The interface is
stated in docs/formats/python-raster-function.md: the host cuts one chip around each feature and hands over a
tuple of them; the answer has one feature per chip, in their order.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import torch
from torch.nn import functional

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - packages have no parents

import chipline_runtime as runtime

try:
    import arcpy  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # a host without it decides by the device number alone
    arcpy = None

_FIELDS = (("OID", "OID"), ("Label", "String"), ("Confidence", "String"))


class ChiplineObjectClassifier:
    """Gives every object the name of its class, or of several; confidences are from 0 to 1."""

    def __init__(self) -> None:
        self.name = "Chipline object classifier"
        self.description = "Classifies the objects of a layer with the network of this package."
        self.network: Any = None
        self.batch = 1
        self.threshold = 0.0
        self.test_time_augmentation = False

    def initialize(self, **kwargs: Any) -> None:
        """Loads the network; ``model``: path of the ``.emd`` or its text, ``device``: ArcGIS's number."""
        if "model" not in kwargs:
            return
        here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
        self.network = runtime.PackagedNetwork(kwargs["model"], int(kwargs.get("device", -1)), here, arcpy)
        self._configure({})

    @property
    def several(self) -> bool:
        """Whether an object may have several classes, or none."""
        return bool(self.network.own.get("SeveralLabels", False))

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after rasters, model and device."""
        rasters, *others = runtime.leading_parameters()
        rasters = {**rasters, "name": "rasters", "dataType": "rasters", "displayName": "Rasters"}
        return [
            {**rasters, "description": "The imagery of each object."},
            *others,
            runtime.parameter(
                "batch_size",
                "GPLong",
                self.network.number("BatchSize", 16),
                "Batch size",
                "Objects per call of the network.",
                [1, runtime.LARGEST_BATCH],
            ),
            runtime.parameter(
                "score_threshold",
                "GPDouble",
                self._usual_threshold(),
                "Score threshold",
                "Classes with a lower confidence (0-1) are left out; an object may end without a class.",
                [0.0, 1.0],
            ),
            runtime.augmentation_parameter(self.network, "averages the scores"),
        ]

    def _usual_threshold(self) -> float:
        return float(self.network.own.get("Threshold", 0.0))

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """How objects are cut out, how many come in one call, and the arguments as they are used."""
        self._configure(scalars)
        definition = self.network.definition
        return {
            "extractBands": tuple(self.network.bands),
            "padding": 0,
            "tx": self.network.number("ImageWidth", 224),
            "ty": self.network.number("ImageHeight", 224),
            "fixedTileSize": 1,
            "batch_size": self.batch,
            "CropSizeFixed": int(definition.get("CropSizeFixed", 1)),
            "BlackenAroundFeature": int(definition.get("BlackenAroundFeature", 0)),
            "inputMask": True,
            "inheritProperties": 2 | 4 | 8,
            "invalidateProperties": 2 | 4 | 8,
            "score_threshold": self.threshold,
            "test_time_augmentation": str(self.test_time_augmentation),
        }

    def _configure(self, scalars: dict[str, Any]) -> None:
        usual = self.network.number("BatchSize", 16)
        self.batch = int(runtime.argument(scalars, "batch_size", usual, 1, runtime.LARGEST_BATCH))
        self.threshold = runtime.argument(scalars, "score_threshold", self._usual_threshold(), 0.0, 1.0)
        self.test_time_augmentation = runtime.augments(self.network, scalars)

    def limit_batch(self, batch: int) -> None:
        """Has the network take at most ``batch`` objects at a time; hosts go on to send as many as before."""
        self.batch = max(1, min(self.batch, int(batch)))

    def getFields(self) -> str:
        """The output table's fields, as Esri JSON."""
        return json.dumps({"fields": [*map(_field, _FIELDS), _field(("Shape", "Geometry"))]})

    def getGeometryType(self) -> int:
        """4: polygons."""
        return 4

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """Nothing to change: the output is no raster."""
        return kwargs

    def vectorize(self, **pixelBlocks: Any) -> dict[str, str]:
        """Classifies the objects of one call.

        Takes tuples ``rasters_pixels`` of (bands, rows, cols) and ``rasters_mask``; gives ``output_vectors``,
        an Esri feature set as JSON text: Label holds the class, or several joined with ";", Confidence one
        number for each. Geometries are the chips' outlines, which hosts replace by the objects'.
        """
        pixels = pixelBlocks["rasters_pixels"]
        masks = pixelBlocks.get("rasters_mask") or [None] * len(pixels)
        blocks = [runtime.cleaned(block, mask)[0] for block, mask in zip(pixels, masks)]  # noqa: B905
        features: list[dict[str, Any]] = []
        for start in range(0, len(blocks), self.batch):
            part = blocks[start : start + self.batch]
            for block, scores in zip(part, self.predict(part)):  # noqa: B905
                features.append(self._feature(len(features) + 1, block, scores))
        return {"output_vectors": json.dumps(_feature_set(features))}

    def predict(self, blocks: list[np.ndarray]) -> np.ndarray:
        """Probability of each class for each chip  # (n, classes), chips (bands, rows, cols) of any size."""
        size = int(self.network.own.get("InputSize", self.network.number("ImageHeight", 224)))
        with torch.inference_mode():
            images = torch.cat([_scaled(self.network.normalised(block[None]), size) for block in blocks])
            logits = self._logits(images)
            result: np.ndarray = logits.double().cpu().numpy()
        return result

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        positions = runtime.POSITIONS if self.test_time_augmentation else runtime.POSITIONS[:1]
        total = torch.zeros(0)
        for number, position in enumerate(positions):
            logits = self.network.module(runtime.turned(images, position)).float()
            scores = torch.sigmoid(logits) if self.several else torch.softmax(logits, dim=1)
            total = total + scores if number else scores
        return total / len(positions)

    def _feature(self, number: int, block: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        order = np.argsort(-scores, kind="stable")
        chosen = [
            index for index in (order if self.several else order[:1]) if scores[index] >= self.threshold
        ]
        right, bottom = block.shape[2] - 1, block.shape[1] - 1
        return {
            "attributes": {
                "OID": number,
                "Label": ";".join(str(self.network.classes[index]["Name"]) for index in chosen),
                "Confidence": ";".join(repr(float(scores[index])) for index in chosen),
            },
            "geometry": {"rings": [[[0, 0], [right, 0], [right, bottom], [0, bottom]]]},
        }


def _scaled(image: torch.Tensor, size: int) -> torch.Tensor:
    """(1, bands, rows, cols) -> (1, bands, size, size), as chips are in training."""
    if image.shape[-2:] == (size, size):
        return image
    smaller = max(image.shape[-2:]) > size
    return functional.interpolate(
        image, size=(size, size), mode="bilinear", align_corners=False, antialias=smaller
    )


def _field(item: tuple[str, str]) -> dict[str, str]:
    return {"name": item[0], "type": "esriFieldType" + item[1], "alias": item[0]}


def _feature_set(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "displayFieldName": "",
        "fieldAliases": {name: name for name, _ in _FIELDS},
        "geometryType": "esriGeometryPolygon",
        "fields": [_field(item) for item in _FIELDS],
        "features": features,
    }
