"""Detectors that answer a fixed number of queries, and how they travel in a package.

Such a network (DETR and its kin: Carion et al., "End-to-End Object Detection with Transformers", 2020) gives
the same number of boxes for every image, most of them with hardly any confidence, and needs no suppression of
overlapping ones. What computes them is traced as other networks are; what becomes of the answers is the class
below, whose source travels as it is here: torch alone, and torchvision where a suppression is asked for.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from tasks.package.network_source import class_source, document
from tasks.package.network_trace import trace_settled

# -- travels from here: names are those of the source's head ------------------------------------------------


class Answers(nn.Module):
    """Stands where other detectors have a head: gives what the network has answered."""

    def forward(self, maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"answers": maps[0]}


class QueryDetector(nn.Module):
    """Images (bands, rows, cols) of any size, normalised -> dicts of boxes, labels and scores, best first.

    Boxes (n, 4) are xmin, ymin, xmax, ymax in pixels, labels (n,) start at 1, scores (n,) are 0-1. There are
    at most as many as the network has queries.

    Args:
        backbone: (n, bands, rows, cols) -> answers (n, queries, 4 + classes): centre x, y, width and height
            as shares of the image, and the logit of each class.
        size_divisible: images are filled up to multiples of it.
        score_thresh: objects with less are left out.
        nms_thresh: of two objects of a class that overlap by more, the weaker one is left out; 1: none is.
    """

    def __init__(
        self, backbone: nn.Module, size_divisible: int, score_thresh: float, nms_thresh: float
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Answers()
        self.size_divisible = size_divisible
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        batch = self.filled(images)
        found = self.backbone(batch)
        maps = [found] if isinstance(found, torch.Tensor) else list(found.values())
        answers = self.head(maps)["answers"]
        return [self.objects(answers[i].float(), image, batch) for i, image in enumerate(images)]

    def filled(self, images: list[torch.Tensor]) -> torch.Tensor:
        """One batch (n, bands, rows, cols), with zeros to the right and below where images are smaller."""
        step = self.size_divisible
        rows, cols = (-(-max(image.shape[axis] for image in images) // step) * step for axis in (1, 2))
        if all(image.shape[1:] == (rows, cols) for image in images):
            return torch.stack(list(images))
        batch = images[0].new_zeros((len(images), images[0].shape[0], rows, cols))
        for i, image in enumerate(images):
            batch[i, :, : image.shape[1], : image.shape[2]] = image
        return batch

    def objects(
        self, answer: torch.Tensor, image: torch.Tensor, batch: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """What the answers (queries, 4 + classes) of one image say."""
        classes = answer.shape[1] - 4
        scores = answer[:, 4:].sigmoid().flatten()
        kept = (scores > self.score_thresh).nonzero().flatten()
        kept = kept[scores[kept].sort(descending=True, stable=True).indices[: len(answer)]]
        rows, cols = batch.shape[2:]
        boxes = answer[kept // classes, :4] * answer.new_tensor([cols, rows, cols, rows])
        boxes = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
        rows, cols = image.shape[1:]
        boxes = torch.stack(
            [edge.clamp(0, most) for edge, most in zip(boxes.T, (cols, rows, cols, rows))],  # noqa: B905
            dim=1,
        )
        found = {"boxes": boxes, "labels": kept % classes + 1, "scores": scores[kept]}
        if self.nms_thresh < 1:
            from torchvision.ops import batched_nms

            apart = batched_nms(boxes, found["scores"], found["labels"], self.nms_thresh)
            found = {key: value[apart] for key, value in found.items()}
        return found


# -- to here ------------------------------------------------------------------------------------------------


def emit_query_detector(backbone: nn.Module, arguments: dict[str, Any], class_name: str = "Network") -> str:
    """Python source whose ``build()`` returns a :class:`QueryDetector` around a twin of ``backbone``.

    The state_dict keys are those of ``QueryDetector(backbone, …)``.

    Args:
        backbone: takes (n, bands, rows, cols) and gives answers; which way it goes may depend on how it was
            made, not on the size of the images.
        arguments: ``size_divisible``, ``score_thresh`` and ``nms_thresh``.

    Raises:
        PackageError: see :func:`tasks.package.network_source.emit_network`.
    """
    body, helpers = class_source(backbone, class_name, trace_settled)
    travelling = "\n\n".join(inspect.getsource(part) for part in (Answers, QueryDetector))
    given = ", ".join(f"{key}={arguments[key]!r}" for key in ("size_divisible", "score_thresh", "nms_thresh"))
    return document(
        [class_name, "traced by Chipline from " + type(backbone).__name__],
        helpers + body + "\n\n" + travelling,
        f"    return QueryDetector({class_name}(), {given}).eval()",
        detection=False,
    )
