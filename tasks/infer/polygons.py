"""Polygons in a form that depends on their shape alone: rings, orientation, start, vertices, order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

Geometries = NDArray[np.object_]


def without_collinear_vertices(geometries: Geometries, *, tolerance: float = 0.0) -> Geometries:
    """The same shapes with no vertex that lies on the straight line between its neighbours.

    Borders of tiles leave such vertices behind where pieces are joined.

    Args:
        geometries: polygons and multipolygons.
        tolerance: a vertex goes when it lies no further than this from its neighbours' line, in units of
            the coordinates; 0 takes away exact ones only.
    """
    return np.array([_thinned(geometry, tolerance) for geometry in geometries], dtype=object)


def normalised(geometries: Geometries) -> Geometries:
    """Equal shapes become equal geometries: outer rings run counter-clockwise, holes clockwise; each ring
    starts at its leftmost, then lowest vertex; parts and holes are in a fixed order."""
    ordered: Geometries = shapely.orient_polygons(shapely.normalize(geometries), exterior_cw=False)
    return ordered


def canonical_order(
    geometries: Geometries, class_names: Sequence[str] | NDArray[Any], confidences: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Indices that sort features from north to south, then from west to east.

    Features with equal bounds go by class, then by confidence from high to low, then by their vertices.
    """
    if len(geometries) == 0:
        return np.empty(0, dtype=np.intp)
    xmin, ymin, xmax, ymax = shapely.bounds(geometries).T
    # WKB is bytes of different lengths, which numpy compares only as objects; its rank will do.
    ranks = np.unique(np.asarray(shapely.to_wkb(geometries), dtype=object), return_inverse=True)[1]
    names = np.asarray(class_names, dtype=str)
    return np.lexsort((ranks, -confidences, names, xmax, -ymin, xmin, -ymax))


def _thinned(geometry: shapely.Geometry, tolerance: float) -> shapely.Geometry:
    if isinstance(geometry, shapely.MultiPolygon):
        return shapely.MultiPolygon([_thinned_polygon(part, tolerance) for part in geometry.geoms])
    if isinstance(geometry, shapely.Polygon):
        return _thinned_polygon(geometry, tolerance)
    raise TypeError(f"Only polygons have such vertices, not {geometry!r:.60}.")


def _thinned_polygon(polygon: shapely.Polygon, tolerance: float) -> shapely.Polygon:
    if polygon.is_empty:
        return polygon
    shell, *holes = (
        _thinned_ring(shapely.get_coordinates(ring), tolerance)
        for ring in (polygon.exterior, *polygon.interiors)
    )
    return shapely.Polygon(shell, holes)


def _thinned_ring(ring: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """A closed ring without its collinear vertices, the first one included.  # (points, 2)"""
    points = ring[:-1]
    while len(points) > 3:
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        chord = before + after
        across = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
        straight = across <= tolerance * np.hypot(chord[:, 0], chord[:, 1])
        # A spike turns back on its line; it is a corner unless a tolerance forgives it.
        straight &= (before * after).sum(axis=1) >= 0
        if not straight.any():
            break
        if tolerance > 0:
            # Of neighbours only every other one at a time, so that errors do not add up.
            straight &= ~(np.roll(straight, 1) & (np.arange(len(points)) % 2 == 1))
        if len(points) - straight.sum() < 3:
            break
        points = points[~straight]
    return np.concatenate([points, points[:1]])
