"""Chipline's inference function for object detection; runs in ArcGIS-like hosts.

It travels inside packages and needs numpy, torch and torchvision only, beside ``chipline_runtime.py``. The
interface is stated in docs/formats/python-raster-function.md. It offers no ``predict_scores``: boxes have no
score per pixel.
"""

from __future__ import annotations

import json
import os
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torchvision.ops import batched_nms, box_iou

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - packages have no parents

import chipline_agreement
import chipline_runtime as runtime

try:
    import arcpy  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # a host without it decides by the device number alone
    arcpy = None

_Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Boxes (n, 4) xmin, ymin, xmax, ymax, labels (n,), scores (n,) 0-1."""

# IoU from which two boxes, of neighbouring chips or of positions of one chip, are of the same object.
_SAME_OBJECT = 0.5
_FIELDS = (("FID", "OID"), ("Class", "String"), ("Confidence", "Double"))


class ChiplineObjectDetector(runtime.ChosenEngine):  # type: ignore[misc, unused-ignore]
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
        self.trunk: Any = None
        self.asked: Any = None
        self.execution: Any = None

    def initialize(self, **kwargs: Any) -> None:
        """Loads the network; ``model``: path of the ``.emd`` or its text, ``device``: ArcGIS's number."""
        if "model" not in kwargs:
            return
        here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
        self.network = runtime.PackagedNetwork(kwargs["model"], int(kwargs.get("device", -1)), here, arcpy)
        self.tiles = runtime.super_tile(self.network, {})
        self.trunk = _Trunk(self.network.module)
        self.asked = _Asked(self.trunk)
        self.asked.take_place_in(self.network.module)
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
                "Of two boxes of a class that overlap by more than this (0-1), the weaker one is left out; "
                "1: none is.",
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
            *runtime.engine_parameters(),
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
        self.execution = runtime.execution(self.network, self.tiles, scalars, self.trunk, _Objects(self))
        if self.asked is not None:
            self.asked.use(self.execution.outputs)

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
            for places, chips in self.tiles.batches(block, self.network.room):
                for place, (boxes, labels, scores) in zip(places, self._detect(chips)):  # noqa: B905
                    found.add(boxes, labels, scores, place)
        found = found.settled(self.tiles, block.shape[1:])
        return {"output_vectors": json.dumps(_feature_set(self._features(found, valid)))}

    def _detect(self, chips: np.ndarray) -> _Seen:
        """Boxes (n, 4) xmin, ymin, xmax, ymax, labels (n,) and scores (n,) of each chip, best first."""
        return self.seen(self.network.normalised(chips))

    def seen(self, images: torch.Tensor) -> _Seen:
        """The same of normalised images (n, bands, rows, cols)."""
        with torch.inference_mode():
            classes = len(self.network.classes)
            sized = self._resized(images)
            factor = sized.shape[-1] / images.shape[-1]
            found = self._merged(sized) if self.test_time_augmentation else self._found(sized)
            results = []
            for boxes, labels, scores in found:
                kept = (scores >= self.threshold) & (labels >= 1) & (labels <= classes)
                results.append(
                    (
                        boxes[kept].double().cpu().numpy() / factor,
                        labels[kept].cpu().numpy(),
                        scores[kept].double().cpu().numpy(),
                    )
                )
        return results

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        """Images scaled as the chips of the training were (``resize_to``)."""
        tile = images.shape[-1]
        edge = self.network.input_edge(tile)
        if edge == tile:
            return images
        return functional.interpolate(
            images, size=(edge, edge), mode="bilinear", align_corners=False, antialias=edge < tile
        )

    def _found(self, images: torch.Tensor) -> list[_Found]:
        return [(item["boxes"], item["labels"], item["scores"]) for item in self.network.module(list(images))]

    def _merged(self, images: torch.Tensor) -> list[_Found]:
        """What the network finds in the eight positions of each image, as one list of boxes.

        Boxes of a class that overlap by more than ``nms_overlap`` with the most confident one are one object:
        its box is their mean, weighted by confidence, and its confidence is the mean over the positions,
        where a position that does not see the object counts as 0. Where nothing is suppressed, boxes are one
        object from half of their union on.
        """
        size = float(images.shape[-1])
        views: list[list[_Found]] = [[] for _ in range(len(images))]
        for position in runtime.POSITIONS:
            for view, (boxes, labels, scores) in zip(  # noqa: B905
                views, self._found(runtime.turned(images, position))
            ):
                view.append((runtime.boxes_turned_back(boxes, position, size), labels, scores))
        overlap = self.nms_overlap if self.nms_overlap < 1 else _SAME_OBJECT
        return [_fused(view, overlap) for view in views]

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


class _Trunk(torch.nn.Module):
    """What of a torchvision detector an execution engine computes: its backbone and its first head.

    Anchors, boxes, suppression, and the second stage where there is one, are computed by torch in float32.
    ``forward`` gives the tensors of both in one tuple, as engines need it: the feature maps, then the head's
    answer.
    """

    def __init__(self, detector: torch.nn.Module) -> None:
        super().__init__()
        stage = getattr(detector, "rpn", None)
        self.two_stages = stage is not None
        self.backbone: Any = detector.backbone
        self.head: Any = detector.head if stage is None else stage.head
        # Names of the feature maps and of the head's answers, known once it has run.
        self.maps: list[str] = []
        self.answers: list[str] = []

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.backbone(images)
        if isinstance(found, torch.Tensor):
            found = {"0": found}
        self.maps = list(found)
        maps = list(found.values())
        answer = self.head(maps)
        if self.two_stages:
            scores, boxes = answer
            return (*maps, *scores, *boxes)
        self.answers = list(answer)
        # Of the maps themselves a detector of one stage asks for their sizes alone.
        return (*(one[:, :1] for one in maps), *answer.values())

    def apart(self, outputs: tuple[torch.Tensor, ...]) -> tuple[OrderedDict[str, torch.Tensor], Any]:
        """The tuple of ``forward`` as feature maps by name, and the head's answer."""
        count = len(self.maps)
        maps, rest = OrderedDict(zip(self.maps, outputs)), outputs[count:]  # noqa: B905
        if self.two_stages:
            return maps, (list(rest[:count]), list(rest[count:]))
        return maps, dict(zip(self.answers, rest))  # noqa: B905


class _Asked(torch.nn.Module):
    """Stands for a detector's backbone: has the trunk computed."""

    def __init__(self, trunk: _Trunk) -> None:
        super().__init__()
        # Not as a layer of this one: it would be its own grandchild.
        self.__dict__["trunk"] = trunk
        self.run: Any = None
        self.answer: Any = None

    def take_place_in(self, detector: torch.nn.Module) -> None:
        """The detector's backbone and first head are this from now on."""
        holder: Any = getattr(detector, "rpn", detector)
        detector.backbone, holder.head = self, _Answered(self)

    def use(self, run: Any) -> Any:
        """Has ``run`` compute from now on; what did before."""
        before, self.run = self.run, run
        return before

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        outputs = self.run(images)
        trunk = self.__dict__["trunk"]
        if not trunk.maps:
            trunk(images[:1])  # for the names, where another engine computes from the start
        maps: OrderedDict[str, torch.Tensor]
        maps, self.answer = trunk.apart(outputs)
        return maps


class _Answered(torch.nn.Module):
    """Stands for a detector's first head, whose answer came with the feature maps."""

    def __init__(self, asked: _Asked) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, maps: Any) -> Any:  # noqa: ARG002 - they are where the answer came from
        return self.asked.answer


# Scores of one object that two engines give may differ by this much.
_SAME_SCORE = 0.01
_Seen = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Per image boxes (n, 4), labels (n,) and scores (n,)."""


class _Objects:
    """Compares engines by the objects that are found: an engine must find the same ones.

    Tiles without objects say something, too: there the head's answers are compared number by number.
    """

    unit = "objects"

    def __init__(self, detector: ChiplineObjectDetector) -> None:
        self._detector = detector

    def answers(self, run: Any, images: torch.Tensor) -> tuple[_Seen, list[np.ndarray]]:
        """The objects of each image, and what the head answers."""
        raw: list[np.ndarray] = []
        trunk = self._detector.trunk

        def listened(given: torch.Tensor) -> Any:
            outputs = run(given)
            names = len(trunk.maps)
            raw.extend(one.cpu().numpy().copy() for one in outputs[names:])
            return outputs

        before = self._detector.asked.use(listened)
        try:
            # Boxes without area are no objects, and have no IoU.
            kept = [
                (found, (found[0][:, 2] > found[0][:, 0]) & (found[0][:, 3] > found[0][:, 1]))
                for found in self._detector.seen(images)
            ]
            return [
                (boxes[there], labels[there], scores[there]) for (boxes, labels, scores), there in kept
            ], raw
        finally:
            self._detector.asked.use(before)

    def compare(self, wanted: Any, found: Any) -> list[tuple[float, int, float]]:
        """Per image the sum of the objects' IoUs, their number, and how far the head's answers are apart.

        An object that only one side has, or that scores otherwise, counts 0.
        """
        (wanted_objects, wanted_raw), (found_objects, found_raw) = wanted, found
        apart = _apart(wanted_raw, found_raw)
        return [
            (self._together(one, other), max(len(one[2]), len(other[2])), apart)
            for one, other in zip(wanted_objects, found_objects)  # noqa: B905
        ]

    def judged(self, entries: list[tuple[float, int, float]]) -> chipline_agreement.Judged:
        """By the mean IoU of the objects; where neither side has one, by the worst of the head's answers."""
        same, every, apart = np.array(entries, np.float64).reshape(-1, 3).T
        if every.sum():
            return chipline_agreement.ratio(same, every)
        worst = 1.0 - float(apart.max(initial=0.0))
        return chipline_agreement.Judged(worst, worst, worst, len(entries), 0)

    def _together(self, one: Any, other: Any) -> float:
        """Sum of the IoUs of the objects that both sides have, each with its best partner."""
        if not len(one[2]) or not len(other[2]):
            return 0.0
        overlap = box_iou(torch.from_numpy(one[0]), torch.from_numpy(other[0])).numpy()
        overlap[one[1][:, None] != other[1][None, :]] = 0
        overlap[np.abs(one[2][:, None] - other[2][None, :]) > _SAME_SCORE] = 0
        total = 0.0
        while overlap.size:
            row, col = np.unravel_index(int(overlap.argmax()), overlap.shape)
            if overlap[row, col] <= 0:
                break
            total += float(overlap[row, col])
            overlap[row, :] = 0
            overlap[:, col] = 0
        return total


def _apart(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest difference between answers, as a part of the largest of them; 1 where one is no number."""
    worst = 0.0
    for first, second in zip(wanted, found):  # noqa: B905
        if first.size:
            apart = float(np.abs(first - second).max()) / max(float(np.abs(first).max()), 1e-6)
            worst = max(worst, apart if np.isfinite(apart) else 1.0)
    return worst


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
    overlap = box_iou(boxes, boxes).numpy() > _SAME_OBJECT
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
