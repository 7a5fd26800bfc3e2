"""How a panoptic model learns, and what its validation measures: pixels, objects, and both together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.assess.chips import Intervals, pixel_intervals
from tasks.assess.objects import match_objects, mean_or_nan, ratio
from tasks.assess.panoptic import VOID, panoptic_counts, panoptic_quality
from tasks.train.datasets import BACKGROUND, IGNORED, Target
from tasks.train.models.panoptic import LearningPanopticSegmenter
from tasks.train.modules import InstanceModule
from tasks.train.scores import chip_objects, label_counts, pixel_scores, score_chips

Batch = tuple[Tensor, list[Target]]
_OF_OBJECTS = ("ap", "precision", "recall", "f1", "objects")
_OF_PIXELS = ("iou", "pixels")


class PanopticModule(InstanceModule):
    """Trains Mask2Former. Objects match by the overlap of their masks, as those of Mask R-CNN do.

    AVERAGE_PRECISION, F1_SCORE, PRECISION and RECALL are of objects; MIOU and ACCURACY of the classes of
    pixels; PANOPTIC_QUALITY is the mean over the classes, objects with at least THRESHOLD first, the class of
    the pixel where there is none.
    """

    usual_rate = 5e-4  # attention does not bear the rates that convolutions do
    network: LearningPanopticSegmenter

    def __init__(self, network: LearningPanopticSegmenter, **shared: Any) -> None:
        super().__init__(network, **shared)
        self.confusions: list[npt.NDArray[np.int64]] = []  # one per validation chip
        self._seen: list[_Seen] = []

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Pixels of all validation chips by true (rows) and predicted label, 0 the background."""
        return np.asarray(np.sum(self.confusions, axis=0), np.int64)

    def loss_of(self, batch: Any) -> tuple[Tensor, int]:
        images, targets = cast(Batch, batch)
        losses = self.network.losses(self._answers(images), targets)
        return torch.stack(list(losses.values())).sum(), len(images)

    def _answers(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.network.backbone.answers(images.contiguous(memory_format=torch.channels_last))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.confusions, self._seen = [], []

    def validation_step(self, batch: Any, _index: int) -> None:
        images, targets = cast(Batch, batch)
        answers = self._answers(images)
        losses = self.network.losses(answers, targets)
        self._validation_losses.append(float(torch.stack(list(losses.values())).sum()))
        names, masks = answers[0][-1], answers[1][-1]
        rows, cols = images.shape[-2:]
        for name, mask, target in zip(names, masks, targets, strict=True):
            found = self.network.objects(name, mask, rows, cols)
            predicted = self.network.class_logits(name[None], mask[None], rows, cols)[0].argmax(dim=0)
            part = chip_objects(found, target, rows=rows, cols=cols)
            pairs = self.overlaps_of(part, found, target)
            self.parts.append(part)
            self.overlaps.append(pairs)
            self.chips.append(match_objects(*part, self.options.detect_min_iou, overlaps=pairs))
            self.confusions.append(label_counts(target["classes"], predicted, len(self.schema) + 1))
            self._seen.append(_Seen.of(found, target, predicted, self.network.things))

    def on_validation_epoch_end(self) -> None:
        values, of_objects = score_chips(self.chips, self.schema)
        of_pixels, rows = pixel_scores(self.confusion, self.schema)
        quality = panoptic_quality(self._qualities(values["THRESHOLD"]))
        nothing = dict.fromkeys(_OF_OBJECTS, float("nan"))
        self.per_class = {}
        for label, name in enumerate(["Background", *self.schema.names]):
            objects = of_objects[name] if label in self.network.things else nothing
            row = {"pq": float(quality[label]), **{key: objects[key] for key in _OF_OBJECTS}}
            self.per_class[name] = {**{key: rows[name][key] for key in _OF_PIXELS}, **row}
        self.finish_validation(
            {
                **values,
                **{key: of_pixels[key] for key in ("ACCURACY", "MIOU")},
                "PANOPTIC_QUALITY": mean_or_nan(quality[BACKGROUND + 1 :].tolist()),
            }
        )

    def _qualities(self, threshold: float) -> npt.NDArray[np.float64]:
        """What panoptic quality is computed from, of all validation chips."""
        size, things = len(self.schema) + 1, self.network.things
        return np.asarray(np.sum([seen.counts(threshold, size, things) for seen in self._seen], axis=0))

    def chip_errors(self) -> npt.NDArray[np.float64]:
        return np.array([1.0 - ratio(float(np.trace(part)), float(part.sum())) for part in self.confusions])

    def final_values(self, blocks: npt.NDArray[np.int64]) -> tuple[dict[str, float], Intervals]:
        values, objects = super().final_values(blocks)
        for label, name in enumerate(["Background", *self.schema.names]):
            if label not in self.network.things:
                self.per_class[name]["coco_ap"] = float("nan")
        pixels = pixel_intervals(np.stack(self.confusions), blocks, ["Background", *self.schema.names])
        nothing = {"ap": (float("nan"), float("nan"))}
        return values, {
            name: {"iou": row["iou"], **objects.get(name, nothing)} for name, row in pixels.items()
        }


@dataclass(frozen=True)
class _Seen:
    """One validation chip, as groups of pixels that are alike; small, since it is kept until the end.

    Attributes:
        objects: number of the object that was found, from 1; 0 for none  # (groups,)
        predicted: label by the map of classes  # (groups,)
        truth: true segment  # (groups,)
        pixels: # (groups,)
        labels, scores: of the objects.
        true_labels: of the true segments.
    """

    objects: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    true_labels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, found: Target, target: Target, predicted: Tensor, things: Sequence[int]) -> _Seen:
        truth, true_labels = _segments(target, things)
        layers = np.stack([_painted(found["masks"][:, 0]), predicted.cpu().numpy(), truth]).reshape(3, -1)
        groups, pixels = np.unique(layers, axis=1, return_counts=True)
        return cls(
            objects=groups[0],
            predicted=groups[1],
            truth=groups[2],
            pixels=pixels,
            labels=found["labels"].cpu().numpy(),
            scores=found["scores"].double().cpu().numpy(),
            true_labels=true_labels,
        )

    def counts(self, threshold: float, classes: int, things: Sequence[int]) -> npt.NDArray[np.float64]:
        """Of the objects of at least the threshold, and of classes without objects around them."""
        sure = np.concatenate([[False], self.scores >= threshold])[self.objects]
        # After the objects a segment for each class.
        stuff = np.where(np.isin(self.predicted, things), VOID, len(self.labels) + 1 + self.predicted)
        return panoptic_counts(
            np.where(sure, self.objects, stuff),
            self.truth,
            self.pixels,
            found_classes=np.concatenate([self.labels, np.arange(classes)]),
            true_classes=self.true_labels,
            classes=classes,
        )


def _segments(target: Target, things: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The true segment of each pixel (rows, cols), and their labels: objects, then classes without any."""
    numbers, classes = _painted(target["masks"]), target["classes"].cpu().numpy()
    labels: list[int] = target["labels"].tolist()
    free = numbers == VOID
    for label in np.setdiff1d(np.unique(classes[free]), [*things, IGNORED]).tolist():
        labels.append(label)
        numbers[free & (classes == label)] = len(labels)
    return numbers, np.array(labels, np.int64)


def _painted(masks: Tensor) -> npt.NDArray[np.int64]:
    """The number of each pixel's mask, from 1, the first one on top; 0 for none  # (rows, cols)."""
    numbers = np.full(masks.shape[1:], VOID, np.int64)
    for number, mask in reversed(list(enumerate(masks.cpu().numpy() > 0, start=1))):
        numbers[mask] = number
    return numbers
