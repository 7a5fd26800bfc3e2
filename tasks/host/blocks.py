"""What goes with a block: its mask, its shape, its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import BadInputError


def mask_for(pixels: npt.NDArray[Any], mask: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    """The mask to hand over, uint8: (rows, cols) where one plane serves all bands, else of the pixels' shape.

    A batch (n, bands, rows, cols) may have one plane per entry, (n, rows, cols).

    Raises:
        BadInputError: a mask of another shape than the pixels'.
    """
    wanted = pixels.shape[-2:]
    if mask is None:
        return np.ones(wanted, np.uint8)
    per_entry = (pixels.shape[0], *wanted) if pixels.ndim == 4 else pixels.shape
    if mask.shape not in (wanted, per_entry, pixels.shape):
        raise BadInputError(
            f"The mask has the shape {mask.shape}, the pixels have {pixels.shape}.",
            "Give a mask of the pixels' shape, or (rows, cols) for all bands alike.",
        )
    if pixels.ndim == 3 and mask.ndim == 3 and mask.shape[0] > 1 and mask.strides[0] == 0:
        # One plane seen as many: the child makes the copies.
        mask = mask[0]
    return mask.astype(np.uint8, copy=False)


def check_dimensions(operation: str, pixels: npt.NDArray[Any], *, batches: bool = False) -> None:
    """That pixels are (bands, rows, cols), or a batch of those.

    Args:
        operation: the method; ``predict_scores`` always takes batches.
        pixels: what is to be handed over.
        batches: the function takes a tuple of rasters, one per feature.

    Raises:
        BadInputError: they are not.
    """
    wanted = 4 if batches or operation == "predict_scores" else 3
    if pixels.ndim != wanted:
        raise BadInputError(
            f"{operation} takes {wanted}-D pixels, not {pixels.ndim}-D ones.",
            "Give (n, bands, rows, cols) to predict_scores and to functions of several rasters, "
            "(bands, rows, cols) to the others.",
        )


def output_props(
    output_info: Mapping[str, Any], given: Mapping[str, Any] | None, inner: tuple[int, int]
) -> dict[str, Any]:
    """The ``props`` of a block: what the caller gave, over defaults in pixels of the block itself."""
    rows, cols = inner
    result = {
        "extent": [0.0, 0.0, float(cols), float(rows)],
        "pixelType": output_info.get("pixelType", "u1"),
        "spatialReference": output_info.get("spatialReference", 3857),
        "cellSize": [1.0, 1.0],
        "width": cols,
        "height": rows,
        "noData": None,
    }
    result.update(given or {})
    return result
