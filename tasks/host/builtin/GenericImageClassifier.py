"""Built in: pixel classification by a module of the package that defines ``ChildImageClassifier``.

docs/formats/python-raster-function.md, "Generic configurations".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np
from chipline_child import as_array, load_child, with_own_parameters


class GenericImageClassifier:
    """A class value per pixel, as the package's class gives them."""

    def __init__(self) -> None:
        self.name = "Generic image classifier"
        self.description = "Runs the ChildImageClassifier of a package."

    def initialize(self, **kwargs: Any) -> None:
        """Loads the package's class; ``model``: path of the ``.emd`` or its text."""
        self.definition = builtin.Definition(kwargs["model"])
        self.child = load_child(self.definition, "ChildImageClassifier")

    def getParameterInfo(self) -> list[Any]:
        """Padding and batch size, and what the package's class adds."""
        own = [builtin.padding_parameter(self.definition), *builtin.batch_parameters(self.definition)]
        answer: list[Any] = with_own_parameters(self.child, [*builtin.leading_parameters(), *own])
        return answer

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout."""
        self.scalars = scalars
        self.tiles = builtin.Tiles(self.definition, scalars)
        answer: dict[str, Any] = self.tiles.configuration(self.definition)
        return answer

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """One band of class values, with their names and colours."""
        table = self.definition.attribute_table()
        kwargs["output_info"].update(bandCount=1, pixelType="i4", noData=None, rasterAttributeTable=table)
        return kwargs

    def updatePixels(self, tlc: Any, shape: Any, props: Any, **pixelBlocks: Any) -> dict[str, np.ndarray]:  # noqa: ARG002
        """The class values of one block, int32 (1, ty, tx)."""
        block, valid = builtin.cleaned(pixelBlocks["raster_pixels"], pixelBlocks["raster_mask"])
        chips = self.tiles.chips(block)
        found = as_array(self.child.inference(chips, **self.scalars))
        if found.ndim != 4 or found.shape[:2] != (len(chips), 1):
            raise ValueError(
                f"inference() gave {found.shape} for a batch of {len(chips)}, where ({len(chips)}, 1, rows, "
                "cols) is expected"
            )
        pixels = self.tiles.joined(found[:, 0]).astype(np.int32)
        return {"output_pixels": np.where(self.tiles.inner(valid), pixels, 0)}
