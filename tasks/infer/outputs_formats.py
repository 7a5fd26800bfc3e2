"""A layer in further formats: FlatGeobuf, GeoJSON and Shapefile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import pyogrio
import shapely

from tasks.errors import StoreError
from tasks.infer.parameters_outputs import FurtherFormat

# A Shapefile's names have ten letters; GDAL would number those that it cuts.
_SHORT_NAMES = {"source_raster": "source", "source_date": "srcdate"}


@dataclass(frozen=True, slots=True)
class _Format:
    suffix: str
    driver: str
    media_type: str
    options: dict[str, str]


_FORMATS: dict[FurtherFormat, _Format] = {
    "FLATGEOBUF": _Format("fgb", "FlatGeobuf", "application/vnd.flatgeobuf", {}),
    # RFC 7946: longitude and latitude, seven digits.
    "GEOJSON": _Format("geojson", "GeoJSON", "application/geo+json", {"RFC7946": "YES"}),
    "SHAPEFILE": _Format(
        "shp.zip",
        "ESRI Shapefile",
        "application/zip",
        {"ENCODING": "UTF-8", "DBF_DATE_LAST_UPDATE": "2000-01-01"},
    ),
}

FURTHER_FORMATS = {name: (form.suffix, form.media_type) for name, form in _FORMATS.items()}
"""Suffix and media type by name."""


def write_formats(
    folder: Path, name: str, frame: geopandas.GeoDataFrame, formats: Sequence[FurtherFormat]
) -> list[tuple[Path, str]]:
    """Write ``<name>.<suffix>`` per format: paths and media types.

    A zipped Shapefile holds names of ten letters, and texts of 254 bytes, as the format does; a FlatGeobuf
    has a spatial index unless a feature lacks its geometry, which the index has no place for.

    Raises:
        StoreError: a file cannot be written.
    """
    written = []
    for wanted in dict.fromkeys(formats):
        form = _FORMATS[wanted]
        path = folder / f"{name}.{form.suffix}"
        path.unlink(missing_ok=True)
        table = frame
        if wanted == "GEOJSON" and frame.crs is not None:
            table = frame.to_crs("EPSG:4326")
        if wanted == "SHAPEFILE":
            table = frame.rename(columns=_SHORT_NAMES)
        kind, several = _kind(table)
        more: dict[str, Any] = {"geometry_type": f"Multi{kind}" if several else kind}
        if wanted == "SHAPEFILE" and kind != "Point":
            more = {"geometry_type": kind}  # of one or several parts
        elif several:
            more["promote_to_multi"] = True
        options = form.options
        if wanted == "FLATGEOBUF" and (table.geometry.isna() | table.geometry.is_empty).any():
            options = {**options, "SPATIAL_INDEX": "NO"}
        try:
            pyogrio.write_dataframe(
                table, path, layer=name, driver=form.driver, layer_options=options, **more
            )
        except (OSError, pyogrio.errors.DataSourceError) as error:
            raise StoreError(
                f"The features {name} cannot be written to {folder} as {wanted}: {error}.",
                "Check that the folder is writable and has space.",
            ) from error
        written.append((path, form.media_type))
    return written


def _kind(frame: geopandas.GeoDataFrame) -> tuple[str, bool]:
    """The layer's geometry type without Multi, and whether a geometry has several parts.

    A layer without any is one of polygons; one with several kinds is ``Unknown``, GDAL's word for it.
    """
    shapes = frame.geometry.to_numpy()
    found = {shape.geom_type for shape in shapes[~shapely.is_missing(shapes)]}
    kinds = {name.removeprefix("Multi") for name in found} or {"Polygon"}
    if len(kinds) > 1:
        return "Unknown", False
    return kinds.pop(), any(name.startswith("Multi") for name in found)
