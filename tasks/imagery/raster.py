"""One raster: what it is, and how it is opened. The only place that opens imagery."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from pydantic import BaseModel, ConfigDict, field_serializer, field_validator
from rasterio._path import _UnparsedPath
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from tasks.errors import BadInputError, NotFoundError, RasterError
from tasks.imagery.grid import Bounds, Transform
from tasks.imagery.identity import identity_of_files, unsigned
from tasks.imagery.services import READ_OPTIONS as SERVICE_OPTIONS
from tasks.imagery.services import Service, kind_of_service, service_at
from tasks.imagery.virtual import looks_virtual, sources_of_virtual_raster
from tasks.settings import settings
from tasks.store import ObjectStore, gdal_options, gdal_path, is_local

CACHE_BYTES = 256 * 2**20
"""Of decoded blocks. GDAL would take a twentieth of the machine's memory, in each of its processes; this
holds a row of tiles of the widest rasters."""

_READ_OPTIONS: dict[str, str | bool] = {
    # A cut-off JPEG is half grey otherwise, with no more than a warning.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,
    # GDAL's fast way with whole PNG files gives what memory held before where a file was cut off.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    # GDAL's cache of remote files ends with the handle: an object may have been replaced since, and its
    # identity is asked for anew, too.
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/",
    # A VRT may carry Python; nobody's file runs code here.
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}


class RasterInfo(BaseModel):
    """What is known of a raster without reading its pixels; JSON-able.

    Attributes:
        uri: where it lies.
        width: columns, px.
        height: rows, px.
        band_count: number of bands, an alpha band included.
        dtype: numpy name of the smallest type that holds every band.
        nodata: value of the first band that means "no data"; NaN is possible.
        crs_wkt: coordinate reference system; None where the raster has none.
        transform: (a, b, c, d, e, f) of ``affine.Affine``. A raster without any georeference gets pixel
            space: x = column, y = -row.
        block_shape: internal tiling, (rows, cols).
        band_names: the file's own, otherwise ``Band_1`` and so on.
        colorinterp: colour interpretation per band, for example ``red``.
        identity: changes when the raster's content may have changed.
        acquired: when it was taken, ISO 8601, where the document that lists it says so.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    width: int
    height: int
    band_count: int
    dtype: str
    nodata: float | None
    crs_wkt: str | None
    transform: Transform
    block_shape: tuple[int, int]
    band_names: tuple[str, ...]
    colorinterp: tuple[str, ...]
    identity: str
    acquired: str | None = None

    @field_validator("nodata", mode="before")
    @classmethod
    def _nodata_from_json(cls, value: object) -> object:
        # math.nan is one object, so that two infos with NaN as nodata compare equal.
        return math.nan if value == "nan" or (isinstance(value, float) and math.isnan(value)) else value

    @field_serializer("nodata")
    def _nodata_to_json(self, value: float | None) -> float | str | None:
        return str(value) if value is not None and not math.isfinite(value) else value

    @property
    def address(self) -> str:
        """Where it lies, without signatures and credentials: for messages and records."""
        return unsigned(self.uri)

    @property
    def bounds(self) -> Bounds:
        """(xmin, ymin, xmax, ymax) of the footprint in map units, also for a rotated raster."""
        a, b, c, d, e, f = self.transform
        corners = [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)]
        xs = [a * col + b * row + c for col, row in corners]
        ys = [d * col + e * row + f for col, row in corners]
        return (min(xs), min(ys), max(xs), max(ys))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; inverse of :meth:`from_dict`."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RasterInfo:
        """The info that :meth:`to_dict` described."""
        return cls.model_validate(dict(values))


def raster_environment(uri: str, cache_bytes: int = CACHE_BYTES) -> rasterio.Env:
    """The GDAL environment in which the raster at ``uri`` is opened and read, for a ``with`` statement.

    Args:
        uri: of the raster.
        cache_bytes: what GDAL's cache of decoded blocks may hold; there is one for the whole process.
    """
    service = SERVICE_OPTIONS if kind_of_service(uri) else {}
    options = {**gdal_options(uri), **_READ_OPTIONS, **service}
    return rasterio.Env(**options, GDAL_CACHEMAX=cache_bytes)


def open_raster(uri: str) -> DatasetReader:
    """The opened raster; call it, and read, inside :func:`raster_environment`.

    Raises:
        NotFoundError: there is nothing at ``uri``.
        RasterError: it cannot be opened with one of the allowed drivers.
    """
    service = service_at(uri)
    if service is not None:
        return _open_service(service)
    try:
        # rasterio.open would take one driver only, and read '#', '?' and '!' in a file's name as syntax.
        return DatasetReader(_UnparsedPath(_path_for_gdal(uri)), driver=_drivers(uri))
    except RasterioError as error:
        raise _cannot_open(uri, error) from error


def inspect_raster(uri: str) -> RasterInfo:
    """What the raster at ``uri`` is: an ``s3://`` or ``http(s)://`` URI, a local path or an image service.

    Raises:
        NotFoundError: there is nothing at ``uri``.
        RasterError: it is no raster that one of the allowed GDAL drivers opens, or it is damaged.
        BadInputError: it is a VRT whose sources may not be read, or a service whose address says too little.
    """
    service = service_at(uri, fresh=True)
    if service is not None:
        with raster_environment(uri), _open_service(service) as dataset:
            return _info(uri, dataset, service.identity)
    store = ObjectStore()
    _path_for_gdal(uri)
    # Before GDAL sees the file: opening a VRT may already open its sources.
    sources = _sources(uri, store)
    with raster_environment(uri), open_raster(uri) as dataset:
        _check_pixels(uri, dataset)
        files = [*_files_of(uri, dataset, store), *_files_of_sources(sources, store)]
        return _info(uri, dataset, identity_of_files(files, store))


def _open_service(service: Service) -> DatasetReader:
    try:
        return DatasetReader(_UnparsedPath(service.document), driver=[service.driver])
    except RasterioError:
        # GDAL's own text repeats the document, credentials and all, so it does not travel as the cause.
        raise RasterError(
            f"{service.address} cannot be opened as an image service of kind {service.kind}.",
            "Check its address and parameters.",
        ) from None


def _check_pixels(uri: str, dataset: DatasetReader) -> None:
    if dataset.count == 0:
        raise RasterError(
            f"{unsigned(uri)} holds no band of its own.",
            "Name one of its sub-datasets, copied into a GeoTIFF, instead.",
        )
    dtype = np.result_type(*(np.dtype(name) for name in dataset.dtypes))
    if dtype.kind == "c":
        raise RasterError(
            f"{unsigned(uri)} has complex pixels ({dtype}).", "Give a raster with real numbers instead."
        )


def _info(uri: str, dataset: DatasetReader, identity: str) -> RasterInfo:
    a, b, c, d, e, f = tuple(dataset.transform)[:6]
    if dataset.crs is None and (a, b, c, d, e, f) == (1, 0, 0, 0, 1, 0):
        e = -1.0  # GDAL's "no georeference"; pixel space is north-up like everything else
    return RasterInfo(
        uri=uri,
        width=dataset.width,
        height=dataset.height,
        band_count=dataset.count,
        dtype=str(np.result_type(*(np.dtype(name) for name in dataset.dtypes))),
        nodata=dataset.nodata,
        crs_wkt=dataset.crs.to_wkt() if dataset.crs else None,
        transform=(a, b, c, d, e, f),
        block_shape=dataset.block_shapes[0],
        band_names=tuple(
            text or f"Band_{number}" for number, text in enumerate(dataset.descriptions, start=1)
        ),
        colorinterp=tuple(interpretation.name for interpretation in dataset.colorinterp),
        identity=identity,
    )


def _drivers(uri: str) -> list[str]:
    # What a VRT behind HTTP reads cannot be checked beforehand; services are opened through their own room.
    left_out = ("VRT", "WMS") if uri.startswith("http") else ("WMS",)
    return [name for name in settings().gdal_drivers if name not in left_out]


def _path_for_gdal(uri: str) -> str:
    if not is_local(uri):
        return gdal_path(uri)
    uri = uri.removeprefix("file://")
    # GDAL reads many texts as datasets (sub-datasets, inline XML, /vsi… chains); only real files pass.
    if uri.startswith("/vsi") or not Path(uri).is_file():
        raise NotFoundError(
            f"There is no raster at {uri}.",
            "Check the path; a folder of rasters is given with a slash at its end.",
        )
    return os.path.abspath(uri)  # noqa: PTH100 (Path.resolve would follow links away from side-car files)


def _uri_of(gdal_name: str) -> str:
    if gdal_name.startswith("/vsis3/"):
        return "s3://" + gdal_name.removeprefix("/vsis3/")
    return gdal_name.removeprefix("/vsicurl/")


def _sources(uri: str, store: ObjectStore) -> list[str]:
    try:
        return sources_of_virtual_raster(uri, store) if looks_virtual(uri, store) else []
    except NotFoundError as error:
        raise NotFoundError(
            f"There is no raster at {uri}, or a source of it is missing: {error.problem}",
            "Check the address.",
        ) from error


def _files_of(uri: str, dataset: DatasetReader, store: ObjectStore) -> list[str]:
    """The raster and its side-cars."""
    if dataset.driver == "VRT":
        # GDAL would list the sources of the first level only; they are inventoried on their own.
        beside = [uri + ending for ending in (".msk", ".aux.xml")]
        return [uri, *(name for name in beside if store.exists(name))]
    return [uri, *(_uri_of(name) for name in dataset.files)]


def _files_of_sources(sources: list[str], store: ObjectStore) -> list[str]:
    """All files of a VRT's sources; each is opened once, so that only allowed drivers ever see one."""
    files: list[str] = []
    for source in sources:
        with raster_environment(source), open_raster(source) as dataset:
            files += _files_of(source, dataset, store)
    return files


def _cannot_open(uri: str, error: RasterioError) -> RasterError | NotFoundError | BadInputError:
    if uri.startswith("s3://") and not ObjectStore().exists(uri):
        return NotFoundError(f"There is no raster at {uri}.", "Check the bucket and the key.")
    return RasterError(
        f"{unsigned(uri)} cannot be opened as a raster: {error}.",
        f"Give a raster that one of these GDAL drivers reads: {', '.join(_drivers(uri))}; "
        "a file that was copied only in part must be copied again.",
    )
