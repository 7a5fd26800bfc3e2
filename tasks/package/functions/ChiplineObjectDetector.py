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

_Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Boxes (n, 4) xmin, ymin, xmax, ymax, labels (n,), scores (n,) 0-1."""

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
            runtime.augmentation_parameter(self.network, "merges the boxes"),
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
        self.threshold = runtime.argument(scalars, "threshold", self._default("Threshold", 0.5), 0.0, 1.0)
        overlap = self._default("NmsOverlap", 0.5)
        self.nms_overlap = runtime.argument(scalars, "nms_overlap", overlap, 0.0, 1.0)
        self.exclude_pad_detections = runtime.flag(scalars, "exclude_pad_detections", True)
        self.test_time_augmentation = runtime.augments(self.network, scalars)
        # An object that some positions see less clearly must still count in its mean.
        least = self.threshold / 2 if self.test_time_augmentation else self.threshold
        # torchvision keeps these on the detector, or on its second stage.
        for part in (self.network.module, getattr(self.network.module, "roi_heads", None)):
            if part is not None and hasattr(part, "score_thresh"):
                part.score_thresh = least
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
            found = self._merged(images) if self.test_time_augmentation else self._found(images)
            results = []
            for boxes, labels, scores in found:
                kept = (scores >= self.threshold) & (labels >= 1) & (labels <= classes)
                results.append(
                    (
                        boxes[kept].double().cpu().numpy(),
                        labels[kept].cpu().numpy(),
                        scores[kept].double().cpu().numpy(),
                    )
                )
        return results

    def _found(self, images: torch.Tensor) -> list[_Found]:
        return [(item["boxes"], item["labels"], item["scores"]) for item in self.network.module(list(images))]

    def _merged(self, images: torch.Tensor) -> list[_Found]:
        """What the network finds in the eight positions of each image, as one list of boxes.

        Boxes of a class that overlap by more than ``nms_overlap`` with the most confident one are one object:
        its box is their mean, weighted by confidence, and its confidence is the mean over the positions,
        where a position that does not see the object counts as 0.
        """
        size = float(self.tiles.tile)
        views: list[list[_Found]] = [[] for _ in range(len(images))]
        for position in runtime.POSITIONS:
            for view, (boxes, labels, scores) in zip(  # noqa: B905
                views, self._found(runtime.turned(images, position))
            ):
                view.append((runtime.boxes_turned_back(boxes, position, size), labels, scores))
        return [_fused(view, self.nms_overlap) for view in views]

    def _features(self, found: _Boxes, valid: np.ndarray) -> list[dict[str, Any]]:
        padding = self.tiles.padding
        rows, cols = valid.shape
        features: list[dict[str, Any]] = []
        for number, ((left, top, right, bottom), label, score) in enumerate(
            zip(found.boxes, found.labels, found.scores)  # noqa: B905
        ):
            x, y = (left + right) / 2, (top + bottom) / 2
            if self.exclude_pad_detections and not (
                padding <= x < cols - padding and padding <= y < rows - padding
            ):
                continue
            # An object whose middle is no imagery is an artefact of the fill value.
            if not valid[min(max(int(y), 0), rows - 1), min(max(int(x), 0), cols - 1)]:
                continue
            features.append(
                {
                    "attributes": {
                        "OID": len(features) + 1,
                        "Class": str(self.network.classes[int(label) - 1]["Name"]),
                        "Confidence": float(score) * 100,
                    },
                    "geometry": {"rings": self._rings(found, number)},
                }
            )
        return features

    def _rings(self, found: _Boxes, number: int) -> list[list[list[float]]]:
        left, top, right, bottom = (float(edge) - self.tiles.padding for edge in found.boxes[number])
        return [[[left, top], [right, top], [right, bottom], [left, bottom]]]


class _Boxes:
    """Boxes of all chips of a block, in pixels of the block with its padding.

    boxes (n, 4) xmin, ymin, xmax, ymax; labels (n,); scores (n,) 0-1; chips (n, 2) row and col of the chip;
    numbers (n,) place of each box in the order of being added.
    """

    def __init__(
        self,
        boxes: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray,
        chips: np.ndarray,
        numbers: np.ndarray,
    ) -> None:
        self.boxes, self.labels, self.scores, self.chips = boxes, labels, scores, chips
        self.numbers = numbers

    @classmethod
    def none(cls) -> _Boxes:
        whole = np.zeros(0, np.int64)
        return cls(np.zeros((0, 4)), whole, np.zeros(0), np.zeros((0, 2), np.int64), whole)

    def add(self, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, place: tuple[int, int]) -> None:
        """The boxes of one chip, whose top-left corner is at ``place`` (row, col) of the block."""
        usable = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        row, col = place
        self.boxes = np.concatenate([self.boxes, boxes[usable] + np.array([col, row, col, row])])
        self.labels = np.concatenate([self.labels, labels[usable]])
        self.scores = np.concatenate([self.scores, scores[usable]])
        self.chips = np.concatenate([self.chips, np.tile(np.array([[row, col]]), (int(usable.sum()), 1))])
        self.numbers = np.arange(len(self.scores))

    def take(self, which: np.ndarray) -> _Boxes:
        return _Boxes(
            self.boxes[which],
            self.labels[which],
            self.scores[which],
            self.chips[which],
            self.numbers[which],
        )

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


def _fused(views: list[_Found], overlap: float) -> _Found:
    """One list of boxes of several views of the same square, best first (weighted boxes fusion)."""
    boxes, labels, scores = (torch.cat([view[part] for view in views]) for part in range(3))
    seen_by = torch.cat(
        [torch.full((len(view[2]),), number, device=boxes.device) for number, view in enumerate(views)]
    )
    best = batched_nms(boxes, scores, labels, overlap)
    same = (box_iou(boxes[best], boxes) > overlap) & (labels[best][:, None] == labels[None, :])
    # A box belongs to the first, the most confident of the objects that it overlaps.
    same &= same.long().cumsum(dim=0) == 1
    same[:, best] = torch.eye(len(best), dtype=torch.bool, device=boxes.device)
    weights = same * scores
    fused = (weights.to(boxes.dtype) @ boxes) / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
    # In a view an object counts once, by its most confident box.
    confidence = torch.zeros(len(best), dtype=scores.dtype, device=scores.device)
    for number in range(len(views)):
        of_view = weights * (seen_by == number)
        confidence += of_view.amax(dim=1) if of_view.shape[1] else 0
    confidence /= len(views)
    order = torch.argsort(confidence, descending=True, stable=True)
    return fused[order], labels[best][order], confidence[order]


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
