"""Classified_Tiles: one single-band label raster per chip, pixel = class value, 0 = no label.

Format: docs/formats/training-data.md, "Classified_Tiles".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import TrainingDataError
from tasks.training_data.images import encode_image


def encode_label(
    mask: npt.NDArray[np.unsignedinteger],  # (rows, cols)
    transform: Sequence[float],
    crs_wkt: str | None,
) -> bytes:
    """The label raster as a GeoTIFF, in the mask's own unsigned integer type.

    Raises:
        TypeError: the mask is not of an unsigned integer type.
    """
    if mask.dtype.kind != "u":
        raise TypeError(f"labels are unsigned integers, not {mask.dtype}")
    return encode_image(mask[np.newaxis], "TIFF", transform, crs_wkt)


def decode_label(path: Path) -> npt.NDArray[np.integer[Any]]:
    """Class values  # (rows, cols), integers.

    Raises:
        TrainingDataError: not a readable single-band integer raster.
    """
    import rasterio
    from rasterio.errors import RasterioIOError

    try:
        with rasterio.open(path) as dataset:
            if dataset.count != 1:
                raise TrainingDataError(
                    f"The label {path} has {dataset.count} bands.",
                    "Classified tiles need single-band labels whose pixels are class values.",
                )
            mask: npt.NDArray[Any] = dataset.read(1)
    except RasterioIOError as error:
        raise TrainingDataError(
            f"The label {path} cannot be read: {error}.", "Export the training data again."
        ) from error
    if mask.dtype.kind not in "ui":
        whole = mask.astype(np.int64)
        if not np.array_equal(whole, mask):
            raise TrainingDataError(
                f"The label {path} holds values that are not whole numbers.",
                "Classified tiles need class values as pixels.",
            )
        return whole
    return mask
