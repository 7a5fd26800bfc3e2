"""Chipline's inference function for edges and roads; runs in ArcGIS-like hosts.

It travels inside packages and needs numpy and torch only, beside ``ChiplineImageClassifier.py``, on which it
is built, and ``chipline_lines.py``. The interface is stated in docs/formats/python-raster-function.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - packages have no parents

import chipline_lines
import chipline_runtime as runtime
from ChiplineImageClassifier import ChiplineImageClassifier

# Of the padding one half is for what a network gets wrong at the edge of a tile, the other for thinning.
_SHARE = 2
_EVEN = 0.5


class ChiplineLineClassifier(ChiplineImageClassifier):  # type: ignore[misc]
    """Gives the pixels of lines the value of their class; 0 is NoData and all else."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "Chipline line classifier"
        self.description = "Finds lines in a raster with the network of this package."
        self.threshold = _EVEN
        self.rounds = 0
        self._shown: Iterator[np.ndarray] = iter(())

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after raster, model and device."""
        return [
            *super().getParameterInfo(),
            runtime.parameter(
                "threshold",
                "GPDouble",
                _EVEN,
                "Threshold",
                "Pixels whose probability reaches it are of a line.",
                [0.0, 1.0],
            ),
            runtime.parameter(
                "thinning",
                "GPString",
                False,
                "Thinning",
                "True: lines are worn down to the width of one pixel; those that are wider than half of the "
                "padding keep a core.",
                ["True", "False"],
            ),
        ]

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """See ``ChiplineImageClassifier``. With thinning or another threshold there are no scores to be had.

        Raises:
            ValueError: a threshold that is none, a padding that leaves no room for thinning.
        """
        settings: dict[str, Any] = super().getConfiguration(**scalars)
        self.threshold = runtime.argument(scalars, "threshold", _EVEN, 0.0, 1.0)
        self.rounds = 0
        thinning = runtime.flag(scalars, "thinning", False)
        if thinning:
            least = _SHARE * chipline_lines.REACH
            self.rounds = self.tiles.padding // least
            if not self.rounds:
                raise ValueError(
                    f"thinning looks beyond a tile, and padding is {self.tiles.padding}: "
                    f"give a padding of {least} pixels or more, or thinning False"
                )
        settings.update(threshold=self.threshold, thinning=str(thinning))
        if self._plain:
            return settings
        if not self.predict_background:
            raise ValueError(
                "predict_background False makes every pixel one of a line: "
                f"leave it out, or take threshold {_EVEN} and thinning False"
            )
        settings["predict_scores"] = False
        settings["no_scores"] = (
            f"gives lines, not scores, with threshold {self.threshold:g} and thinning {thinning}"
        )
        return settings

    @property
    def _plain(self) -> bool:
        return not self.rounds and self.threshold == _EVEN

    def begin_pixels(self, tlc: Any, shape: Any, props: dict[str, Any], **pixelBlocks: Any) -> dict[str, Any]:
        """See ``ChiplineImageClassifier``."""
        if self.rounds:
            _, valid = runtime.cleaned(pixelBlocks["raster_pixels"], pixelBlocks.get("raster_mask"))
            self._shown = self._windows(valid)
        begun: dict[str, Any] = super().begin_pixels(tlc, shape, props, **pixelBlocks)
        return begun

    def _windows(self, valid: np.ndarray) -> Iterator[np.ndarray]:
        """Where each chip of a block shows imagery, in the order of the chips."""
        tile = self.tiles.tile
        for row, col in self.tiles.placed(*valid.shape):
            part = valid[row : row + tile, col : col + tile]
            yield np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1])))

    def _best(self, chips: np.ndarray, middle: slice) -> torch.Tensor:
        """0 or 1 (of a line) in the middle of each chip: (n, rows, cols), on the device.

        A chip's answer follows from that chip alone, whatever block it is part of. What thinning makes of a
        pixel depends on the half of the padding around the middle; where tiles agree there, lines go on from
        one into the next as if both were one picture.
        """
        if self._plain:
            plain: torch.Tensor = super()._best(chips, middle)
            return plain
        with torch.inference_mode():
            if self.threshold == _EVEN:
                lines = super()._best(chips, slice(None)) > 0
            else:
                images = self.network.normalised(chips)
                scores = self._merged(images) if self.test_time_augmentation else self._scores(images)
                self._check_number(scores)
                lines = scores[:, 1] >= self.threshold
            if self.rounds:
                shown = np.stack([next(self._shown) for _ in chips])
                lines = chipline_lines.thinned(lines & torch.from_numpy(shown).to(lines.device), self.rounds)
            best: torch.Tensor = lines[:, middle, middle].to(torch.uint8)
            return best
