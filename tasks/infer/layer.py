"""From objects in grid pixels to one layer in map coordinates: fields, sources, coordinate system, NMS."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from tasks.errors import BadInputError
from tasks.imagery.collection import same_crs
from tasks.infer.image_grids import map_crs, to_map
from tasks.infer.objects import Objects
from tasks.infer.origins import origins_of
from tasks.infer.outputs_features import Features, FieldType
from tasks.infer.planned import Plan, PlannedGrid
from tasks.infer.suppression import suppress

MIXED_CRS = "EPSG:4326"
"""Separate items in several coordinate systems share one layer in WGS 84, unless out_sr names another."""


@dataclass(frozen=True)
class Layer:
    """A layer, ready to be written.

    Attributes:
        crs_wkt: its coordinate system.
        features: its objects.
        before_suppression: number of objects before Non Maximum Suppression.
        larger_than_halo: of these, objects that a tile may have cut off.
    """

    crs_wkt: str
    features: Features
    before_suppression: int
    larger_than_halo: int


def gather_layer(plan: Plan, found: Sequence[Objects]) -> Layer:
    """One layer of the objects of all grids.

    Args:
        plan: the plan; its order of grids is that of ``found``.
        found: per grid, the reconciled objects in grid pixels.

    Raises:
        BadInputError: Non Maximum Suppression is to use a field that the objects do not have.
    """
    crs_wkt = layer_crs(plan)
    geometry = [
        reprojected(to_map(plan, planned, objects.geometry), map_crs(plan, planned), crs_wkt)
        for planned, objects in zip(plan.grids, found, strict=True)
    ]
    sources = [
        origins_of(plan, planned, shapely.centroid(objects.geometry))
        for planned, objects in zip(plan.grids, found, strict=True)
    ]
    together = Objects.joined(found)
    values = {item.name: item.value for item in plan.package.classes}
    extra, extra_types = _extra_columns(together.attributes)
    features = Features(
        geometry=np.concatenate(geometry),
        class_name=together.class_name.tolist(),
        class_value=[values.get(name) for name in together.class_name],
        confidence=together.confidence,
        source_raster=[uri for uris in sources for uri in uris],
        extra=extra,
        extra_types=extra_types,
    )
    suppression = plan.finishing.get("suppression")
    if suppression is not None and len(together):
        stays = suppress(
            features.geometry,
            np.asarray(_field(features, suppression["confidence_score_field"]), np.float64),
            [str(value) for value in _field(features, suppression["class_value_field"])],
            max_overlap_ratio=suppression["max_overlap_ratio"],
        )
        features = taken(features, np.flatnonzero(stays))
    return Layer(crs_wkt, features, len(together), int(together.cut.sum()))


def layer_crs(plan: Plan) -> str:
    """The layer's coordinate system: out_sr, or the one that all grids share, or WGS 84."""
    out_sr = plan.finishing.get("out_sr")
    if out_sr is not None:
        return str(pyproj.CRS.from_epsg(out_sr).to_wkt())
    first = map_crs(plan, plan.grids[0])
    if all(same_crs(first, map_crs(plan, planned)) for planned in plan.grids):
        return first
    return str(pyproj.CRS.from_user_input(MIXED_CRS).to_wkt())


def to_pixels(geometry: NDArray[np.object_], planned: PlannedGrid) -> NDArray[np.object_]:
    """Geometries in pixels of a map grid; the inverse of :func:`tasks.infer.image_grids.to_map`."""
    a, _, c, _, e, f = planned.transform
    scale, origin = np.array([a, e]), np.array([c, f])
    on_grid: NDArray[np.object_] = shapely.transform(geometry, lambda points: (points - origin) / scale)
    return on_grid


def reprojected(geometry: NDArray[np.object_], source: str, target: str) -> NDArray[np.object_]:
    """The geometries with their vertices in another coordinate system (both as WKT).

    In degrees, a polygon across the antimeridian goes on beyond 180 instead of around the world.
    """
    if same_crs(source, target) or len(geometry) == 0:
        return geometry
    project = pyproj.Transformer.from_crs(source, target, always_xy=True)
    moved: NDArray[np.object_] = shapely.transform(
        geometry, lambda points: np.column_stack(project.transform(points[:, 0], points[:, 1]))
    )
    if pyproj.CRS.from_wkt(target).is_geographic:
        xmin, _, xmax, _ = shapely.bounds(moved).T
        across = xmax - xmin > 180
        moved[across] = shapely.transform(
            moved[across], lambda points: np.column_stack([points[:, 0] % 360, points[:, 1]])
        )
    return moved


def _extra_columns(texts: NDArray[np.object_]) -> tuple[dict[str, list[Any]], dict[str, FieldType]]:
    """Columns of the function's own attributes, with the narrowest type that fits all their values."""
    rows = [json.loads(text) for text in texts]
    names = sorted({name for row in rows for name in row})
    columns: dict[str, list[Any]] = {}
    types: dict[str, FieldType] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, bool}:
            types[name], columns[name] = "integer", values
        elif kinds <= {int, bool, float}:
            types[name] = "real"
            columns[name] = [None if value is None else float(value) for value in values]
        else:
            types[name] = "text"
            columns[name] = [None if value is None else str(value) for value in values]
    return columns, types


def _field(features: Features, name: str) -> Sequence[Any]:
    columns: dict[str, Sequence[Any]] = {
        "Confidence": features.confidence.tolist(),
        "Class": features.class_name,
        "Classvalue": features.class_value,
        **features.extra,
    }
    for known, values in columns.items():
        if known.lower() == name.lower():
            return values
    raise BadInputError(
        f"The objects have no field {name!r} for Non Maximum Suppression.",
        f"Use one of {', '.join(columns)}.",
    )


def taken(features: Features, which: NDArray[np.intp]) -> Features:
    """The features at these positions."""
    changed: dict[str, Any] = {}
    for column in fields(features):
        value = getattr(features, column.name)
        if isinstance(value, np.ndarray):
            changed[column.name] = value[which]
        elif column.name == "extra":
            changed["extra"] = {
                name: [values[i] for i in which.tolist()] for name, values in features.extra.items()
            }
        elif isinstance(value, str | Mapping):
            changed[column.name] = value
        else:
            changed[column.name] = [value[index] for index in which.tolist()] if len(value) else value
    return Features(**changed)
