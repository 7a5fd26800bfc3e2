"""Labels seen through a pixel grid: which label lies where, as boxes and as burnt class values.

All answers are in pixels of the grid (x right, y down, origin at the outer corner of the upper-left
pixel), and none depends on how the grid is cut into windows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.enums import MergeAlg
from rasterio.features import rasterize

from tasks.labels.schema import ClassSchema
from tasks.labels.vector import VectorLabels

Box = tuple[float, float, float, float]

# Coordinates are rounded to this fraction of a pixel, a power of two: moving the origin by whole pixels
# is then exact, so that a label burns alike whatever window it is burnt in.
_FRACTION = 1.0 / 65536.0
# What is thinner inside a window does not count there: its box, written with two decimals, could be empty.
_LEAST_SIDE_PX = 0.02
# Labels are burnt in blocks anchored to the grid's origin, for the same reason.
_BLOCK = 1024


@dataclass(frozen=True)
class LabelsInWindow:
    """The labels of one window, in label order.

    Attributes:
        indices: (n,) which labels.
        values: (n,) class values.
        boxes: (n, 4) xmin, ymin, xmax, ymax of the part inside, pixels from the window's upper-left corner.
        areas: (n,) area of the part inside, squared pixels.
        left_out: labels that share an area with the window, but too small a share of their own.
    """

    indices: npt.NDArray[np.intp]
    values: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    left_out: npt.NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class PixelLabels:
    """Vector labels in the pixel coordinates of one grid.

    Attributes:
        geometries: (features,) shapely polygons, pixel coordinates.
        values: (features,) int64 class values.
        schema: the classes.
    """

    geometries: npt.NDArray[np.object_]
    values: npt.NDArray[np.int64]
    schema: ClassSchema

    @cached_property
    def tree(self) -> shapely.STRtree:
        """The spatial index."""
        return shapely.STRtree(self.geometries)

    @cached_property
    def _bounds(self) -> npt.NDArray[np.float64]:
        return shapely.bounds(self.geometries).reshape(-1, 4)

    @cached_property
    def _areas(self) -> npt.NDArray[np.float64]:
        areas: npt.NDArray[np.float64] = shapely.area(self.geometries)
        return areas

    @cached_property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest unsigned integer type that holds every class value."""
        return np.dtype(np.min_scalar_type(max(self.schema.values, default=1)))

    def in_windows(
        self, windows: npt.NDArray[np.int64], *, min_overlap_ratio: float = 0.0
    ) -> list[LabelsInWindow]:
        """For each window the labels that share an area with it.

        Args:
            windows: (n, 4) row, col, rows, cols.
            min_overlap_ratio: a label counts only if at least this share of its area lies inside
                (area of label and window over area of label).
        """
        windows = np.asarray(windows, dtype=np.int64).reshape(-1, 4)
        row, col, rows, cols = windows.T
        edges = np.column_stack([col, row, col + cols, row + rows]).astype(np.float64)
        frames = np.asarray(shapely.box(*edges.T), dtype=object)
        which, label = self.tree.query(frames, predicate="intersects")
        order = np.lexsort((label, which))
        which, label = which[order], label[order]
        bounds, outer = self._bounds[label].copy(), edges[which]
        areas = self._areas[label].copy()
        cut = (bounds[:, :2] < outer[:, :2]).any(axis=1) | (bounds[:, 2:] > outer[:, 2:]).any(axis=1)
        if cut.any():
            parts = _areal(np.asarray(shapely.intersection(self.geometries[label[cut]], frames[which[cut]])))
            areas[cut] = shapely.area(parts)
            bounds[cut] = shapely.bounds(parts)
        inside = (areas > 0) & (bounds[:, 2:] - bounds[:, :2] >= _LEAST_SIDE_PX).all(axis=1)
        kept = inside & (areas >= min_overlap_ratio * self._areas[label])
        size = outer[:, 2:] - outer[:, :2]
        boxes = np.clip(bounds - np.tile(outer[:, :2], 2), 0, np.tile(size, 2))
        starts = np.searchsorted(which, np.arange(len(windows) + 1))
        found = []
        for start, stop in pairwise(starts):
            here = slice(start, stop)
            mine = label[here]
            keep = kept[here]
            found.append(
                LabelsInWindow(
                    indices=mine[keep],
                    values=self.values[mine[keep]],
                    boxes=boxes[here][keep],
                    areas=areas[here][keep],
                    left_out=mine[inside[here] & ~keep],
                )
            )
        return found

    def in_window(
        self, row: int, col: int, rows: int, cols: int, *, min_overlap_ratio: float = 0.0
    ) -> LabelsInWindow:
        """The labels that share an area with one window; see :meth:`in_windows`."""
        return self.in_windows(np.array([[row, col, rows, cols]]), min_overlap_ratio=min_overlap_ratio)[0]

    def burn(
        self, row: int, col: int, rows: int, cols: int, *, leave_out: Collection[int] = ()
    ) -> npt.NDArray[np.unsignedinteger]:
        """Class values of the window's pixels, 0 where there is no label.

        A pixel belongs to a label if its centre lies inside; where labels overlap the later record wins.

        Args:
            leave_out: indices of labels that are not burnt.

        Returns:
            array  # (rows, cols), dtype as ``self.dtype``
        """
        out = np.zeros((rows, cols), dtype=self.dtype)
        for top in range(row // _BLOCK * _BLOCK, row + rows, _BLOCK):
            for left in range(col // _BLOCK * _BLOCK, col + cols, _BLOCK):
                block = self._burn_block(top, left, leave_out)
                if block is None:
                    continue
                r0, r1 = max(row, top), min(row + rows, top + _BLOCK)
                c0, c1 = max(col, left), min(col + cols, left + _BLOCK)
                out[r0 - row : r1 - row, c0 - col : c1 - col] = block[
                    r0 - top : r1 - top, c0 - left : c1 - left
                ]
        return out

    def _burn_block(
        self, top: int, left: int, leave_out: Collection[int]
    ) -> npt.NDArray[np.unsignedinteger] | None:
        window = shapely.box(left, top, left + _BLOCK, top + _BLOCK)
        indices = np.sort(self.tree.query(window, predicate="intersects"))
        if leave_out:
            indices = indices[~np.isin(indices, list(leave_out))]
        if not len(indices):
            return None
        block: npt.NDArray[np.unsignedinteger] = rasterize(
            zip(self.geometries[indices], self.values[indices].tolist(), strict=True),
            out_shape=(_BLOCK, _BLOCK),
            transform=Affine.translation(left, top),
            fill=0,
            merge_alg=MergeAlg.replace,
            dtype=self.dtype.name,
        )
        return block


def labels_on_grid(labels: VectorLabels, transform: Sequence[float]) -> PixelLabels:
    """The labels in the pixel coordinates of a grid in the labels' CRS.

    Args:
        transform: (a, b, c, d, e, f) of the grid, pixel to map.
    """
    inverse = ~Affine(*transform)

    def move(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x = inverse.a * points[:, 0] + inverse.b * points[:, 1] + inverse.c
        y = inverse.d * points[:, 0] + inverse.e * points[:, 1] + inverse.f
        return np.column_stack([np.round(x / _FRACTION) * _FRACTION, np.round(y / _FRACTION) * _FRACTION])

    geometries = np.asarray(shapely.transform(labels.geometries, move), dtype=object)
    bad = ~shapely.is_valid(geometries)
    if bad.any():
        # Rounding can make a ring touch itself; a label below the rounding vanishes.
        geometries[bad] = shapely.make_valid(geometries[bad], method="structure", keep_collapsed=False)
    keep = shapely.area(geometries) > 0
    return PixelLabels(geometries[keep], labels.values[keep], labels.schema)


def _areal(geometries: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Without the lines and points that an intersection leaves where a label only touches the window."""
    for index in np.flatnonzero(shapely.get_type_id(geometries) == shapely.GeometryType.GEOMETRYCOLLECTION):
        parts = shapely.get_parts(geometries[index])
        geometries[index] = shapely.union_all(parts[shapely.get_dimensions(parts) == 2])
    return geometries
