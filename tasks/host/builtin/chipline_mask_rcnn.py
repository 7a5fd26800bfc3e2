"""A Mask R-CNN in Matterport's manner: the package's module makes ``model`` and ``config``.

Its own code imports what it needs (that code was written for Keras 2): the interpreter has to have it.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import numpy as np
from chipline_builtin import Definition


class MaskNetwork:
    """The network of a package, with its weights.

    Args:
        definition: names the modules (``ModelConfiguration``: ``Architecture``, ``Config``) and the weights.
    """

    def __init__(self, definition: Definition) -> None:
        named = definition.values.get("ModelConfiguration")
        if not isinstance(named, dict) or not named.get("Architecture") or not named.get("Config"):
            raise ValueError("ModelConfiguration of a MaskRCNN names the modules Architecture and Config")
        self.model = _attribute(definition, named["Architecture"], "model")
        self.config = _attribute(definition, named["Config"], "config")
        self.model.load_weights(definition.weights, by_name=True)

    def detect(self, chip: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Objects of one image (rows, cols, bands).

        Returns:
            masks bool (rows, cols, n), class ids (n,) from 1, scores (n,) 0-1.
        """
        (answer,) = self.model.detect([chip])
        masks = np.asarray(answer["masks"]) > 0.5
        ids = np.asarray(answer["class_ids"]).astype(int).reshape(-1)
        scores = np.asarray(answer["scores"], dtype=np.float64).reshape(-1)
        if not len(ids):
            # Without objects Matterport's masks have another height and width.
            masks = np.zeros((*chip.shape[:2], 0), dtype=bool)
        if masks.shape != (*chip.shape[:2], len(ids)) or len(scores) != len(ids):
            raise ValueError(
                f"detect() gave masks {masks.shape}, {len(ids)} class ids and {len(scores)} scores "
                f"for an image of {chip.shape[:2]}"
            )
        return masks, ids, scores


def _attribute(definition: Definition, named: str, attribute: str) -> Any:
    """``model`` or ``config`` of a module in the package."""
    path = definition.path(named)
    path = path[: -len(".py")] if path.endswith(".py") else path
    for folder in (os.path.dirname(path), definition.folder):  # noqa: PTH120
        if folder not in sys.path:
            sys.path.insert(0, folder)
    module = importlib.import_module(os.path.relpath(path, definition.folder).replace(os.sep, "."))
    if not hasattr(module, attribute):
        raise AttributeError(f"the package's module {named} defines no object `{attribute}`")
    return getattr(module, attribute)


def outlines(mask: np.ndarray, padding: int) -> list[list[list[float]]]:
    """The mask's outlines as open rings [x, y] in pixels of the inner block; holes are rings of their own.

    One pixel is put around the mask, so that outlines close at its border; the coordinates are those of pixel
    centres, as ArcGIS has them.
    """
    from skimage.measure import find_contours

    rings = []
    for contour in find_contours(np.pad(mask.astype(np.float64), 1), 0.5):
        points = contour[:-1] - 1 - padding  # (n, 2) row, col; the last is the first again
        if len(points) >= 3:
            rings.append(points[:, ::-1].tolist())
    return rings
