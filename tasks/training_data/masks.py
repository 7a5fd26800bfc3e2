"""Label rasters: class values or object numbers as pixels, and what can be told from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
from tasks.training_data.images import encode_image
from tasks.training_data.sample import ChipFile, Context, Transform
from tasks.training_data.statistics import everywhere

Box = tuple[int, float, float, float, float]

_COUNTED = 1 << 16


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


def label_files(
    mask: npt.NDArray[np.unsignedinteger],  # (rows, cols)
    stem: str,
    folder: str,
    transform: Transform,
    context: Context,
) -> tuple[list[ChipFile], str]:
    """A label raster with its world file, and the raster's path; always a TIFF, whatever the chips are."""
    path = f"{folder}/{stem}.tif"
    return [
        ChipFile(path, encode_label(mask, transform, context.crs_wkt)),
        ChipFile(f"{folder}/{stem}.tfw", layout.world_file(transform)),
    ], path


def decode_label(path: Path) -> npt.NDArray[np.integer[Any]]:
    """Class values  # (rows, cols), integers.

    Raises:
        TrainingDataError: not a readable single-band integer raster.
    """
    bands = decode_labels(path)
    if len(bands) != 1:
        raise TrainingDataError(
            f"The label {path} has {len(bands)} bands.",
            "It must have a single band, whose pixels are class values or object numbers.",
        )
    band: npt.NDArray[np.integer[Any]] = bands[0]
    return band


def decode_labels(path: Path) -> npt.NDArray[np.integer[Any]]:
    """All bands of a label raster  # (bands, rows, cols), integers.

    Raises:
        TrainingDataError: not a readable raster of whole numbers.
    """
    import rasterio
    from rasterio.errors import RasterioIOError

    try:
        with rasterio.open(path) as dataset:
            values: npt.NDArray[Any] = dataset.read()
    except RasterioIOError as error:
        raise TrainingDataError(
            f"The label {path} cannot be read: {error}.", "Export the training data again."
        ) from error
    if values.dtype.kind not in "ui":
        whole = values.astype(np.int64)
        if not np.array_equal(whole, values):
            raise TrainingDataError(
                f"The label {path} holds values that are not whole numbers.",
                "Labels need class values or object numbers as pixels.",
            )
        return whole
    return values


def within(mask: npt.NDArray[Any], valid: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The mask with 0 where there is no picture: there is nothing to learn from a label there."""
    return mask if everywhere(valid) else np.where(valid, mask, mask.dtype.type(0))


def count_values(mask: npt.NDArray[Any]) -> dict[int, int]:
    """Pixels by value, 0 left out; no value is negative."""
    # Most pixels of most masks are 0, and finding them costs a fraction of counting them.
    values, counts = _counted(mask[mask != 0])
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def numbered(mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Object numbers without gaps, from 1, in their old order; the same type."""
    present = _counted(mask)[0]
    present = present[present != 0]
    if not len(present) or present[-1] == len(present):
        return mask
    dense = np.searchsorted(present, mask).astype(mask.dtype) + mask.dtype.type(1)
    result: npt.NDArray[Any] = np.where(mask != 0, dense, mask.dtype.type(0))
    return result


def _counted(mask: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The values that occur, ascending, and how often."""
    if int(mask.max(initial=0)) < _COUNTED:  # counting beats sorting by far
        counts = np.bincount(mask.ravel())
        values = np.flatnonzero(counts)
        return values, counts[values]
    values, counts = np.unique(mask, return_counts=True)
    return values, counts


def boxes_of_instances(instances: Mapping[int, npt.NDArray[Any]]) -> list[Box]:
    """The bounding box of each object: (class value, xmin, ymin, xmax, ymax), pixels, max edges exclusive."""
    from scipy.ndimage import find_objects

    boxes: list[Box] = []
    for value, mask in sorted(instances.items()):
        for found in find_objects(numbered(mask).astype(np.int32)):
            if found is not None:
                rows, cols = found
                boxes.append(
                    (value, float(cols.start), float(rows.start), float(cols.stop), float(rows.stop))
                )
    return boxes


def class_mask(
    instances: Mapping[int, npt.NDArray[Any]], shape: tuple[int, int], classes: ClassSchema
) -> npt.NDArray[Any]:
    """Class values of objects  # (rows, cols); of two objects on a pixel the higher class value counts."""
    out = np.zeros(shape, dtype=np.min_scalar_type(max(classes.values, default=1)))
    for value, mask in sorted(instances.items()):
        out[mask != 0] = value
    return out
