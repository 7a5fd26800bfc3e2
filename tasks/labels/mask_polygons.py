"""Mask polygons: the region that chips must lie inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine

from tasks.imagery.places import Place
from tasks.labels.records import ToImage, read_all

# What is thinner, in pixels, does not count: noise of a projection along an edge that two polygons share.
_TOLERANCE_PX = 1.0 / 65536.0


@dataclass(frozen=True)
class MaskRegion:
    """The union of polygons, with their holes.

    Attributes:
        geometries: (polygons,) valid, in the CRS of the grids it is asked for; in pixel space x is the column
            and y minus the row.
    """

    geometries: npt.NDArray[np.object_]

    @cached_property
    def _tree(self) -> shapely.STRtree:
        shapely.prepare(self.geometries)
        return shapely.STRtree(self.geometries)

    def covers(self, grid_transform: Sequence[float], places: Sequence[Place]) -> npt.NDArray[np.bool_]:
        """Which chips lie completely inside the region  # (places,).

        Args:
            grid_transform: (a, b, c, d, e, f) of the grid, pixel to map.
            places: on that grid, at any angle.
        """
        covered = np.zeros(len(places), dtype=bool)
        if not len(places):
            return covered
        frames = np.array([_frame(grid_transform, place) for place in places], dtype=object)
        which, polygon = self._tree.query(frames, predicate="intersects")
        # The usual case: one polygon holds the whole chip.
        inside = shapely.covers(self.geometries[polygon], frames[which])
        covered[which[inside]] = True
        open_ = ~covered[which]
        which, polygon = which[open_], polygon[open_]
        several, counts = np.unique(which, return_counts=True)
        for index in several[counts > 1]:
            touching = self.geometries[polygon[which == index]]
            left = shapely.difference(frames[index], shapely.union_all(touching))
            covered[index] = _is_noise(left, grid_transform)
        return covered


def read_mask_polygons(
    uri: str, target_crs_wkt: str | None = None, *, to_image: ToImage | None = None
) -> MaskRegion:
    """Polygons that chips must lie inside, from any vector source; their classes do not matter.

    Args:
        uri: as for :func:`tasks.labels.vector.read_vector_labels`.
        target_crs_wkt: CRS of the grid; with ``to_image`` the CRS that it takes.
        to_image: maps x, y to (column, row) of an image, for grids in pixel space.

    Raises:
        NotFoundError: no such object.
        LabelError: unreadable, no CRS, no features, no polygons.
    """
    polygons, _ = read_all(uri, target_crs_wkt=target_crs_wkt, to_image=to_image, with_classes=False)
    return MaskRegion(polygons.geometries)


def _frame(grid_transform: Sequence[float], place: Place) -> shapely.Geometry:
    """The chip in map space, smaller by the tolerance."""
    transform = Affine(*grid_transform) @ place.to_grid
    low, right, bottom = _TOLERANCE_PX, place.cols - _TOLERANCE_PX, place.rows - _TOLERANCE_PX
    corners = ((low, low), (right, low), (right, bottom), (low, bottom))
    return shapely.Polygon([transform @ corner for corner in corners])


def _is_noise(left: shapely.Geometry, grid_transform: Sequence[float]) -> bool:
    """Whether what a region leaves of a chip is only slivers thinner than the tolerance."""
    inverse = ~Affine(*grid_transform)

    def move(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = inverse @ (points[:, 0], points[:, 1])
        return np.column_stack([x, y])

    parts = shapely.get_parts(shapely.transform(left, move))
    # Area over perimeter is about half the width of a sliver.
    return bool((shapely.area(parts) <= _TOLERANCE_PX * shapely.length(parts)).all())
