"""Where vector labels lie: any vector file that GDAL reads, GeoParquet, on disk or in the store.

A source is read as a stream of batches, so that the memory it takes does not grow with the number of records.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from tasks.errors import LabelError

if TYPE_CHECKING:
    import geopandas
    import pyarrow as pa
    from pyproj import CRS

_LAYER_MARK = "|layername="
_PARQUET = {".parquet", ".geoparquet"}
# Formats of several files: what may lie beside the named one.
_SIDE_FILES = {
    ".shp": {".shx", ".dbf", ".prj", ".cpg", ".qpj", ".shp.xml"},
    ".tab": {".dat", ".map", ".id", ".ind"},
    ".mif": {".mid"},
    ".csv": {".csvt", ".prj"},
    ".gml": {".xsd", ".gfs"},
}
_FOLDER = ".gdb"
# What a zip file is opened for, best first; GDAL finds a geodatabase or Shapefiles by the folder.
_INSIDE_ZIP = (".gpkg", ".shp", ".fgb", ".geojson", ".json", ".kml", ".gml", ".tab", ".mif", ".csv")
# Drivers that follow what a file says to other files, servers or databases.
_REFUSED_DRIVERS = {"OGR_VRT", "GDALG", "GMLAS", "WFS", "OAPIF", "OGCAPI", "EEDA", "CSW", "HTTP", "ADBC"}
# How many records are taken at a time, and about how many bytes of the file: a record may be a polygon with
# a hundred thousand corners.
_BATCH = 4096
_BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Batch:
    """Consecutive records of a source.

    Attributes:
        geometries: (n,) shapely geometries as they are in the file; None where a record has none.
        columns: (n,) values by field name, for the fields that were asked for.
    """

    geometries: npt.NDArray[np.object_]
    columns: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.geometries)


@dataclass(frozen=True)
class VectorSource:
    """An open layer.

    Attributes:
        uri: as it was named.
        fields: names of the attribute fields.
        crs: coordinate reference system; None where the file has none.
    """

    uri: str
    fields: tuple[str, ...]
    crs: CRS | None
    _path: str = field(repr=False)
    _layer: str | None = field(default=None, repr=False)
    _options: dict[str, str] = field(default_factory=dict, repr=False)
    _batch: int = field(default=1, repr=False)

    def batches(self, columns: Sequence[str] = ()) -> Iterator[Batch]:
        """All records in the order of the file, with some of the fields.

        Raises:
            LabelError: the file breaks off or cannot be decoded.
        """
        if self._layer is None:
            yield from _parquet_batches(self, list(columns))
        else:
            yield from _gdal_batches(self, list(columns))


def split_layer(uri: str) -> tuple[str, str | None]:
    """``a.gpkg|layername=trees`` (QGIS's spelling) as URI and layer."""
    if _LAYER_MARK in uri:
        base, layer = uri.split(_LAYER_MARK, 1)
        return base, layer
    return uri, None


def source_files(uri: str) -> list[str]:
    """The URIs of all files that a vector source consists of, itself first (a ``.gdb`` folder: its files).

    Raises:
        NotFoundError: no such object.
    """
    from tasks.store import ObjectStore

    store = ObjectStore()
    base = split_layer(uri)[0].rstrip("/")
    suffix = _suffix(base)
    if suffix == _FOLDER:
        found = sorted(item.uri for item in store.list(base + "/"))
        if found:
            return found
    store.stat(base)
    if suffix not in _SIDE_FILES:
        return [base]
    stem = base[: -len(suffix)]
    wanted = _SIDE_FILES[suffix]
    return [
        base,
        *sorted(item.uri for item in store.list(stem + ".") if item.uri[len(stem) :].lower() in wanted),
    ]


@contextmanager
def open_source(uri: str) -> Iterator[VectorSource]:
    """A vector file or one of its layers, open for reading; objects of the store are copied to disk first.

    Raises:
        NotFoundError: no such object.
        LabelError: unreadable, several layers to choose from, no geometry.
    """
    base, layer = split_layer(uri)
    with _local_copy(base) as path:
        if path.suffix.lower() in _PARQUET:
            yield _open_parquet(uri, path)
        else:
            yield _open_gdal(uri, path, layer)


def read_frame(uri: str) -> geopandas.GeoDataFrame:
    """The features of a file as they are, CRS and fields included; any source that can be opened.

    Raises:
        NotFoundError: no such object.
        LabelError: unreadable, several layers to choose from, no geometry.
    """
    import geopandas
    from pyogrio.errors import DataLayerError, DataSourceError

    with open_source(uri) as source:
        try:
            if source._layer is None:
                return geopandas.read_parquet(source._path)
            frame = geopandas.read_file(
                source._path, layer=source._layer, engine="pyogrio", **source._options
            )
        except (DataSourceError, DataLayerError, ValueError, OSError) as error:
            raise _unreadable(uri, error) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise LabelError(f"{uri} holds a table without geometry.", "Name a file with polygons.")
    return frame


def _suffix(uri: str) -> str:
    name = uri.rsplit("/", 1)[-1]
    return f".{name.rsplit('.', 1)[1].lower()}" if "." in name else ""


def _unreadable(uri: str, error: Exception) -> LabelError:
    return LabelError(
        f"The labels {uri} cannot be read: {error}.",
        "Use a vector file that GDAL reads (GeoPackage, GeoJSON, Shapefile …) or GeoParquet.",
    )


@contextmanager
def _local_copy(uri: str) -> Iterator[Path]:
    """The file on disk for as long as it is read, with its side files."""
    from tasks.store import ObjectStore, is_local
    from tasks.store.uris import local_path

    files = source_files(uri)
    base = uri.rstrip("/")
    if is_local(base):
        yield local_path(base)
        return
    store = ObjectStore()
    # Inside a folder the files keep their places below it; side files lie beside the file.
    root = base.rsplit("/", 1)[0] + "/"
    with tempfile.TemporaryDirectory(prefix="labels-") as folder:
        for item in files:
            target = Path(folder) / item.removeprefix(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            store.download(item, target)
        yield Path(folder) / base.removeprefix(root)


def _open_gdal(uri: str, path: Path, layer: str | None) -> VectorSource:
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    base = split_layer(uri)[0]
    source = _gdal_name(uri, path)
    # Reading must not leave a file beside the source.
    options = {"WRITE_GFS": "NO"} if path.suffix.lower() == ".gml" else {}
    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(source) if kind is not None]
    except DataSourceError as error:
        raise _unreadable(uri, error) from error
    if layer is None and len(layers) > 1:
        raise LabelError(
            f"{uri} holds several layers: {', '.join(layers)}.",
            f"Pick one by writing {base}{_LAYER_MARK}{layers[0]}.",
        )
    if layer is not None and layer not in layers:
        raise LabelError(
            f"{base} has no layer {layer!r}.", f"Use one of: {', '.join(layers) or 'none with geometry'}."
        )
    if not layers:
        raise LabelError(f"{uri} holds no layer with geometry.", "Name a file with polygons.")
    chosen = layer or layers[0]
    try:
        info = pyogrio.read_info(source, layer=chosen, **options)
        crs = CRS.from_user_input(info["crs"]) if info["crs"] else None
    except (DataSourceError, DataLayerError, CRSError) as error:
        raise _unreadable(uri, error) from error
    if info["driver"] in _REFUSED_DRIVERS:
        raise LabelError(
            f"{uri} only refers to data elsewhere ({info['driver']}).", "Name the file with the data itself."
        )
    fields = tuple(str(name) for name in info["fields"])
    return VectorSource(uri, fields, crs, source, chosen, options, _batch_size(path, int(info["features"])))


def _batch_size(path: Path, records: int) -> int:
    """How many records to take at a time; ``records`` is negative where their number is not known."""
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if records <= 0:
        return min(_BATCH, 256)
    return max(1, min(_BATCH, _BATCH_BYTES * records // max(1, size)))


def _gdal_name(uri: str, path: Path) -> str:
    """The path as GDAL takes it; of a zip file the file or folder inside that holds the data."""
    if path.suffix.lower() != ".zip":
        return str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    except (zipfile.BadZipFile, OSError) as error:
        raise _unreadable(uri, error) from error
    for name in names:
        head, found, _ = name.partition(".gdb/")
        if found:
            return f"/vsizip/{{{path}}}/{head}.gdb"
    for suffix in _INSIDE_ZIP:
        fitting = sorted(name for name in names if name.lower().endswith(suffix))
        if not fitting:
            continue
        folders = {name.rpartition("/")[0] for name in fitting}
        if suffix == ".shp" and len(fitting) > 1 and len(folders) == 1:
            # Shapefiles side by side are the layers of their folder.
            return f"/vsizip/{{{path}}}/{folders.pop()}".rstrip("/")
        if len(fitting) > 1:
            raise LabelError(f"{uri} holds several files: {', '.join(fitting)}.", "Name a zip file with one.")
        return f"/vsizip/{{{path}}}/{fitting[0]}"
    raise LabelError(f"{uri} holds no vector file.", "Zip a Shapefile, GeoPackage or file geodatabase.")


def _gdal_batches(source: VectorSource, columns: list[str]) -> Iterator[Batch]:
    from pyarrow import ArrowException
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
    from pyogrio.raw import open_arrow

    try:
        with open_arrow(
            source._path,
            layer=source._layer,
            columns=columns,
            batch_size=source._batch,
            use_pyarrow=True,
            **source._options,
        ) as (meta, reader):
            name = meta["geometry_name"] or "wkb_geometry"
            start = 0
            for batch in reader:
                found = {column: _values(_codes(batch.column(column))) for column in columns}
                try:
                    shapes = _geometries(batch.column(name).to_numpy(zero_copy_only=False))
                except NotImplementedError:
                    # Curves, which GEOS does not take and GDAL's other interface breaks into short lines.
                    shapes = _straightened(source, start, len(batch))
                yield Batch(shapes, found)
                start += len(batch)
    except (DataSourceError, DataLayerError, FeatureError, ArrowException) as error:
        raise _unreadable(source.uri, error) from error


def _open_parquet(uri: str, path: Path) -> VectorSource:
    import pyarrow as pa
    import pyarrow.parquet
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        schema, rows = pa.parquet.read_schema(path), pa.parquet.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(uri, error) from error
    if b"geo" not in (schema.metadata or {}):
        raise LabelError(f"{uri} holds a table without geometry.", "Name a GeoParquet file with polygons.")
    try:
        geo = json.loads(schema.metadata[b"geo"])
        column = geo["columns"][geo["primary_column"]]
        # Without a word on it GeoParquet means longitude and latitude; null means unknown.
        given = column.get("crs", "OGC:CRS84")
        crs = CRS.from_user_input(given) if given else None
    except (KeyError, ValueError, TypeError, CRSError) as error:
        raise _unreadable(uri, error) from error
    geometry_columns = set(geo["columns"])
    fields = tuple(name for name in schema.names if name not in geometry_columns)
    return VectorSource(uri, fields, crs, str(path), _batch=_batch_size(path, rows))


def _parquet_batches(source: VectorSource, columns: list[str]) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pa.parquet.ParquetFile(source._path) as file:
            metadata = file.schema_arrow.metadata
            geo = json.loads(metadata[b"geo"])
            name = geo["primary_column"]
            plain = geo["columns"][name].get("encoding", "WKB").upper() == "WKB"
            for batch in file.iter_batches(batch_size=source._batch, columns=[*columns, name]):
                found = {column: _values(batch.column(column)) for column in columns}
                if plain:
                    shapes = _geometries(batch.column(name).to_numpy(zero_copy_only=False))
                else:
                    shapes = _native(batch, metadata, name)
                yield Batch(shapes, found)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source.uri, error) from error


def _native(batch: pa.RecordBatch, metadata: dict[bytes, bytes], name: str) -> npt.NDArray[np.object_]:
    """Geometries in one of GeoArrow's own encodings, which geopandas decodes."""
    import geopandas
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.Table.from_batches([batch]).select([name]).replace_schema_metadata({b"geo": metadata[b"geo"]})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink)
    frame = geopandas.read_parquet(pa.BufferReader(sink.getvalue()))
    return np.asarray(frame.geometry.array, dtype=object)


def _straightened(source: VectorSource, start: int, count: int) -> npt.NDArray[np.object_]:
    from pyogrio.raw import read

    _, _, wkb, _ = read(
        source._path,
        layer=source._layer,
        columns=[],
        skip_features=start,
        max_features=count,
        **source._options,
    )
    return _geometries(wkb)


def _geometries(wkb: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    # What GEOS has no type for (a surface, say) comes back as None: a record without geometry.
    with np.errstate(invalid="ignore"):  # NaN coordinates
        return np.asarray(shapely.from_wkb(wkb, on_invalid="ignore"), dtype=object).reshape(len(wkb))


def _codes(column: pa.Array) -> pa.Array:
    """GDAL hands a field with a coded domain over as codes with the domain's texts; the codes are meant."""
    import pyarrow as pa

    return column.indices if isinstance(column, pa.DictionaryArray) else column


def _values(column: pa.Array) -> npt.NDArray[Any]:
    import pyarrow as pa

    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    values: npt.NDArray[Any] = column.to_pandas().to_numpy()
    return values
