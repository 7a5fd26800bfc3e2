"""Chipline's inference function for instance segmentation; runs in ArcGIS-like hosts.

It travels inside packages beside ``ChiplineObjectDetector.py``, whose boxes it settles objects by, and needs
numpy, torch and torchvision only. Each object is the outline of its mask, with holes as further rings.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - packages have no parents

from ChiplineObjectDetector import ChiplineObjectDetector

_INSIDE = 0.5  # a mask's pixels belong to the object from this probability on

_Ring = list[tuple[int, int]]


class ChiplineInstanceDetector(ChiplineObjectDetector):  # type: ignore[misc]
    """Finds objects; each is a polygon with the name of its class and a confidence from 0 to 100."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "Chipline instance detector"
        self.description = "Detects and outlines objects in a raster with the network of this package."
        self._outlines: list[list[_Ring]] = []

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """Those of the detector without test time augmentation: outlines have no mean."""
        return [item for item in super().getParameterInfo() if item["name"] != "test_time_augmentation"]

    def vectorize(self, **pixelBlocks: Any) -> dict[str, str]:
        """Outlines the objects of one block; the answer is that of the detector, with more rings."""
        self._outlines = []
        answer: dict[str, str] = super().vectorize(**pixelBlocks)
        return answer

    def _detect(self, chips: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        results = []
        with torch.inference_mode():
            for item in self._objects(chips):
                boxes, labels, scores = item["boxes"], item["labels"], item["scores"]
                kept = (scores >= self.threshold) & (labels >= 1) & (labels <= len(self.network.classes))
                # What add() would leave out has no number, and what has no pixel is no object.
                kept &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
                masks = item["masks"][:, 0] >= _INSIDE
                kept &= masks.flatten(1).any(dim=1)
                self._outlines += [rings_of(mask) for mask in masks[kept].cpu().numpy()]
                results.append(
                    (
                        boxes[kept].double().cpu().numpy(),
                        labels[kept].cpu().numpy(),
                        scores[kept].double().cpu().numpy(),
                    )
                )
        return results

    def _objects(self, chips: np.ndarray) -> list[dict[str, torch.Tensor]]:
        """Boxes, labels, scores and masks of each chip, best first."""
        found: list[dict[str, torch.Tensor]] = self.network.module(list(self.network.normalised(chips)))
        return found

    def _rings(self, found: Any, number: int) -> list[list[list[float]]]:
        row, col = (int(edge) - self.tiles.padding for edge in found.chips[number])
        outline = self._outlines[int(found.numbers[number])]
        return [[[float(x + col), float(y + row)] for x, y in ring] for ring in outline]


def rings_of(mask: np.ndarray) -> list[_Ring]:
    """The outlines of a mask along the edges of its pixels, as corners (x, y), not closed.

    Outer rings run clockwise (y points down), holes the other way. No ring passes a corner twice: pixels
    that touch by a corner only are of different rings.

    Args:
        mask: bool (rows, cols).
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    inside = padded[1:-1, 1:-1]
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Each edge of a pixel without a neighbour, with the pixel on its right hand.
    for neighbour, (x0, y0), (x1, y1) in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    ):
        for row, col in np.argwhere(inside & ~neighbour).tolist():
            steps.setdefault((col + x0, row + y0), []).append((col + x1, row + y1))
    rings = []
    while steps:
        start = min(steps)
        corner, before = start, (0, 0)
        ring: _Ring = []
        while corner != start or not ring:
            ends = steps[corner]
            # Where two pixels touch by a corner, the right turn stays on the same one.
            end = ends[0] if len(ends) == 1 else next(e for e in ends if _turns_right(before, corner, e))
            ends.remove(end)
            if not ends:
                del steps[corner]
            direction = (end[0] - corner[0], end[1] - corner[1])
            if direction != before:
                if corner in ring:  # two pixels of a hole touch by this corner
                    rings.append(ring[ring.index(corner) :])
                    del ring[ring.index(corner) :]
                ring.append(corner)
            corner, before = end, direction
        rings.append(ring)
    return rings


def _turns_right(before: tuple[int, int], corner: tuple[int, int], end: tuple[int, int]) -> bool:
    step = (end[0] - corner[0], end[1] - corner[1])
    return before[0] * step[1] - before[1] * step[0] > 0 or before == (0, 0)
