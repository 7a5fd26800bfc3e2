"""What an export must hold, computed on whole arrays and single polygons: the oracle of this room's tests.

Where a chip lies is taken from its world file, never from the code under test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.features import rasterize
from rasterio.io import MemoryFile

from tasks.training_data import Chip, layout

Array = npt.NDArray[Any]
Box = tuple[int, float, float, float, float]

# A part of a label that is thinner than this does not count; see docs/formats/training-data.md.
_LEAST_SIDE_PX = 0.02


def chip_transform(chip: Chip) -> Affine:
    """Chip pixel to map, from the world file beside the picture."""
    world = chip.image.with_suffix(layout.WORLD_EXTENSIONS[chip.image.suffix])
    return Affine(*layout.parse_world_file(world.read_text()))


@dataclass(frozen=True)
class Truth:
    """Labels in the pixels of a whole raster: x right, y down.

    Attributes:
        polygons: (n,) shapely polygons.
        values: (n,) class values.
        shape: (rows, cols) of the raster.
        transform: the raster's, pixel to map.
    """

    polygons: Array
    values: Array
    shape: tuple[int, int]
    transform: Affine

    def mask(self, chosen: Sequence[int] | None = None) -> Array:
        """Class values of the whole raster, the later label on top; ``chosen`` picks labels."""
        return self.burnt(self.polygons, self.values, self.shape, chosen)

    @staticmethod
    def burnt(
        polygons: Array, values: Array, shape: tuple[int, int], chosen: Sequence[int] | None = None
    ) -> Array:
        """As :meth:`mask`, of other polygons."""
        indices = range(len(polygons)) if chosen is None else chosen
        pairs = [(polygons[i], int(values[i])) for i in indices if not polygons[i].is_empty]
        if not pairs:
            return np.zeros(shape, dtype=np.int32)
        found: Array = rasterize(pairs, out_shape=shape, transform=Affine.identity(), dtype="int32")
        return found

    def to_grid(self, chip: Chip) -> Affine:
        """Chip pixel to pixel of the whole raster."""
        to_grid: Affine = ~self.transform @ chip_transform(chip)
        return to_grid

    def gathered(self, array: Array, chip: Chip, shape: tuple[int, int]) -> Array:
        """The pixels of a whole array that lie under the centres of a chip's pixels; 0 outside."""
        to_grid = self.to_grid(chip)
        col, row = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
        x = np.floor(to_grid.a * col + to_grid.b * row + to_grid.c).astype(int)
        y = np.floor(to_grid.d * col + to_grid.e * row + to_grid.f).astype(int)
        inside = (x >= 0) & (x < array.shape[-1]) & (y >= 0) & (y < array.shape[-2])
        found = array[..., np.where(inside, y, 0), np.where(inside, x, 0)]
        return np.where(inside, found, array.dtype.type(0))

    def in_chip(self, chip: Chip) -> Array:
        """The labels in the chip's own pixels, uncut."""
        a, b, c, d, e, f = tuple(~self.to_grid(chip))[:6]

        def move(points: Array) -> Array:
            x, y = points.T
            return np.column_stack([a * x + b * y + c, d * x + e * y + f])

        return np.asarray(shapely.transform(self.polygons, move))

    def parts(self, chip: Chip, shape: tuple[int, int], ratio: float = 0.0) -> dict[int, shapely.Geometry]:
        """By number of the label its part inside the chip, in the chip's pixels."""
        frame = shapely.box(0, 0, shape[1], shape[0])
        found = {}
        for index, polygon in enumerate(self.in_chip(chip)):
            part = shapely.intersection(polygon, frame)
            xmin, ymin, xmax, ymax = part.bounds
            if shapely.area(part) == 0 or min(xmax - xmin, ymax - ymin) < _LEAST_SIDE_PX:
                continue
            if shapely.area(part) >= ratio * shapely.area(polygon):
                found[index] = part
        return found

    def boxes(self, chip: Chip, shape: tuple[int, int], ratio: float = 0.0) -> list[Box]:
        """(class value, xmin, ymin, xmax, ymax) of what :meth:`parts` finds."""
        return [
            (int(self.values[index]), *shapely.bounds(part).tolist())
            for index, part in self.parts(chip, shape, ratio).items()
        ]

    def instances(self, chip: Chip, shape: tuple[int, int]) -> dict[int, Array]:
        """By class value the numbered objects of a chip: 1, 2, … in record order, later ones on top."""
        polygons = self.in_chip(chip)
        found = {}
        for value in np.unique(self.values):
            mine = np.flatnonzero(self.values == value)
            burnt = self.burnt(polygons, np.arange(1, len(polygons) + 1), shape, mine.tolist())
            present = np.unique(burnt[burnt > 0])
            if len(present):
                found[int(value)] = np.where(burnt > 0, np.searchsorted(present, burnt) + 1, 0)
        return found


def same_boxes(found: Sequence[Box], expected: Sequence[Box], tolerance_px: float = 0.01) -> bool:
    """Whether boxes are equal, in order, to within a hundredth of a pixel."""
    if [box[0] for box in found] != [box[0] for box in expected]:
        return False
    return not found or bool(np.abs(np.array(found) - np.array(expected)).max() <= tolerance_px)


def around(array: Array, row: int, col: int, rows: int, cols: int) -> Array:
    """A window of the last two axes, which may reach beyond the lower and right edge; 0 there."""
    pad = [(0, 0)] * (array.ndim - 2) + [(0, rows), (0, cols)]
    return np.pad(array, pad)[..., row : row + rows, col : col + cols]


def differences(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> list[str]:
    """What differs between the files of two folders, in words; of rasters also in how many pixels."""
    told = [f"{path} is in one of them only" for path in sorted(found.keys() ^ expected.keys())]
    for path in sorted(found.keys() & expected.keys()):
        if found[path] == expected[path]:
            continue
        told.append(f"{path}: {len(found[path])} and {len(expected[path])} bytes")
        if path.endswith((".tif", ".png")):
            unlike = np.argwhere(_decoded(found[path]) != _decoded(expected[path]))
            told[-1] += f", {len(unlike)} pixels differ: {unlike[:5].tolist()}"
    return told


def _decoded(file: bytes) -> Array:
    with MemoryFile(file) as memory, memory.open() as dataset:
        pixels: Array = dataset.read()
    return pixels
