"""A STAC item for a result: where it lies, what it holds, what it was made from.

Source: STAC 1.1, with the projection, processing and classification extensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyproj
import pystac
import shapely
import shapely.affinity

from tasks.imagery import Bounds, Grid
from tasks.labels import LabelClass

_PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
_PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
_CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"

COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
GEOPARQUET_TYPE = "application/vnd.apache.parquet"
GEOPACKAGE_TYPE = "application/geopackage+sqlite3"


@dataclass(frozen=True)
class ResultAsset:
    """One file of a result.

    Attributes:
        href: URI, or a path relative to the item.
        media_type: for example :data:`COG_TYPE`.
        title: what a person reads.
        roles: STAC roles, ``data`` for results, ``metadata`` for side-cars, ``overview`` for pictures.
        grid: of a raster: its shape and transform are stated.
        dtype: of a raster: numpy name of the pixel type.
        nodata: of a raster.
        classes: of a classified raster.
    """

    href: str
    media_type: str
    title: str
    roles: tuple[str, ...] = ("data",)
    grid: Grid | None = None
    dtype: str | None = None
    nodata: float | None = None
    classes: tuple[LabelClass, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """What a result was made from and with.

    Attributes:
        inputs: URIs of the imagery, or of the layer, without signatures.
        package_uri: where the deep learning package lies; empty where there was none.
        package_digest: its SHA-256.
        kind: what the inputs are.
        facility: what ran it, for example ``Chipline``.
        software: versions by name.
        parameters: the tool's parameters, JSON-able.
        further: roles and URIs of other inputs, such as a mask.
    """

    inputs: Sequence[str]
    package_uri: str
    package_digest: str
    facility: str = "Chipline"
    software: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "imagery"
    further: Sequence[tuple[str, str]] = ()


def stac_item(
    item_id: str,
    *,
    crs_wkt: str | None,
    footprints: Sequence[Bounds],
    created: datetime,
    assets: Mapping[str, ResultAsset],
    lineage: Lineage,
    title: str,
    acquired: tuple[datetime, datetime] | None = None,
) -> dict[str, Any]:
    """The item as JSON.

    Args:
        item_id: unique within its collection.
        crs_wkt: CRS of ``footprints``; None in pixel space: the item then has no geometry.
        footprints: (xmin, ymin, xmax, ymax) of the areas that the result covers.
        created: when the result was made; also the item's time where ``acquired`` is not known.
        assets: files by key.
        lineage: inputs, package, versions.
        title: one line for people.
        acquired: the first and the last time at which the imagery was taken; where they differ, the item has
            both and no single time (STAC 1.1, ``start_datetime``).
    """
    geometry, bbox = footprint(crs_wkt, footprints)
    first, last = (time.astimezone(UTC) for time in acquired or (created, created))
    item = pystac.Item(
        id=item_id,
        geometry=geometry,
        bbox=bbox,
        datetime=first if first == last else None,
        start_datetime=None if first == last else first,
        end_datetime=None if first == last else last,
        properties={
            "title": title,
            "created": pystac.utils.datetime_to_str(created.astimezone(UTC)),
            "processing:facility": lineage.facility,
            "processing:software": dict(lineage.software),
            **({"chipline:package_digest": lineage.package_digest} if lineage.package_digest else {}),
            "chipline:parameters": dict(lineage.parameters),
        },
        stac_extensions=[_PROCESSING],
    )
    code = _authority_code(crs_wkt)
    if crs_wkt is not None:
        item.stac_extensions.append(_PROJECTION)
        item.properties["proj:code"] = code
        if code is None:
            item.properties["proj:wkt2"] = pyproj.CRS.from_wkt(crs_wkt).to_wkt()
    for key, asset in assets.items():
        item.add_asset(key, _asset(asset))
    if any(asset.classes for asset in assets.values()):
        item.stac_extensions.append(_CLASSIFICATION)
    for uri in lineage.inputs:
        item.add_link(pystac.Link("derived_from", uri, title=lineage.kind))
    for role, uri in lineage.further:
        item.add_link(pystac.Link("derived_from", uri, title=role.replace("_", " ")))
    if lineage.package_uri:
        item.add_link(pystac.Link("derived_from", lineage.package_uri, title="deep learning package"))
    return item.to_dict(include_self_link=False, transform_hrefs=False)


def footprint(
    crs_wkt: str | None, footprints: Sequence[Bounds]
) -> tuple[dict[str, Any] | None, list[float] | None]:
    """GeoJSON geometry and bounding box in longitude and latitude (EPSG:4326) of areas in another CRS.

    A footprint across the antimeridian is cut there, and its box then runs from the western part's west to
    the eastern part's east (RFC 7946 §3.1.9, §5.2). None and None in pixel space.
    """
    if crs_wkt is None or not footprints:
        return None, None
    project = pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(crs_wkt), "EPSG:4326", always_xy=True)
    parts = []
    for bounds in footprints:
        width, height = bounds[2] - bounds[0], bounds[3] - bounds[1]
        dense = shapely.segmentize(shapely.box(*bounds), max(width, height) / 16)
        ring = np.column_stack(project.transform(*shapely.get_coordinates(dense).T))
        # A step of more than half the globe is one across the antimeridian, not one around the world.
        ring[:, 0] = np.unwrap(ring[:, 0], period=360.0)
        parts.append(shapely.Polygon(ring))
    area = shapely.union_all(parts)
    west, south, east, north = area.bounds
    if west < -180 or east > 180:
        pieces = [
            shapely.affinity.translate(area, turn).intersection(shapely.box(-180, -90, 180, 90))
            for turn in (-360, 0, 360)
        ]
        area = shapely.union_all([piece for piece in pieces if not piece.is_empty])
        if east - west < 360:
            west, east = (value - 360 * np.floor((value + 180) / 360) for value in (west, east))
        else:
            west, east = -180.0, 180.0
    area = shapely.orient_polygons(shapely.set_precision(area, 1e-7))
    geometry: dict[str, Any] = dict(shapely.geometry.mapping(area))
    return _as_lists(geometry), [round(float(value), 7) for value in (west, south, east, north)]


def _asset(asset: ResultAsset) -> pystac.Asset:
    fields: dict[str, Any] = {}
    if asset.grid is not None:
        fields["proj:shape"] = list(asset.grid.shape)
        fields["proj:transform"] = [*asset.grid.transform, 0, 0, 1]
        fields["gsd"] = asset.grid.cell_size[0] if _in_metres(asset.grid.crs_wkt) else None
    if asset.dtype is not None:
        fields["data_type"] = asset.dtype
    if asset.nodata is not None:
        fields["nodata"] = asset.nodata if np.isfinite(asset.nodata) else "nan"
    if asset.classes:
        fields["classification:classes"] = [
            {
                "value": item.value,
                "name": _class_id(item.name),
                "title": item.name,
                "color_hint": "{:02X}{:02X}{:02X}".format(*item.color),
            }
            for item in asset.classes
        ]
    return pystac.Asset(
        href=asset.href,
        title=asset.title,
        media_type=asset.media_type,
        roles=list(asset.roles),
        extra_fields={name: value for name, value in fields.items() if value is not None},
    )


def _class_id(name: str) -> str:
    """The name with letters, digits, '-' and '_' only, as the classification extension wants it."""
    return "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in name
    )


def _authority_code(crs_wkt: str | None) -> str | None:
    if crs_wkt is None:
        return None
    authority = pyproj.CRS.from_wkt(crs_wkt).to_authority()
    return ":".join(authority) if authority else None


def _in_metres(crs_wkt: str | None) -> bool:
    if crs_wkt is None:
        return False
    crs = pyproj.CRS.from_wkt(crs_wkt)
    return crs.is_projected and crs.axis_info[0].unit_conversion_factor == 1.0


def _as_lists(value: Any) -> Any:
    """GeoJSON with lists for tuples: it equals itself after a round through JSON."""
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_lists(item) for item in value]
    return value
