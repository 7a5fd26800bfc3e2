"""Outlines of polygons made plainer: small ones left out, vertices taken away, right angles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyproj
import shapely
import shapely.affinity
from numpy.typing import NDArray

from tasks.infer.outputs_features import areas_m2
from tasks.infer.polygons import Geometries

# A new outline is taken only where it shares this much of what both cover together.
KEEPS_SHAPE = 0.75
# Lengths that the size of a unit is measured by.
_STEP_DEGREES, _STEP_UNITS = 1e-3, 100.0


def shaped(
    geometry: Geometries, crs_wkt: str | None, wishes: Mapping[str, Any], *, covers: bool = False
) -> tuple[NDArray[np.intp], Geometries]:
    """The polygons that stay, as positions, and their outlines.

    Args:
        geometry: polygons and multipolygons in the coordinates of ``crs_wkt``.
        crs_wkt: None in pixel space: areas and tolerances are then in pixels.
        wishes: ``minimum_area`` (m²), ``polygon_shape`` and ``shape_tolerance`` (m).
        covers: the polygons abut, as those of a classified raster do; simplified they still abut.
    """
    shape, tolerance = wishes["polygon_shape"], float(wishes["shape_tolerance"])
    stays = np.arange(len(geometry))
    minimum = float(wishes["minimum_area"])
    if minimum > 0 and len(geometry):
        areas = shapely.area(geometry) if crs_wkt is None else np.array(areas_m2(geometry, crs_wkt), float)
        stays = np.flatnonzero(areas >= minimum)
    kept = geometry[stays]
    if shape == "AS_FOUND" or len(kept) == 0:
        return stays, kept
    scale = _metres_per_unit(kept, crs_wkt)
    in_metres = shapely.transform(kept, lambda points: points * scale)
    if covers and shape == "SIMPLIFIED":
        made = shapely.coverage_simplify(in_metres, tolerance)
    else:
        made = shapely.simplify(in_metres, tolerance, preserve_topology=True)
    if shape == "REGULARISED":
        made = np.array([regularised(outline, tolerance) for outline in made], dtype=object)
    # An outline that the tolerance swallows stays as it was.
    gone = shapely.is_empty(made) | (shapely.area(made) == 0)
    if not (covers and shape == "SIMPLIFIED"):
        common = shapely.area(shapely.intersection(made, shapely.make_valid(in_metres)))
        gone |= common < KEEPS_SHAPE * (shapely.area(made) + shapely.area(in_metres) - common)
    made[gone] = in_metres[gone]
    return stays, shapely.transform(made, lambda points: points / scale)


def regularised(geometry: shapely.Geometry, tolerance: float) -> shapely.Geometry:
    """The polygon with right angles along its main direction; as it is where that would change its shape."""
    if isinstance(geometry, shapely.MultiPolygon):
        return shapely.union_all([regularised(part, tolerance) for part in geometry.geoms])
    if not isinstance(geometry, shapely.Polygon) or geometry.is_empty:
        return geometry
    angle, centre = _main_direction(geometry), geometry.centroid
    level = shapely.affinity.rotate(geometry, -angle, origin=centre, use_radians=True)
    outline = _right_angled(shapely.get_coordinates(level.exterior), tolerance)
    if outline is None:
        return geometry
    holes = [_right_angled(shapely.get_coordinates(ring), tolerance) for ring in level.interiors]
    found: shapely.Geometry = shapely.Polygon(outline)
    for hole in holes:
        if hole is not None:
            found = shapely.difference(found, shapely.Polygon(hole))
    if not (shapely.is_valid(found) and isinstance(found, shapely.Polygon)):
        return geometry
    common = shapely.area(shapely.intersection(found, level))
    if common < KEEPS_SHAPE * (shapely.area(found) + shapely.area(level) - common):
        return geometry
    turned: shapely.Geometry = shapely.affinity.rotate(found, angle, origin=centre, use_radians=True)
    return turned


def _main_direction(polygon: shapely.Polygon) -> float:
    """Angle in radians, modulo a quarter turn, along which most of the outline runs."""
    points = shapely.get_coordinates(polygon.exterior)
    steps = np.diff(points, axis=0)
    length = np.hypot(steps[:, 0], steps[:, 1])
    # Four times the angle: directions a quarter turn apart are one.
    four = 4 * np.arctan2(steps[:, 1], steps[:, 0])
    return float(np.arctan2((length * np.sin(four)).sum(), (length * np.cos(four)).sum()) / 4)


def _right_angled(ring: NDArray[np.float64], tolerance: float) -> NDArray[np.float64] | None:
    """A closed ring of level and upright edges near this one; None where fewer than four are left."""
    steps, middles = np.diff(ring, axis=0), (ring[1:] + ring[:-1]) / 2
    length = np.hypot(steps[:, 0], steps[:, 1])
    level = np.abs(steps[:, 0]) >= np.abs(steps[:, 1])
    runs: list[tuple[bool, float, float]] = []  # whether level, its y or x, its length
    for flat, middle, size in zip(level.tolist(), middles.tolist(), length.tolist(), strict=True):
        place = middle[1] if flat else middle[0]
        if runs and runs[-1][0] == flat:
            runs[-1] = _merged(runs[-1], (flat, place, size))
        else:
            runs.append((flat, place, size))
    runs = _closed(runs)
    # An edge shorter than the tolerance between two that run the same way joins them.
    while len(runs) > 4:
        shortest = min(range(len(runs)), key=lambda number: runs[number][2])
        if runs[shortest][2] > tolerance:
            break
        before, after = runs[shortest - 1], runs[(shortest + 1) % len(runs)]
        runs[shortest - 1] = _merged(before, after)
        dropped = {shortest, (shortest + 1) % len(runs)}
        runs = _closed([run for number, run in enumerate(runs) if number not in dropped])
    if len(runs) < 4 or len(runs) % 2:
        return None
    corners = []
    for one, other in zip(runs, [*runs[1:], runs[0]], strict=True):
        corners.append((other[1], one[1]) if one[0] else (one[1], other[1]))
    return np.array([*corners, corners[0]])


def _merged(one: tuple[bool, float, float], other: tuple[bool, float, float]) -> tuple[bool, float, float]:
    total = (one[2] + other[2]) or 1.0
    return one[0], (one[1] * one[2] + other[1] * other[2]) / total, one[2] + other[2]


def _closed(runs: list[tuple[bool, float, float]]) -> list[tuple[bool, float, float]]:
    if len(runs) > 1 and runs[0][0] == runs[-1][0]:
        return [_merged(runs[0], runs[-1]), *runs[1:-1]]
    return runs


def _metres_per_unit(geometry: Geometries, crs_wkt: str | None) -> NDArray[np.float64]:
    """(x, y) size in metres, on the ellipsoid, of one unit of the coordinates around the layer's middle.

    Degrees shrink towards the poles, and so do the metres of Web Mercator.
    """
    if crs_wkt is None:
        return np.ones(2)
    crs = pyproj.CRS.from_wkt(crs_wkt)
    xmin, south, xmax, north = shapely.total_bounds(geometry)
    x, y = (xmin + xmax) / 2, (south + north) / 2
    step = _STEP_DEGREES if crs.is_geographic else _STEP_UNITS
    if crs.is_geographic:
        y = min(max(y, -85.0), 85.0)
    geod = crs.get_geod()
    if geod is not None:
        to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        east, north = to_degrees.transform([x, x + step, x], [y, y, y + step])
        _, _, metres = geod.inv([east[0]] * 2, [north[0]] * 2, east[1:], north[1:])
        if np.all(np.isfinite(metres)) and min(metres) > 0:
            return np.asarray(metres, np.float64) / step
    # A local system without a place on Earth, or a layer beside the area of its projection.
    return np.full(2, float(crs.axis_info[0].unit_conversion_factor or 1.0))
