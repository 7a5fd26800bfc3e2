"""Chipline's inference function for object detection; runs in ArcGIS-like hosts.

It travels inside packages and needs numpy, torch and torchvision only, beside ``chipline_runtime.py``. The
interface is stated in docs/formats/python-raster-function.md. It offers no ``predict_scores``: boxes have no
score per pixel.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - packages have no parents

import chipline_runtime as runtime

try:
    import arcpy  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # a host without it decides by the device number alone
    arcpy = None

_FIELDS = (("FID", "OID"), ("Class", "String"), ("Confidence", "Double"))


class ChiplineObjectDetector:
    """Finds objects; each is a box with the name of its class and a confidence from 0 to 100."""

    def __init__(self) -> None:
        self.name = "Chipline object detector"
        self.description = "Detects objects in a raster with the network of this package."
        self.network: Any = None
        self.tiles: Any = None
        self.threshold = 0.5
        self.nms_overlap = 0.5
        self.test_time_augmentation = False
        self.exclude_pad_detections = True

    def initialize(self, **kwargs: Any) -> None:
        """Loads the network; ``model`` is the path of the ``.emd`` or its text, ``device`` ArcGIS's number."""
        if "model" not in kwargs:
            return
        here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
        self.network = runtime.PackagedNetwork(kwargs["model"], int(kwargs.get("device", -1)), here, arcpy)
        self.tiles = runtime.super_tile(self.network, {})
        self._configure({})

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after raster, model and device."""
        return [
            *runtime.leading_parameters(),
            *runtime.tile_parameters(self.network),
            runtime.parameter(
                "threshold",
                "GPDouble",
                self._default("Threshold", 0.5),
                "Threshold",
                "Boxes with a lower confidence (0-1) are left out.",
                [0.0, 1.0],
            ),
            runtime.parameter(
                "nms_overlap",
                "GPDouble",
                self._default("NmsOverlap", 0.5),
                "Overlap of one tile's boxes",
                "Of two boxes of a class that overlap by more than this (0-1), the weaker one is left out.",
                [0.0, 1.0],
            ),
            runtime.parameter(
                "exclude_pad_detections",
                "GPString",
                "True",
                "Exclude detections in the padding",
                "True: a box counts where the inner part of its tile holds its centre. "
                "False: every box of every tile, for hosts that settle duplicates themselves.",
                ["True", "False"],
            ),
            runtime.parameter(
                "test_time_augmentation",
                "GPString",
                runtime.as_bool(self.network.definition.get("test_time_augmentation", False)),
                "Test time augmentation",
                "True: unites the boxes of the tile and its mirror images; four times the work.",
                ["True", "False"],
            ),
        ]

    def _default(self, key: str, otherwise: float) -> float:
        value = self.network.own.get(key, self.network.definition.get(key))
        return otherwise if value is None else float(value)

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout and the arguments as they are used."""
        self.tiles = runtime.super_tile(self.network, scalars)
        self._configure(scalars)
        settings: dict[str, Any] = runtime.configuration(self.network, self.tiles)
        settings.update(
            threshold=self.threshold,
            nms_overlap=self.nms_overlap,
            exclude_pad_detections=str(self.exclude_pad_detections),
            test_time_augmentation=str(self.test_time_augmentation),
            predict_scores=False,
            number_of_scores=0,
        )
        return settings

    def _configure(self, scalars: dict[str, Any]) -> None:
        self.threshold = float(scalars.get("threshold", self._default("Threshold", 0.5)))
        self.nms_overlap = float(scalars.get("nms_overlap", self._default("NmsOverlap", 0.5)))
        self.exclude_pad_detections = runtime.as_bool(scalars.get("exclude_pad_detections", True))
        self.test_time_augmentation = runtime.as_bool(
            scalars.get(
                "test_time_augmentation", self.network.definition.get("test_time_augmentation", False)
            )
        )
        for name, value in (("threshold", self.threshold), ("nms_overlap", self.nms_overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, must lie between 0 and 1")
        # torchvision keeps these on the detector, or on its second stage.
        for part in (self.network.module, getattr(self.network.module, "roi_heads", None)):
            if part is not None and hasattr(part, "score_thresh"):
                part.score_thresh = self.threshold
                part.nms_thresh = self.nms_overlap

    def getFields(self) -> str:
        """The output table's fields, as Esri JSON."""
        fields = [_field(name, kind) for name, kind in _FIELDS]
        return json.dumps({"fields": [*fields, _field("Shape", "Geometry")]})

    def getGeometryType(self) -> int:
        """4: polygons."""
        return 4

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """Nothing to change: the output is no raster."""
        return kwargs

    def vectorize(self, **pixelBlocks: Any) -> dict[str, str]:
        """Detects the objects of one block.

        Takes ``raster_pixels`` (bands, ty + 2 padding, tx + 2 padding) and ``raster_mask``; gives
        ``output_vectors``, an Esri feature set as JSON text. Coordinates are pixels from the top-left corner
        of the inner block, x to the right, y down; rings are not closed, upper left first, clockwise.
        """
        block, valid = runtime.cleaned(pixelBlocks["raster_pixels"], pixelBlocks.get("raster_mask"))
        features: list[dict[str, Any]] = []
        if valid.any():
            for places, chips in self.tiles.batches(block):
                for (row, col), found in zip(places, self._detect(chips)):  # noqa: B905
                    self._collect(features, found, row, col, valid)
        return {"output_vectors": json.dumps(_feature_set(features))}

    def _detect(self, chips: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Boxes (n, 4) xmin, ymin, xmax, ymax, labels (n,) and scores (n,) of each chip, best first."""
        with torch.inference_mode():
            images = self.network.normalised(chips)
            found = self.network.module(list(images))
            if self.test_time_augmentation:
                size = float(self.tiles.tile)
                for axes in ((3,), (2,), (2, 3)):
                    mirrored = self.network.module(list(images.flip(axes)))
                    found = [
                        {key: torch.cat([ours[key], _unmirrored(theirs, axes, size)[key]]) for key in ours}
                        for ours, theirs in zip(found, mirrored)  # noqa: B905
                    ]
            results = []
            for item in found:
                boxes, labels, scores = item["boxes"], item["labels"], item["scores"]
                kept = scores >= self.threshold
                boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
                if self.test_time_augmentation:
                    chosen = batched_nms(boxes, scores, labels, self.nms_overlap)
                    boxes, labels, scores = boxes[chosen], labels[chosen], scores[chosen]
                results.append(
                    (boxes.double().cpu().numpy(), labels.cpu().numpy(), scores.double().cpu().numpy())
                )
        return results

    def _collect(
        self,
        features: list[dict[str, Any]],
        found: tuple[np.ndarray, np.ndarray, np.ndarray],
        row: int,
        col: int,
        valid: np.ndarray,
    ) -> None:
        padding, tile = self.tiles.padding, self.tiles.tile
        for (left, top, right, bottom), label, score in zip(*found):  # noqa: B905
            if not (right > left and bottom > top) or not 1 <= label <= len(self.network.classes):
                continue
            x, y = (left + right) / 2, (top + bottom) / 2
            if self.exclude_pad_detections and padding:
                # The tile whose inner part holds the centre owns the object; half-open, so that one does.
                if not (padding <= x < tile - padding and padding <= y < tile - padding):
                    continue
            at_row = min(int(row + y), valid.shape[0] - 1)
            at_col = min(int(col + x), valid.shape[1] - 1)
            if not valid[at_row, at_col]:
                continue
            west, east = float(left + col - padding), float(right + col - padding)
            north, south = float(top + row - padding), float(bottom + row - padding)
            features.append(
                {
                    "attributes": {
                        "OID": len(features) + 1,
                        "Class": str(self.network.classes[int(label) - 1]["Name"]),
                        "Confidence": float(score) * 100,
                    },
                    "geometry": {"rings": [[[west, north], [east, north], [east, south], [west, south]]]},
                }
            )


def _unmirrored(
    found: dict[str, torch.Tensor], axes: tuple[int, ...], size: float
) -> dict[str, torch.Tensor]:
    left, top, right, bottom = found["boxes"].unbind(1)
    if 3 in axes:
        left, right = size - right, size - left
    if 2 in axes:
        top, bottom = size - bottom, size - top
    return {**found, "boxes": torch.stack([left, top, right, bottom], dim=1)}


def _field(name: str, kind: str) -> dict[str, str]:
    return {"name": name, "type": "esriFieldType" + kind, "alias": name}


def _feature_set(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "displayFieldName": "",
        "fieldAliases": {name: name for name, _ in _FIELDS},
        "geometryType": "esriGeometryPolygon",
        "fields": [_field(name, kind) for name, kind in _FIELDS],
        "features": features,
    }
