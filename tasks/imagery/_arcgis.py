"""ArcGIS image services: ``https://host/arcgis/rest/services/name/ImageServer``.

Read through ``exportImage`` as TIFF, so that pixels keep their type and their bands. Source: ArcGIS REST API,
"Image Service" and "Export Image"; GDAL's AGS minidriver asks.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from tasks.errors import RasterError
from tasks.imagery._service_address import Address
from tasks.imagery._service_documents import BLOCK_PX, Band, Layout, document, element, is_known_dtype
from tasks.imagery._service_http import Sample, fetch_json, fetch_sample

OPTIONS = ()
_OURS = (
    "f", "bbox", "bboxsr", "imagesr", "size", "format", "transparent", "layers", "time",
    "adjustaspectratio", "interpolation",
)  # fmt: skip
_IDENTIFYING = (
    "name", "extent", "pixelSizeX", "pixelSizeY", "bandCount", "bandNames", "pixelType", "noDataValue",
    "noDataValues", "minValues", "maxValues", "editingInfo", "timeInfo", "mosaicOperator",
)  # fmt: skip
_SAMPLE_PX = 8


def describe(address: Address) -> tuple[str, str]:
    """GDAL's document and what identifies the service.

    Raises:
        NotFoundError: there is no such service.
        RasterError: it asks for a token, is no image service, or gives no image.
    """
    endpoint = _endpoint(address.base)
    extra = Address(endpoint + "/exportImage", address.query, {}).without(_OURS)
    access = Address(endpoint, address.query, {})
    facts = fetch_json(access.without(_OURS) + "f=json")
    try:
        extent = facts["extent"]
        cell_x, cell_y = float(facts["pixelSizeX"]), float(facts["pixelSizeY"])
        xmin, ymin, xmax, ymax = (float(extent[side]) for side in ("xmin", "ymin", "xmax", "ymax"))
        cols, rows = max(1, round((xmax - xmin) / cell_x)), max(1, round((ymax - ymin) / cell_y))
        request_crs, crs = _reference(extent.get("spatialReference") or facts["spatialReference"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise RasterError(
            f"{endpoint} does not describe an image service (extent, pixel size and reference system).",
            "Name an ArcGIS image service; of a map service name the tiles: …/MapServer/tile/{z}/{y}/{x}.",
        ) from error
    base = extra + "adjustAspectRatio=false&interpolation=RSP_NearestNeighbor&"
    image_format = address.get("format") or "tiff"
    time = address.get("time") or ""
    sample = _sample(base, image_format, time, request_crs, (xmin, ymax, cell_x, cell_y), (cols, rows))
    layout = Layout(
        crs=crs,
        transform=(cell_x, 0.0, xmin, 0.0, -cell_y, ymax),
        width=cols,
        height=rows,
        block=_block(facts, cols, rows),
        dtype=sample.dtypes[0],
        bands=_bands(facts, sample),
        source_bands=len(sample.dtypes),
        nodata=_nodata(facts, address),
    )
    service = (
        f'<Service name="AGS">{element("ServerUrl", base)}{element("SRS", request_crs)}'
        f"{element('ImageFormat', image_format)}"
        f"{element('TimeRange', time) if time else ''}</Service>"
    )
    known = {name: facts[name] for name in _IDENTIFYING if name in facts}
    return document(service, layout), json.dumps([known, image_format, sample.dtypes], sort_keys=True)


def _endpoint(base: str) -> str:
    end = base.lower().rindex("/imageserver") + len("/imageserver")
    return base[:end]


def _reference(given: dict[str, Any]) -> tuple[str, str]:
    """How requests name the reference system, and how GDAL does."""
    code = given.get("latestWkid") or given.get("wkid")
    if code is None:
        wkt = str(given["wkt"])
        if not re.match(r"[A-Z]{3,20}\[", wkt):
            raise ValueError("no WKT")
        return quote(json.dumps({"wkt": wkt}), safe=""), wkt
    # Esri's own codes lie above EPSG's.
    return str(code), f"{'ESRI' if int(code) > 32767 else 'EPSG'}:{code}"


def _sample(
    base: str,
    image_format: str,
    time: str,
    crs: str,
    grid: tuple[float, float, float, float],
    size: tuple[int, int],
) -> Sample:
    """A few pixels from the middle."""
    left, top, cell_x, cell_y = grid
    cols, rows = min(_SAMPLE_PX, size[0]), min(_SAMPLE_PX, size[1])
    xmin = left + cell_x * ((size[0] - cols) // 2)
    ymax = top - cell_y * ((size[1] - rows) // 2)
    bounds = (xmin, ymax - rows * cell_y, xmin + cols * cell_x, ymax)
    bbox = quote(",".join(f"{number:.8f}" for number in bounds), safe="")
    found = fetch_sample(
        f"{base}f=image&bbox={bbox}&size={cols}%2C{rows}&imageSR={crs}&bboxSR={crs}&format={image_format}"
        f"&time={quote(time, safe='')}"
    )
    if found is None:
        raise RasterError("The image service gave no image.", "Check that it may be exported (exportImage).")
    if len(set(found.dtypes)) != 1 or not is_known_dtype(found.dtypes[0]):
        raise RasterError(
            f"The image service has pixels of type {found.dtypes}.", "Name a service with real numbers."
        )
    if (found.width, found.height) != (cols, rows):
        raise RasterError(
            f"The image service gave {found.width} x {found.height} px where {cols} x {rows} were asked for.",
            "Name a service whose exportImage keeps the size.",
        )
    return found


def _block(facts: dict[str, Any], cols: int, rows: int) -> tuple[int, int]:
    most_rows = int(facts.get("maxImageHeight") or BLOCK_PX)
    most_cols = int(facts.get("maxImageWidth") or BLOCK_PX)
    return (max(1, min(BLOCK_PX, rows, most_rows)), max(1, min(BLOCK_PX, cols, most_cols)))


def _bands(facts: dict[str, Any], sample: Sample) -> list[Band]:
    count = len(sample.dtypes)
    # A writer of TIFF files may call the fourth of four bands alpha; the service knows how many it has.
    alpha = sample.alpha and facts.get("bandCount") != count
    names = facts.get("bandNames")
    given = [str(name) for name in names] if isinstance(names, list) and len(names) == count else [""] * count
    kinds = ["Undefined"] * count
    if count - alpha == 3 and sample.dtypes[0] == "uint8":
        kinds[:3] = ["Red", "Green", "Blue"]
    elif count - alpha == 1:
        kinds[0] = "Gray"
    if alpha:
        kinds[-1] = "Alpha"
    return [Band(n, kind, name) for n, (kind, name) in enumerate(zip(kinds, given, strict=True), 1)]


def _nodata(facts: dict[str, Any], address: Address) -> float | None:
    given: object = address.get("nodata")
    if given is None:
        given = facts.get("noDataValue")
    if given is None:
        values = facts.get("noDataValues")
        given = values[0] if isinstance(values, list) and len(set(map(str, values))) == 1 else None
    if not isinstance(given, str | int | float):
        return None
    try:
        return float(given)
    except ValueError:
        return None
