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
from torchvision.ops import batched_nms, box_iou

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
        """Loads the network; ``model``: path of the ``.emd`` or its text, ``device``: ArcGIS's number."""
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
                "True: boxes whose centre lies in the padding of the block are left to the next block. "
                "False: they are reported too, for hosts that settle duplicates between blocks themselves.",
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
        found = _Boxes.none()
        if valid.any():
            for places, chips in self.tiles.batches(block):
                for place, (boxes, labels, scores) in zip(places, self._detect(chips)):  # noqa: B905
                    found.add(boxes, labels, scores, place)
        found = found.settled(self.tiles, block.shape[1:])
        return {"output_vectors": json.dumps(_feature_set(self._features(found, valid)))}

    def _detect(self, chips: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Boxes (n, 4) xmin, ymin, xmax, ymax, labels (n,) and scores (n,) of each chip, best first."""
        with torch.inference_mode():
            images = self.network.normalised(chips)
            classes = len(self.network.classes)
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
                kept = (scores >= self.threshold) & (labels >= 1) & (labels <= classes)
                boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
                if self.test_time_augmentation:
                    chosen = batched_nms(boxes, scores, labels, self.nms_overlap)
                    boxes, labels, scores = boxes[chosen], labels[chosen], scores[chosen]
                results.append(
                    (boxes.double().cpu().numpy(), labels.cpu().numpy(), scores.double().cpu().numpy())
                )
        return results

    def _features(self, found: _Boxes, valid: np.ndarray) -> list[dict[str, Any]]:
        padding = self.tiles.padding
        rows, cols = valid.shape
        features: list[dict[str, Any]] = []
        for (left, top, right, bottom), label, score in zip(  # noqa: B905
            found.boxes, found.labels, found.scores
        ):
            x, y = (left + right) / 2, (top + bottom) / 2
            if self.exclude_pad_detections and not (
                padding <= x < cols - padding and padding <= y < rows - padding
            ):
                continue
            # An object whose middle is no imagery is an artefact of the fill value.
            if not valid[min(max(int(y), 0), rows - 1), min(max(int(x), 0), cols - 1)]:
                continue
            west, east = float(left - padding), float(right - padding)
            north, south = float(top - padding), float(bottom - padding)
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
        return features


class _Boxes:
    """Boxes of all chips of a block, in pixels of the block with its padding.

    boxes (n, 4) xmin, ymin, xmax, ymax; labels (n,); scores (n,) 0-1; chips (n, 2) row and col of the chip.
    """

    def __init__(self, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, chips: np.ndarray) -> None:
        self.boxes, self.labels, self.scores, self.chips = boxes, labels, scores, chips

    @classmethod
    def none(cls) -> _Boxes:
        return cls(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 2), np.int64))

    def add(self, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, place: tuple[int, int]) -> None:
        """The boxes of one chip, whose top-left corner is at ``place`` (row, col) of the block."""
        usable = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        row, col = place
        self.boxes = np.concatenate([self.boxes, boxes[usable] + np.array([col, row, col, row])])
        self.labels = np.concatenate([self.labels, labels[usable]])
        self.scores = np.concatenate([self.scores, scores[usable]])
        self.chips = np.concatenate([self.chips, np.tile(np.array([[row, col]]), (int(usable.sum()), 1))])

    def take(self, which: np.ndarray) -> _Boxes:
        return _Boxes(self.boxes[which], self.labels[which], self.scores[which], self.chips[which])

    def settled(self, tiles: Any, shape: tuple[int, ...]) -> _Boxes:
        """Every object once, although neighbouring chips overlap.

        The chip whose inner part holds a box's centre owns it; at the block's edges the inner part reaches
        on through the padding, so that each point has one owner. Two chips may place an object differently
        and both claim it, or both leave it to the other: boxes of one class and of different chips that
        overlap by more than half are the same object, and the most confident one stays.
        """
        if len(self.scores) == 0 or tiles.padding == 0:
            return self
        owned = np.ones(len(self.scores), dtype=bool)
        near = np.zeros(len(self.scores), dtype=bool)
        for axis, length in ((0, shape[0]), (1, shape[1])):
            centre = (self.boxes[:, 1 - axis] + self.boxes[:, 3 - axis]) / 2
            start = self.chips[:, axis] + tiles.padding
            first = self.chips[:, axis] == 0
            last = start + tiles.inner >= length - tiles.padding
            before = np.where(first, np.inf, centre - start)
            after = np.where(last, np.inf, start + tiles.inner - centre)
            owned &= (before >= 0) & (after > 0)
            near |= np.minimum(np.abs(before), np.abs(after)) <= tiles.padding
        order = np.lexsort((np.arange(len(owned)), -self.scores))
        candidates = order[near[order]]
        keep = owned.copy()
        same = _same_objects(self.take(candidates))
        taken = np.zeros(len(candidates), dtype=bool)
        # Owned boxes first, then those that every chip left to another; the best first in both.
        for wanted in (True, False):
            for index, item in enumerate(candidates):
                if bool(owned[item]) != wanted:
                    continue
                others = same[index]
                if wanted:
                    keep[item] = not (others & taken).any()
                    taken[index] = keep[item]
                elif others.any() and not (others & taken).any() and not (others & owned[candidates]).any():
                    keep[item] = taken[index] = True
        return self.take(keep)


def _same_objects(found: _Boxes) -> np.ndarray:
    if len(found.scores) == 0:
        return np.zeros((0, 0), dtype=bool)
    boxes = torch.from_numpy(found.boxes).float()
    overlap = box_iou(boxes, boxes).numpy() > 0.5
    same_class = found.labels[:, None] == found.labels[None, :]
    other_chip = (found.chips[:, None, :] != found.chips[None, :, :]).any(axis=2)
    pairs: np.ndarray = overlap & same_class & other_chip
    return pairs


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
