"""Chips as files: encoded in memory, decoded from disk."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioIOError

from tasks.errors import BadInputError, TrainingDataError
from tasks.training_data import layout
from tasks.training_data.mrf import DATA_TYPES, encode_mrf
from tasks.training_data.png import encode_png
from tasks.training_data.sample import ChipFile, Context, Transform
from tasks.training_data.statistics import everywhere
from tasks.training_data.tiff import encode_mask, encode_tiff

JPEG_QUALITY = 95

_HOLDS: dict[str, tuple[tuple[int, ...] | None, frozenset[str]]] = {
    "TIFF": (None, frozenset({*DATA_TYPES, "int8", "uint64", "int64"})),
    # Of two bands in a PNG the second would be transparency, of four the fourth.
    "PNG": ((1, 3), frozenset({"uint8", "uint16"})),
    "JPEG": ((1, 3), frozenset({"uint8"})),
    "MRF": (None, frozenset(DATA_TYPES)),
}
_HOLDS_IN_WORDS = {
    "TIFF": "whole numbers of 8 to 64 bits or floats of 32 or 64",
    "PNG": "1 or 3 bands of unsigned 8 or 16 bits",
    "JPEG": "1 or 3 bands of unsigned 8 bits",
    "MRF": "unsigned 8 bits, whole numbers of 16 or 32 bits, or floats of 32 or 64",
}


def check_chip_format(chip_format: str, bands: int, dtype: str) -> None:
    """Whether chips of a format can hold the imagery.

    Args:
        chip_format: "TIFF", "PNG", "JPEG" or "MRF".
        bands: how many.
        dtype: numpy's name of the pixels' type.

    Raises:
        BadInputError: the chip format cannot hold the imagery; the remedy names those that can.
    """
    if _can_hold(chip_format, bands, dtype):
        return
    able = [name for name in _HOLDS if _can_hold(name, bands, dtype)]
    raise BadInputError(
        f"{chip_format} chips hold {_HOLDS_IN_WORDS[chip_format]}, but the imagery has {bands} bands of type "
        f"{dtype}.",
        f"Set chip_format to {' or '.join(able)}."
        if able
        else "Convert the imagery to another pixel type first, float32 for example.",
    )


def _can_hold(chip_format: str, bands: int, dtype: str) -> bool:
    counts, types = _HOLDS[chip_format]
    return (counts is None or bands in counts) and dtype in types


def encode_image(
    values: npt.NDArray[Any],  # (bands, rows, cols)
    chip_format: str,
    transform: Sequence[float],
    crs_wkt: str | None,
) -> bytes:
    """A chip as a TIFF (with georeference), PNG or JPEG file; MRF chips are several files.

    Raises:
        BadInputError: see :func:`check_chip_format`.
    """
    bands = len(values)
    check_chip_format(chip_format, bands, values.dtype.name)
    if chip_format == "TIFF":
        return encode_tiff(values, transform, crs_wkt)
    if chip_format == "PNG":
        return encode_png(values)
    picture = Image.fromarray(values[0] if bands == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


def encode_picture(
    values: npt.NDArray[Any],  # (bands, rows, cols)
    stem: str,
    folder: str,
    transform: Transform,
    context: Context,
    known: npt.NDArray[Any] | None = None,  # (rows, cols), bool
) -> tuple[list[ChipFile], str]:
    """A chip's picture with its world file, and the picture's path in the training data folder.

    A picture in which the imagery holds no data somewhere also gets a mask that says where.

    Args:
        stem: file name without extension.
        folder: in the training data folder.
        transform: (a, b, c, d, e, f), chip pixel to map.
        known: where the imagery holds data; None: everywhere.

    Raises:
        BadInputError: see :func:`check_chip_format`.
    """
    extension = layout.IMAGE_EXTENSIONS[context.chip_format]
    path = f"{folder}/{stem}{extension}"
    if context.chip_format == "MRF":
        check_chip_format("MRF", values.shape[0], values.dtype.name)
        parts = encode_mrf(values, transform, context.crs_wkt)
        files = [ChipFile(f"{folder}/{stem}{part}", data) for part, data in parts.items()]
    else:
        files = [ChipFile(path, encode_image(values, context.chip_format, transform, context.crs_wkt))]
    files.append(
        ChipFile(f"{folder}/{stem}{layout.WORLD_EXTENSIONS[extension]}", layout.world_file(transform))
    )
    if known is not None and not everywhere(known):
        files.append(ChipFile(path + layout.MASK_ENDING, encode_mask(known, len(values))))
    return files, path


def picture_shape(path: Path) -> tuple[int, int, int]:
    """(bands, rows, cols) of a chip, from its head.

    Raises:
        TrainingDataError: not a readable raster.
    """
    try:
        with rasterio.open(path) as dataset:
            return dataset.count, dataset.height, dataset.width
    except RasterioIOError as error:
        raise TrainingDataError(
            f"The chip {path} cannot be read: {error}.", "Export the training data again."
        ) from error


def pixel_type(path: Path) -> str:
    """numpy's name of the type of a chip's pixels, from its head.

    Raises:
        TrainingDataError: not a readable raster.
    """
    try:
        with rasterio.open(path) as dataset:
            return str(np.result_type(*dataset.dtypes))
    except RasterioIOError as error:
        raise TrainingDataError(
            f"The chip {path} cannot be read: {error}.", "Export the training data again."
        ) from error


def decode_image(path: Path) -> npt.NDArray[Any]:
    """A chip's pixels  # (bands, rows, cols), its own dtype.

    Raises:
        TrainingDataError: not a readable raster.
    """
    return _decoded(path, known=False)[0]


def decode_known(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """A chip's pixels with 0 where it holds no data, and where each band holds data; None: everywhere.

    No data are the file's nodata value, what its mask leaves out, and values that are not finite. An alpha
    band is a band: TIFFs of four bands often say so of their infrared.

    Raises:
        TrainingDataError: not a readable raster.
    """
    values, known = _decoded(path, known=True)
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            known = finite if known is None else known & finite
    if known is None or known.all():
        return values, None
    values[~known] = 0
    return values, known


def _decoded(path: Path, *, known: bool) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    try:
        with rasterio.open(path) as dataset:
            values: npt.NDArray[Any] = dataset.read()
            flags = {flag for band in dataset.mask_flag_enums for flag in band} if known else set()
            if not flags & {MaskFlags.nodata, MaskFlags.per_dataset} or MaskFlags.alpha in flags:
                return values, None
            return values, dataset.read_masks() != 0
    except RasterioIOError as error:
        raise TrainingDataError(
            f"The chip {path} cannot be read: {error}.", "Export the training data again."
        ) from error
