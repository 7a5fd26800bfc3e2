"""Chips as files: encoded in memory, decoded from disk."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from PIL import Image
from rasterio.errors import RasterioIOError
from rasterio.io import MemoryFile

from tasks.errors import BadInputError, TrainingDataError
from tasks.training_data import layout
from tasks.training_data.sample import ChipFile, Context, Transform

# Lossless and quick; the predictor is what makes natural images smaller.
_TIFF_OPTIONS = {"driver": "GTiff", "compress": "deflate", "zlevel": 1, "interleave": "pixel"}
JPEG_QUALITY = 95


def check_chip_format(chip_format: str, bands: int, dtype: str) -> None:
    """PNG and JPEG hold 8-bit pixels in 1 or 3 bands.

    Raises:
        BadInputError: the chip format cannot hold the imagery.
    """
    if chip_format != "TIFF" and (bands not in (1, 3) or dtype != "uint8"):
        raise BadInputError(
            f"{chip_format} chips hold 1 or 3 bands of 8 bits, but the imagery has {bands} of type {dtype}.",
            "Set chip_format to TIFF.",
        )


def encode_image(
    values: npt.NDArray[Any],  # (bands, rows, cols)
    chip_format: str,
    transform: Sequence[float],
    crs_wkt: str | None,
) -> bytes:
    """A chip as a TIFF (with georeference), PNG or JPEG file.

    Raises:
        BadInputError: see :func:`check_chip_format`.
    """
    bands, rows, cols = values.shape
    check_chip_format(chip_format, bands, values.dtype.name)
    profile: dict[str, Any] = {"count": bands, "height": rows, "width": cols, "dtype": values.dtype.name}
    if chip_format == "TIFF":
        predictor = 3 if values.dtype.kind == "f" else 2
        profile |= {**_TIFF_OPTIONS, "predictor": predictor, "crs": crs_wkt, "transform": Affine(*transform)}
        if bands == 3 and values.dtype == np.uint8:
            profile["photometric"] = "RGB"
        elif bands > 1:
            # Without it GDAL would declare three of several bands to be red, green and blue.
            profile["photometric"] = "MINISBLACK"
        with MemoryFile() as memory:
            with memory.open(**profile) as dataset:
                dataset.write(values)
            return bytes(memory.read())
    picture = Image.fromarray(values[0] if bands == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))
    out = io.BytesIO()
    if chip_format == "PNG":
        picture.save(out, "PNG", compress_level=1)
    else:
        picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


def encode_picture(
    values: npt.NDArray[Any],  # (bands, rows, cols)
    stem: str,
    folder: str,
    transform: Transform,
    context: Context,
) -> tuple[list[ChipFile], str]:
    """A chip's picture with its world file, and the picture's path in the training data folder.

    Args:
        stem: file name without extension.
        folder: in the training data folder.
        transform: (a, b, c, d, e, f), chip pixel to map.

    Raises:
        BadInputError: see :func:`check_chip_format`.
    """
    extension = layout.IMAGE_EXTENSIONS[context.chip_format]
    path = f"{folder}/{stem}{extension}"
    return [
        ChipFile(path, encode_image(values, context.chip_format, transform, context.crs_wkt)),
        ChipFile(f"{folder}/{stem}{layout.WORLD_EXTENSIONS[extension]}", layout.world_file(transform)),
    ], path


def decode_image(path: Path) -> npt.NDArray[Any]:
    """A chip's pixels  # (bands, rows, cols), its own dtype.

    Raises:
        TrainingDataError: not a readable raster.
    """
    try:
        with rasterio.open(path) as dataset:
            values: npt.NDArray[Any] = dataset.read()
            return values
    except RasterioIOError as error:
        raise TrainingDataError(
            f"The chip {path} cannot be read: {error}.", "Export the training data again."
        ) from error
