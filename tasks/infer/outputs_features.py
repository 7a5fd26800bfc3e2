"""A feature result: one layer of objects as GeoParquet and as GeoPackage, always with the same schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray

from tasks.errors import StoreError
from tasks.imagery import Bounds
from tasks.infer.outputs_formats import write_formats
from tasks.infer.parameters_outputs import FurtherFormat
from tasks.infer.polygons import canonical_order, normalised

FieldType = Literal["text", "integer", "real"]

_PANDAS_TYPES: dict[FieldType, str] = {"text": "string", "integer": "Int64", "real": "float64"}
OWN_FIELDS: dict[str, FieldType] = {
    "Class": "text",
    "Classvalue": "integer",
    "Confidence": "real",
    "source_raster": "text",
    "source_date": "text",
    "area_m2": "real",
    "package": "text",
    "run": "text",
}


@dataclass(frozen=True)
class Features:
    """Objects in map coordinates; all columns have one row per object.

    Attributes:
        geometry: polygons or multipolygons.
        class_name: name of the class, as the function gave it.
        class_value: value of the class; None where the function's name is no class of the package.
        confidence: raw, on the function's own scale.
        source_raster: URI of the raster that the object lies on; None where it is not known.
        extra: further columns of the inference function, by field name; None for no value.
        extra_types: type of each further column.
        source_date: when that raster was taken, ISO 8601; empty where nothing is known of any.
        package: name and digest of what found them, the same for all.
        run: key of the run.
    """

    geometry: NDArray[np.object_]
    class_name: Sequence[str]
    class_value: Sequence[int | None]
    confidence: NDArray[np.float64]
    source_raster: Sequence[str | None]
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    extra_types: Mapping[str, FieldType] = field(default_factory=dict)
    source_date: Sequence[str | None] = ()
    package: str = ""
    run: str = ""


@dataclass(frozen=True, slots=True)
class FeatureFiles:
    """What was written.

    Attributes:
        geoparquet: the layer as GeoParquet 1.1.
        geopackage: the same layer as GeoPackage.
        count: number of features.
        counts: features per class name.
        bounds: (xmin, ymin, xmax, ymax); None without features.
        fields: the layer's fields and their types, without the geometry.
        further: paths and media types of the further formats.
    """

    geoparquet: Path
    geopackage: Path
    count: int
    counts: dict[str, int]
    bounds: Bounds | None
    fields: dict[str, FieldType]
    further: tuple[tuple[Path, str], ...] = ()


def write_features(
    folder: Path,
    name: str,
    crs_wkt: str | None,
    features: Features,
    formats: Sequence[FurtherFormat] = (),
) -> FeatureFiles:
    """Write ``<name>.parquet`` and ``<name>.gpkg`` into ``folder``; equal features give equal bytes.

    Geometries are normalised and rows sorted from north to south, so that the files do not depend on the
    order in which the objects were found. ``area_m2`` is measured in an equal-area projection around the
    layer, whatever its CRS; it is empty in pixel space.

    Raises:
        StoreError: the files cannot be written.
    """
    frame, fields = as_frame(crs_wkt, features)
    parquet, package = folder / f"{name}.parquet", folder / f"{name}.gpkg"
    try:
        frame.to_parquet(
            parquet, index=False, compression="zstd", schema_version="1.1.0", write_covering_bbox=True
        )
        package.unlink(missing_ok=True)
        _write_package(package, name, frame)
        further = write_formats(folder, name, frame, formats)
    except (OSError, pyogrio.errors.DataSourceError) as error:
        raise StoreError(
            f"The features {name} cannot be written to {folder}: {error}.",
            "Check that the folder is writable and has space.",
        ) from error
    xmin, ymin, xmax, ymax = frame.total_bounds.tolist()
    counts = frame["Class"].value_counts().sort_index()
    return FeatureFiles(
        parquet,
        package,
        len(frame),
        {str(kind): int(count) for kind, count in counts.items()},
        (xmin, ymin, xmax, ymax) if len(frame) else None,
        fields,
        tuple(further),
    )


def as_frame(crs_wkt: str | None, features: Features) -> tuple[geopandas.GeoDataFrame, dict[str, FieldType]]:
    """The layer as a table in its canonical order, and its fields; also without any feature."""
    geometry = normalised(features.geometry) if len(features.geometry) else np.empty(0, dtype=object)
    own = {name.lower() for name in OWN_FIELDS}
    extra_types = {name: kind for name, kind in features.extra_types.items() if name.lower() not in own}
    fields = {**OWN_FIELDS, **extra_types}
    values: dict[str, Any] = {
        "Class": features.class_name,
        "Classvalue": features.class_value,
        "Confidence": features.confidence,
        "source_raster": features.source_raster,
        "source_date": features.source_date or [None] * len(geometry),
        "area_m2": areas_m2(geometry, crs_wkt),
        "package": [features.package] * len(geometry),
        "run": [features.run] * len(geometry),
        **{name: features.extra[name] for name in extra_types},
    }
    columns = {
        name: pd.Series(list(values[name]), dtype=_PANDAS_TYPES[kind]) for name, kind in fields.items()
    }
    frame = geopandas.GeoDataFrame(columns, geometry=geometry, crs=crs_wkt)
    order = canonical_order(geometry, list(features.class_name), features.confidence)
    return frame.iloc[order].reset_index(drop=True), fields


def areas_m2(geometry: NDArray[np.object_], crs_wkt: str | None) -> list[float | None]:
    """Areas on the ellipsoid in square metres, whatever the CRS; None each in pixel space."""
    if crs_wkt is None:
        return [None] * len(geometry)
    if len(geometry) == 0:
        return []
    source = pyproj.CRS.from_wkt(crs_wkt)
    xmin, ymin, xmax, ymax = shapely.total_bounds(geometry)
    to_degrees = pyproj.Transformer.from_crs(source, "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform((xmin + xmax) / 2, (ymin + ymax) / 2)
    # Lambert's azimuthal projection keeps areas everywhere and shapes near its centre.
    around = f"+proj=laea +lon_0={longitude:.4f} +lat_0={latitude:.4f} +datum=WGS84 +units=m"
    project = pyproj.Transformer.from_crs(source, around, always_xy=True)
    flat = shapely.transform(
        geometry, lambda points: np.column_stack(project.transform(points[:, 0], points[:, 1]))
    )
    return [round(float(area), 6) for area in shapely.area(flat)]


def _write_package(path: Path, layer: str, frame: geopandas.GeoDataFrame) -> None:
    kinds = set(shapely.get_type_id(frame.geometry.to_numpy()).tolist())
    several = shapely.GeometryType.MULTIPOLYGON in kinds
    # GDAL would put the present time into the file, and no two files would ever be equal.
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"})
    try:
        pyogrio.write_dataframe(
            frame,
            path,
            layer=layer,
            driver="GPKG",
            geometry_type="MultiPolygon" if several else "Polygon",
            promote_to_multi=several,
            layer_options={"FID": "OBJECTID", "GEOMETRY_NAME": "shape"},
        )
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
