"""Rings of points as a polygon, whatever their order and direction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import shapely


def polygon_of_rings(rings: Sequence[Sequence[Sequence[float]]]) -> shapely.Geometry | None:
    """A valid polygon of open or closed rings; holes by the even-odd rule; None where no area is left."""
    usable = [ring for ring in rings if len({(float(x), float(y)) for x, y in ring}) >= 3]
    if not usable:
        return None
    if len(usable) == 1:
        polygon: shapely.Geometry = shapely.Polygon(usable[0])
    else:
        outlines = [shapely.make_valid(shapely.Polygon(ring)) for ring in usable]
        polygon = reduce(shapely.symmetric_difference, outlines)
    if not shapely.is_valid(polygon):
        polygon = shapely.make_valid(polygon)
    # What make_valid leaves of spikes are lines and points.
    parts = [part for part in _flat(polygon) if shapely.area(part) > 0]
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    joined: shapely.Geometry = shapely.union_all(parts)
    return joined


def _flat(geometry: shapely.Geometry) -> list[shapely.Geometry]:
    """The parts of a geometry, those of nested collections too."""
    if shapely.get_type_id(geometry) < shapely.GeometryType.MULTIPOINT:
        return [geometry]
    return [single for part in shapely.get_parts(geometry).tolist() for single in _flat(part)]
