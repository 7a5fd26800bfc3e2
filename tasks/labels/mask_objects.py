"""Objects in a class mask: the connected regions of a chip's label pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine

from tasks.labels.pixels import LabelsInWindow

_FEW_CLASSES = 4


@dataclass(frozen=True)
class ObjectsOfMask(LabelsInWindow):
    """The objects of a mask; ``indices`` are -1, for they are no records of a file.

    Attributes:
        regions: the number of the object each pixel belongs to, from 1 in the objects' order; 0 = none
            # (rows, cols), int32
    """

    regions: npt.NDArray[np.int32] | None = None

    def instances(self, value: int) -> npt.NDArray[np.unsignedinteger]:
        """The objects of one class numbered from 1 in their order; 0 = none.

        Returns:
            array  # (rows, cols), uint8, uint16 or uint32
        """
        if self.regions is None:
            raise ValueError("These objects were made without their mask.")
        mine = self.values == value
        numbers = np.zeros(len(self) + 1, dtype=np.min_scalar_type(max(1, int(mine.sum()))))
        numbers[1:][mine] = np.arange(1, int(mine.sum()) + 1)
        out: npt.NDArray[np.unsignedinteger] = numbers[self.regions]
        return out


def objects_of_mask(mask: npt.NDArray[np.unsignedinteger]) -> ObjectsOfMask:
    """The connected regions of a chip's class mask as objects.

    Pixels of one class that share an edge are one object (4-connected; corners do not connect). Objects are
    ordered by class value, then by their first pixel, row by row.

    Args:
        mask: class values, 0 = no label  # (rows, cols), unsigned integer

    Returns:
        boxes of whole pixels, areas in pixels.
    """
    from scipy import ndimage

    dense, present = _dense(mask)
    everywhere = tuple(slice(0, size) for size in mask.shape)
    # Where classes are many, each is looked for only where it lies.
    many = len(present) > _FEW_CLASSES
    frames = ndimage.find_objects(dense, len(present)) if many else [everywhere] * len(present)
    regions = np.zeros(mask.shape, dtype=np.int32)
    values: list[int] = []
    for number, (value, frame) in enumerate(zip(present, frames, strict=True), start=1):
        here = dense[frame] == number
        labelled, count = ndimage.label(here)
        labelled[here] += len(values)
        regions[frame] += labelled
        values += [value] * count
    count = len(values)
    regions = _by_first_pixel(regions, np.array(values, dtype=np.int64))
    boxes = [
        (cols.start, rows.start, cols.stop, rows.stop)
        for rows, cols in (ndimage.find_objects(regions, count) if count else [])
    ]
    return ObjectsOfMask(
        indices=np.full(count, -1, dtype=np.intp),
        values=np.array(values, dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        areas=np.bincount(regions.ravel(), minlength=count + 1)[1:].astype(np.float64),
        left_out=np.empty(0, dtype=np.intp),
        parts=partial(_outlines, regions, count),
        regions=regions,
    )


def _dense(mask: npt.NDArray[np.unsignedinteger]) -> tuple[npt.NDArray[np.int32], list[int]]:
    """The mask with its class values numbered from 1, ascending, and the class values."""
    if mask.dtype.itemsize <= 2:
        present = np.flatnonzero(np.bincount(mask.ravel()))
        present = present[present > 0]
        table = np.zeros(int(present[-1]) + 1 if len(present) else 1, dtype=np.int32)
        table[present] = np.arange(1, len(present) + 1)
        return table[mask], [int(value) for value in present]
    found, inverse = np.unique(mask, return_inverse=True)
    has_none = len(found) > 0 and found[0] == 0
    dense = inverse.reshape(mask.shape).astype(np.int32) + (0 if has_none else 1)
    return dense, [int(value) for value in (found[1:] if has_none else found)]


def _by_first_pixel(regions: npt.NDArray[np.int32], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Regions numbered within their class by their first pixel, row by row; ``values`` are ascending.

    scipy numbers them so already, but does not promise it.
    """
    flat = regions.ravel()
    first = np.zeros(len(values) + 1, dtype=np.int64)
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)  # the last assignment, the first pixel, stays
    order = np.lexsort((first[1:], values))
    if (order[1:] > order[:-1]).all():
        return regions
    numbers = np.zeros(len(values) + 1, dtype=np.int32)
    numbers[order + 1] = np.arange(1, len(values) + 1, dtype=np.int32)
    return numbers[regions]


def _outlines(regions: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.object_]:
    from rasterio.features import shapes

    outlines = np.empty(count, dtype=object)
    if not count:
        return outlines
    found = shapes(regions, mask=regions > 0, connectivity=4, transform=Affine.identity())
    for outline, number in found:
        outlines[int(number) - 1] = shapely.normalize(shapely.geometry.shape(outline))
    return outlines
