"""Layers that keep the fields of their input: any kind of geometry, as GeoParquet and as GeoPackage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas
import pandas as pd
import pyogrio

from tasks.errors import BadInputError, StoreError


@dataclass(frozen=True, slots=True)
class TableFiles:
    """What was written: the same layer in two formats."""

    geoparquet: Path
    geopackage: Path


def field_named(columns: list[str], name: str) -> str | None:
    """The column of that name, whatever its case; None where there is none."""
    return next((column for column in columns if column.lower() == name.lower()), None)


def write_table(folder: Path, name: str, frame: geopandas.GeoDataFrame | pd.DataFrame) -> TableFiles:
    """Write ``<name>.parquet`` and ``<name>.gpkg``; equal tables give equal bytes. Rows keep their order.

    Raises:
        BadInputError: a field whose values neither format takes.
        StoreError: the files cannot be written.
    """
    parquet, package = folder / f"{name}.parquet", folder / f"{name}.gpkg"
    try:
        if isinstance(frame, geopandas.GeoDataFrame):
            frame.to_parquet(
                parquet, index=False, compression="zstd", schema_version="1.1.0", write_covering_bbox=True
            )
        else:
            frame.to_parquet(parquet, index=False, compression="zstd")
        package.unlink(missing_ok=True)
        _write_package(package, name, frame)
    except (TypeError, ValueError, pyogrio.errors.FieldError) as error:
        raise BadInputError(
            f"The layer {name} has a field that cannot be written: {error}.",
            "Leave out fields with lists or mixed kinds of values.",
        ) from error
    except (OSError, pyogrio.errors.DataSourceError) as error:
        raise StoreError(
            f"The features {name} cannot be written to {folder}: {error}.",
            "Check that the folder is writable and has space.",
        ) from error
    return TableFiles(parquet, package)


def _write_package(path: Path, layer: str, frame: geopandas.GeoDataFrame | pd.DataFrame) -> None:
    names = [str(column) for column in frame.columns]
    # A key of the input's stays a field of its own.
    key = next(name for name in ("OBJECTID", "FID", "chipline_fid") if field_named(names, name) is None)
    shape = next(name for name in ("shape", "geom", "chipline_shape") if field_named(names, name) is None)
    options: dict[str, str] = {"FID": key}
    if isinstance(frame, geopandas.GeoDataFrame):
        options["GEOMETRY_NAME"] = shape
    # GDAL would put the present time into the file, and no two files would ever be equal.
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z"})
    try:
        pyogrio.write_dataframe(frame, path, layer=layer, driver="GPKG", layer_options=options)
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
