"""Chipline's inference function for pixel classification; runs in ArcGIS-like hosts.

It travels inside packages and needs numpy and torch only, beside ``chipline_runtime.py``. The interface is
stated in docs/formats/python-raster-function.md. ``updatePixels`` is built on ``predict_scores``, which a
host may also call itself to blend tiles or to keep probabilities.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import torch

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - packages have no parents

import chipline_agreement
import chipline_runtime as runtime

try:
    import arcpy  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # a host without it decides by the device number alone
    arcpy = None


_MERGES = ("mean", "max", "min")


class ChiplineImageClassifier(runtime.ChosenEngine):  # type: ignore[misc, unused-ignore]
    """Gives every pixel the value of its most probable class; 0 is NoData and background."""

    def __init__(self) -> None:
        self.name = "Chipline pixel classifier"
        self.description = "Classifies the pixels of a raster with the network of this package."
        self.network: Any = None
        self.tiles: Any = None
        self.score_values: list[int] = []
        self.predict_background = True
        self.test_time_augmentation = False
        self.merge_policy = "mean"
        self.execution: Any = None

    def initialize(self, **kwargs: Any) -> None:
        """Loads the network; ``model``: path of the ``.emd`` or its text, ``device``: ArcGIS's number."""
        if "model" not in kwargs:
            return
        here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
        self.network = runtime.PackagedNetwork(kwargs["model"], int(kwargs.get("device", -1)), here, arcpy)
        listed = [int(entry["Value"]) for entry in self.network.classes]
        # Channel 0 of the network is the background unless a class has the value 0.
        implied = listed if 0 in listed else [0, *listed]
        self.score_values = [int(value) for value in self.network.own.get("ScoreValues", implied)]
        self.tiles = runtime.super_tile(self.network, {})
        self.execution = self._execution({})

    def _execution(self, scalars: dict[str, Any]) -> Any:
        judge = chipline_agreement.Classes(self.score_values)
        return runtime.execution(self.network, self.tiles, scalars, judge=judge)

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after raster, model and device."""
        background = runtime.as_bool(self.network.own.get("PredictBackground", True))
        parameters: list[dict[str, Any]] = runtime.leading_parameters() + runtime.tile_parameters(
            self.network
        )
        if 0 in self.score_values:
            parameters.append(
                runtime.parameter(
                    "predict_background",
                    "GPString",
                    background,
                    "Predict background",
                    "False: every pixel gets one of the classes, never 0.",
                    ["True", "False"],
                )
            )
        parameters.append(runtime.augmentation_parameter(self.network, "merges the scores"))
        parameters.append(
            runtime.parameter(
                "merge_policy",
                "GPString",
                "mean",
                "Merge policy",
                "What test time augmentation makes of a class's eight scores.",
                list(_MERGES),
            )
        )
        parameters += runtime.engine_parameters()
        return parameters

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout, and that ``predict_scores`` is offered.

        Beyond the common keys: ``predict_scores`` True, ``number_of_scores``, and ``score_values``, the class
        value of each score in order.
        """
        self.tiles = runtime.super_tile(self.network, scalars)
        self.execution = self._execution(scalars)
        background = runtime.as_bool(self.network.own.get("PredictBackground", True))
        self.predict_background = runtime.flag(scalars, "predict_background", background)
        self.test_time_augmentation = runtime.augments(self.network, scalars)
        self.merge_policy = runtime.choice(scalars, "merge_policy", "mean", _MERGES)
        settings: dict[str, Any] = runtime.configuration(self.network, self.tiles)
        settings.update(
            predict_background=str(self.predict_background),
            test_time_augmentation=str(self.test_time_augmentation),
            merge_policy=self.merge_policy,
            predict_scores=True,
            number_of_scores=len(self.score_values),
            score_values=tuple(self.score_values),
        )
        return settings

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """One band of the smallest fitting type, with the classes as attribute table."""
        output = kwargs["output_info"]
        output["bandCount"] = 1
        output["pixelType"] = self._pixel_type()
        output["statistics"] = ()
        output["histogram"] = ()
        output["rasterAttributeTable"] = json.dumps(self._attribute_table())
        return kwargs

    def _pixel_type(self) -> str:
        low, high = min(0, *self.score_values), max(0, *self.score_values)
        for kind in ("u1", "i2", "u2"):
            limits = np.iinfo(kind)
            if limits.min <= low and high <= limits.max:
                return kind
        return "i4"

    def _attribute_table(self) -> dict[str, Any]:
        kinds = {"OID": "OID", "Value": "Integer", "Class": "String", "Red": "Integer"}
        kinds.update(Green="Integer", Blue="Integer")
        features = []
        for number, entry in enumerate(self.network.classes, start=1):
            red, green, blue = entry.get("Color") or (128, 128, 128)
            attributes = {"OID": number, "Value": int(entry["Value"]), "Class": entry["Name"]}
            attributes.update(Red=int(red), Green=int(green), Blue=int(blue))
            features.append({"attributes": attributes})
        return {
            "displayFieldName": "",
            "fieldAliases": {name: name for name in kinds},
            "fields": [
                {"name": name, "type": "esriFieldType" + kind, "alias": name} for name, kind in kinds.items()
            ],
            "features": features,
        }

    def predict_scores(self, batch: np.ndarray) -> np.ndarray:
        """Probability of each class for each pixel.

        Args:
            batch: (n, bands, rows, cols), source dtype, raw values, 0 where invalid; bands as extractBands.

        Returns:
            (n, scores, rows, cols) float32 in 0-1, summing to 1; score i belongs to ``score_values[i]``.
        """
        rows, cols = batch.shape[-2:]
        divisor = self.network.size_divisor
        down, right = -rows % divisor, -cols % divisor
        if down or right:
            batch = np.pad(batch, ((0, 0), (0, 0), (0, down), (0, right)))
        with torch.inference_mode():
            images = self.network.normalised(batch)
            scores = self._merged(images) if self.test_time_augmentation else self._scores(images)
            result: np.ndarray = scores[:, :, :rows, :cols].contiguous().cpu().numpy()
        self._check_number(result)
        return result

    def _merged(self, images: torch.Tensor) -> torch.Tensor:
        merged: torch.Tensor | None = None
        for position in runtime.POSITIONS:
            scores = runtime.turned_back(self._scores(runtime.turned(images, position)), position)
            if merged is None:
                merged = scores
            elif self.merge_policy == "mean":
                merged = merged + scores
            else:
                merged = (torch.maximum if self.merge_policy == "max" else torch.minimum)(merged, scores)
        assert merged is not None  # there are eight positions
        total: torch.Tensor = merged.sum(dim=1, keepdim=True)
        return merged / total.clamp_min(1e-12)  # the scores of a pixel sum to 1 again

    def _scores(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self._logits(images), dim=1)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """What the network says of the classes of each pixel: (n, scores, rows, cols)."""
        logits: torch.Tensor = self.execution.logits(images)
        return logits

    def _best(self, chips: np.ndarray, middle: slice) -> torch.Tensor:
        """Number of the most probable class in the middle of each chip: (n, rows, cols), on the device."""
        with torch.inference_mode():
            images = self.network.normalised(chips)
            # The highest logit is the highest probability.
            scores = self._merged(images) if self.test_time_augmentation else self._logits(images)
            self._check_number(scores)
            scores = scores[:, :, middle, middle]
            background = [number for number, value in enumerate(self.score_values) if value == 0]
            if not self.predict_background and len(self.score_values) > 1 and background:
                scores = scores.clone()
                scores[:, background] = -torch.inf
            # An eighth of what would travel otherwise.
            kind = torch.uint8 if len(self.score_values) <= 256 else torch.int32
            # max gives what argmax gives, in a tenth of its time on a CPU.
            return scores.max(dim=1).indices.to(kind)

    def _check_number(self, scores: Any) -> None:
        if scores.shape[1] != len(self.score_values):
            raise ValueError(
                f"the network gives {scores.shape[1]} scores, the definition names {len(self.score_values)}"
            )

    def updatePixels(
        self,
        tlc: Any,
        shape: Any,
        props: dict[str, Any],
        **pixelBlocks: Any,
    ) -> dict[str, np.ndarray]:
        """Classifies one block.

        Takes ``raster_pixels`` (bands, ty + 2 padding, tx + 2 padding) and ``raster_mask``; gives
        ``output_pixels`` (1, ty, tx) without the padding, and ``output_mask`` of that shape, 0 for NoData.
        """
        return self.end_pixels(self.begin_pixels(tlc, shape, props, **pixelBlocks))

    @property
    def overlaps(self) -> bool:
        """Whether a host may begin a block before it ends the last one: on a GPU it computes meanwhile."""
        return bool(self.network.device.type == "cuda")

    def begin_pixels(
        self,
        tlc: Any,  # noqa: ARG002 - the host's signature
        shape: Any,  # noqa: ARG002
        props: dict[str, Any],
        **pixelBlocks: Any,
    ) -> dict[str, Any]:
        """The first half of ``updatePixels``: all but waiting for the device; for ``end_pixels``."""
        block, valid = runtime.cleaned(pixelBlocks["raster_pixels"], pixelBlocks.get("raster_mask"))
        padding, inner = self.tiles.padding, self.tiles.inner
        middle = slice(padding, padding + inner)
        rows, cols = block.shape[1] - 2 * padding, block.shape[2] - 2 * padding
        valid = valid[padding : padding + rows, padding : padding + cols]
        places: list[list[tuple[int, int]]] = []
        found: list[torch.Tensor] = []
        if valid.any():
            for chosen, chips in self.tiles.batches(block, self.network.room):
                places.append(chosen)
                found.append(self._best(chips, middle))
        return {
            "valid": valid,
            "places": places,
            "found": runtime.Fetched(found),
            "type": np.dtype(str(props.get("pixelType", self._pixel_type()))),
        }

    def end_pixels(self, begun: dict[str, Any]) -> dict[str, np.ndarray]:
        """The second half of ``updatePixels``, and its answer."""
        valid, inner = begun["valid"], self.tiles.inner
        rows, cols = valid.shape
        # A table in the output's type: one pass from numbers to values.
        values = np.asarray(self.score_values).astype(begun["type"])
        output = np.zeros((rows, cols), begun["type"])
        for places, numbers in zip(begun["places"], begun["found"].arrays()):  # noqa: B905
            for (row, col), best in zip(places, values[numbers]):  # noqa: B905
                height, width = min(inner, rows - row), min(inner, cols - col)
                output[row : row + height, col : col + width] = best[:height, :width]
        output[~valid] = 0
        return {"output_pixels": output[np.newaxis], "output_mask": valid[np.newaxis].astype("u1")}
