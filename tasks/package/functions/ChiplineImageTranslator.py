"""Chipline's inference function for pictures made of pictures; runs in ArcGIS-like hosts.

It travels inside packages and needs numpy and torch only, beside ``chipline_runtime.py``. The interface is
stated in docs/formats/python-raster-function.md.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - packages have no parents

import chipline_runtime as runtime

try:
    import arcpy  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # a host without it decides by the device number alone
    arcpy = None


# Of more bits float32 could not tell all values apart; those come out as float32.
_KINDS = {"uint8": "u1", "uint16": "u2", "int8": "i1", "int16": "i2"}


class ChiplineImageTranslator:
    """Makes of a raster another one on the same cells: sharper, or as another sensor or season shows it."""

    def __init__(self) -> None:
        self.name = "Chipline image translator"
        self.description = "Makes a raster of a raster with the network of this package."
        self.network: Any = None
        self.tiles: Any = None
        self.directions: dict[str, Any] = {}
        self.direction = ""

    def initialize(self, **kwargs: Any) -> None:
        """Loads the network; ``model``: path of the ``.emd`` or its text, ``device``: ArcGIS's number."""
        if "model" not in kwargs:
            return
        here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
        self.network = runtime.PackagedNetwork(kwargs["model"], int(kwargs.get("device", -1)), here, arcpy)
        self.directions = self.network.own["Translation"]
        self.direction = next(iter(self.directions))
        self.tiles = runtime.super_tile(self.network, {})

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """The arguments a person may set, after raster, model and device."""
        parameters: list[dict[str, Any]] = runtime.leading_parameters() + runtime.tile_parameters(
            self.network
        )
        if len(self.directions) > 1:
            parameters.append(
                runtime.parameter(
                    "direction",
                    "GPString",
                    next(iter(self.directions)),
                    "Direction",
                    "From which side of the training data to which.",
                    list(self.directions),
                )
            )
        return parameters

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout."""
        self.tiles = runtime.super_tile(self.network, scalars)
        names = tuple(self.directions)
        self.direction = runtime.choice(scalars, "direction", names[0], names)
        settings: dict[str, Any] = runtime.configuration(self.network, self.tiles)
        if len(names) > 1:
            settings["direction"] = self.direction
        return settings

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """As many bands as the network makes, of the type of its training's pixels."""
        output = kwargs["output_info"]
        way = self.directions[self.direction]
        output["bandCount"] = len(way["Output"]["Factor"])
        output["pixelType"] = _KINDS.get(way["PixelType"], "f4")
        output["statistics"] = ()
        output["histogram"] = ()
        return kwargs

    def _made(self, chips: np.ndarray) -> np.ndarray:
        """Pixel values of the other picture, (n, bands, rows, cols) float32."""
        way = self.directions[self.direction]
        network = self.network.module.get_submodule(way["Network"])
        with torch.inference_mode():
            images = torch.from_numpy(chips.astype(np.float32)).to(self.network.device)
            images = self._linear(images, way["Input"]).contiguous(memory_format=torch.channels_last)
            made = self._linear(network(images).float(), way["Output"])
            result: np.ndarray = made.contiguous().cpu().numpy()
        return result

    def _linear(self, values: torch.Tensor, by: dict[str, Any]) -> torch.Tensor:
        factor, summand = (
            torch.tensor(by[key], dtype=torch.float32, device=self.network.device).view(1, -1, 1, 1)
            for key in ("Factor", "Summand")
        )
        return values * factor + summand

    def updatePixels(
        self,
        tlc: Any,  # noqa: ARG002 - the host's signature
        shape: Any,  # noqa: ARG002
        props: dict[str, Any],  # noqa: ARG002
        **pixelBlocks: Any,
    ) -> dict[str, np.ndarray]:
        """Makes one block.

        Takes ``raster_pixels`` (bands, ty + 2 padding, tx + 2 padding) and ``raster_mask``; gives
        ``output_pixels`` (bands, ty, tx) without the padding, and ``output_mask`` of that shape, 0: NoData.
        """
        block, valid = runtime.cleaned(pixelBlocks["raster_pixels"], pixelBlocks.get("raster_mask"))
        padding, inner = self.tiles.padding, self.tiles.inner
        middle = slice(padding, padding + inner)
        rows, cols = block.shape[1] - 2 * padding, block.shape[2] - 2 * padding
        way = self.directions[self.direction]
        output = np.zeros((len(way["Output"]["Factor"]), rows, cols), np.float32)
        valid = valid[padding : padding + rows, padding : padding + cols]
        if valid.any():
            for places, chips in self.tiles.batches(block):
                for (row, col), made in zip(places, self._made(chips)[:, :, middle, middle]):  # noqa: B905
                    height, width = min(inner, rows - row), min(inner, cols - col)
                    output[:, row : row + height, col : col + width] = made[:, :height, :width]
        if way["PixelType"] in _KINDS:
            limits = np.iinfo(way["PixelType"])
            output = np.clip(np.rint(output), limits.min, limits.max).astype(way["PixelType"])
        output[:, ~valid] = 0
        return {
            "output_pixels": output,
            "output_mask": np.broadcast_to(valid, output.shape).astype("u1"),
        }
