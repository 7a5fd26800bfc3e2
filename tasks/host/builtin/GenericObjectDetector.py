"""Built in: detection by a module of the package that defines ``ChildObjectDetector``.

docs/formats/python-raster-function.md, "Generic configurations".
"""

from __future__ import annotations

from typing import Any

import chipline_builtin as builtin
import numpy as np
from chipline_boxes import objects
from chipline_child import as_array, load_child, with_own_parameters


class GenericObjectDetector:
    """Boxes with the name of their class and the confidence that the package's class gives."""

    def __init__(self) -> None:
        self.name = "Generic object detector"
        self.description = "Runs the ChildObjectDetector of a package."

    def initialize(self, **kwargs: Any) -> None:
        """Loads the package's class; ``model``: path of the ``.emd`` or its text."""
        self.definition = builtin.Definition(kwargs["model"])
        self.child = load_child(self.definition, "ChildObjectDetector")

    def getParameterInfo(self) -> list[Any]:
        """Padding and batch size, and what the package's class adds (its own threshold, as a rule)."""
        own = [builtin.padding_parameter(self.definition), *builtin.batch_parameters(self.definition)]
        answer: list[Any] = with_own_parameters(self.child, [*builtin.leading_parameters(), *own])
        return answer

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """The block layout."""
        self.scalars = scalars
        self.tiles = builtin.Tiles(self.definition, scalars)
        answer: dict[str, Any] = self.tiles.configuration(self.definition)
        return answer

    def getFields(self) -> str:
        """The output table's fields, as Esri JSON."""
        text: str = builtin.fields_text()
        return text

    def getGeometryType(self) -> int:
        """4: polygons."""
        return 4

    def vectorize(self, **pixelBlocks: Any) -> dict[str, str]:
        """The objects of one block; takes ``raster_pixels`` and ``raster_mask``."""
        block, _ = builtin.cleaned(pixelBlocks["raster_pixels"], pixelBlocks["raster_mask"])
        chips = self.tiles.chips(block)
        answer = self.child.inference(chips, **self.scalars)
        if not isinstance(answer, (list, tuple)) or len(answer) != 3:
            raise ValueError("inference() gave no three lists: boxes, scores, classes")
        if any(len(part) != len(chips) for part in answer):
            lengths = ", ".join(str(len(part)) for part in answer)
            raise ValueError(f"inference() gave lists of {lengths} entries for a batch of {len(chips)}")
        boxes = [as_array(item).reshape(-1, 4) for item in answer[0]]
        scores = [as_array(item).reshape(-1) for item in answer[1]]
        labels = [as_array(item).reshape(-1) for item in answer[2]]
        counts = [len(item) for item in boxes]
        if [len(item) for item in scores] != counts or [len(item) for item in labels] != counts:
            raise ValueError("inference() gave another number of scores or classes than boxes for a chip")
        result: dict[str, str] = objects(
            self.definition,
            self.tiles,
            np.concatenate(boxes),
            np.concatenate(scores),
            np.rint(np.concatenate(labels)).astype(int),
            np.repeat(np.arange(len(chips)), counts),
        )
        return result
