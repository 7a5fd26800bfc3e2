"""Chipline's inference function for panoptic segmentation; runs in ArcGIS-like hosts.

It travels inside packages beside ``ChiplineImageClassifier.py``, which it is for the class of every pixel,
and ``ChiplineInstanceDetector.py``, which it asks for the outlines of objects, and needs numpy, torch and
torchvision only. One network computes both; a host asks for one or the other.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - packages have no parents

import chipline_agreement
import chipline_runtime as runtime
from ChiplineImageClassifier import ChiplineImageClassifier
from ChiplineInstanceDetector import ChiplineInstanceDetector


class ChiplinePanopticSegmenter(ChiplineImageClassifier):  # type: ignore[misc]
    """``updatePixels`` gives the class of every pixel, ``vectorize`` the outlines of objects."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "Chipline panoptic segmenter"
        self.description = "Classifies pixels and outlines objects with the network of this package."
        self.outlines: Any = None

    def initialize(self, **kwargs: Any) -> None:
        """Loads the network; ``model``: path of the ``.emd`` or its text, ``device``: ArcGIS's number."""
        super().initialize(**kwargs)
        if self.network is not None:
            self.outlines = _Outlines(self)

    def _execution(self, scalars: dict[str, Any]) -> Any:
        judge = _Classes(self)
        return runtime.execution(self.network, self.tiles, scalars, self.network.module.backbone, judge)

    def regions(self, images: torch.Tensor) -> Any:
        """Logits of the regions of normalised images: of their classes, and of their pixels."""
        return self.execution.outputs(images)

    def fused(self, regions: Any, shape: Any) -> torch.Tensor:
        """The class of each pixel by all regions, as logits (n, scores, rows, cols)."""
        names, masks = regions
        logits: torch.Tensor = self.network.module.class_logits(names, masks, *shape)
        return logits

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.fused(self.regions(images), images.shape[2:])

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments of the classifier, and of those of the detector what it has beyond them."""
        parameters: list[dict[str, Any]] = super().getParameterInfo()
        known = {item["name"] for item in parameters}
        return parameters + [item for item in self.outlines.getParameterInfo() if item["name"] not in known]

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout and the arguments as they are used, see ``ChiplineImageClassifier``."""
        settings: dict[str, Any] = super().getConfiguration(**scalars)
        self.outlines.configure(scalars)
        settings.update(
            threshold=self.outlines.threshold,
            exclude_pad_detections=str(self.outlines.exclude_pad_detections),
        )
        return settings

    def getFields(self) -> str:
        """The fields of the table of objects, as Esri JSON."""
        fields: str = self.outlines.getFields()
        return fields

    def getGeometryType(self) -> int:
        """4: polygons."""
        kind: int = self.outlines.getGeometryType()
        return kind

    def vectorize(self, **pixelBlocks: Any) -> dict[str, str]:
        """Outlines the objects of one block, see ``ChiplineInstanceDetector``."""
        if self.test_time_augmentation:
            raise ValueError(
                "test_time_augmentation is for classes of pixels; outlines have no mean: leave it"
            )
        answer: dict[str, str] = self.outlines.vectorize(**pixelBlocks)
        return answer


class _Outlines(ChiplineInstanceDetector):  # type: ignore[misc]
    """The detector around the segmenter's network."""

    def __init__(self, segmenter: ChiplinePanopticSegmenter) -> None:
        super().__init__()
        self._segmenter = segmenter
        self.network = segmenter.network
        self.configure({})

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """Those of the detector without a suppression: no pixel is of two objects."""
        return [item for item in super().getParameterInfo() if item["name"] != "nms_overlap"]

    def configure(self, scalars: dict[str, Any]) -> None:
        """Takes the arguments; the blocks are the segmenter's."""
        self.tiles = self._segmenter.tiles
        self.threshold = runtime.argument(scalars, "threshold", self._default("Threshold", 0.5), 0.0, 1.0)
        self.exclude_pad_detections = runtime.flag(scalars, "exclude_pad_detections", True)

    def _objects(self, chips: np.ndarray) -> list[dict[str, torch.Tensor]]:
        images = self.network.normalised(chips)
        names, masks = self._segmenter.regions(images)
        rows, cols = images.shape[2:]
        module = self.network.module
        return [module.objects(name, mask, rows, cols) for name, mask in zip(names, masks)]  # noqa: B905


class _Classes(chipline_agreement.Classes):  # type: ignore[misc]
    """Compares engines by the class of each pixel, which all regions together say."""

    def __init__(self, segmenter: ChiplinePanopticSegmenter) -> None:
        super().__init__(segmenter.score_values)
        self._segmenter = segmenter

    def answers(self, run: Any, images: torch.Tensor) -> Any:
        """Class numbers (n, rows, cols) of normalised images."""
        shape = images.shape[2:]
        return super().answers(lambda given: (self._segmenter.fused(run(given), shape),), images)
