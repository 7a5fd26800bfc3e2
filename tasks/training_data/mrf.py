"""MRF chips: a description in XML, an index of pages, and a data file of deflated pages.

A chip is one page per band. Written by hand, because GDAL's own writer rounds the georeference, drops its
rotation, and pads every chip to a page of 512 pixels. Format: docs/formats/training-data.md, "Chips".
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

# GDAL's names of the types that the driver holds.
DATA_TYPES = {
    "uint8": "Byte",
    "int16": "Int16",
    "uint16": "UInt16",
    "int32": "Int32",
    "uint32": "UInt32",
    "float32": "Float32",
    "float64": "Float64",
}
EXTENSIONS = (".mrf", ".idx", ".pzp")
# Readers refuse pages that deflating has made more than twice as long, as it does to a few bytes.
_LEAST_PAGE = 4
_LEVEL = 1

_local = threading.local()


def encode_mrf(
    values: npt.NDArray[Any],  # (bands, rows, cols)
    transform: Sequence[float],
    crs_wkt: str | None,
) -> dict[str, bytes]:
    """The three files of an MRF raster, by extension.

    The description can only say where a raster lies that is not turned: of a turned one it holds the
    reference system, and the place is in the world file alone.
    """
    bands, rows, cols = values.shape
    page_rows, page_cols = max(rows, _LEAST_PAGE), max(cols, _LEAST_PAGE)
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    if (page_rows, page_cols) != (rows, cols):
        little = np.pad(little, ((0, 0), (0, page_rows - rows), (0, page_cols - cols)))
    pages = [zlib.compress(np.ascontiguousarray(band).data, _LEVEL) for band in little]
    index, offset = [], 0
    for page in pages:
        index.append(struct.pack(">QQ", offset, len(page)))
        offset += len(page)
    text = f"""<MRF_META>
  <Raster>
    <Size x="{cols}" y="{rows}" c="{bands}" />
    <PageSize x="{page_cols}" y="{page_rows}" c="1" />
    <Compression>DEFLATE</Compression>
    <DataType>{DATA_TYPES[values.dtype.name]}</DataType>
    <NetByteOrder>FALSE</NetByteOrder>
  </Raster>
{_geo_tags(transform, crs_wkt, rows, cols)}</MRF_META>
"""
    return {".mrf": text.encode("utf-8"), ".idx": b"".join(index), ".pzp": b"".join(pages)}


def _geo_tags(transform: Sequence[float], crs_wkt: str | None, rows: int, cols: int) -> str:
    a, b, c, d, e, f = (float(item) for item in transform[:6])
    lines = []
    if b == 0 and d == 0 and a > 0 > e:
        bounds = f'minx="{c!r}" miny="{f + e * rows!r}" maxx="{c + a * cols!r}" maxy="{f!r}"'
        lines.append(f"    <BoundingBox {bounds} />\n")
    if crs_wkt:
        lines.append(f"    <Projection>{escape(_old_wkt(crs_wkt))}</Projection>\n")
    return f"  <GeoTags>\n{''.join(lines)}  </GeoTags>\n" if lines else ""


def _old_wkt(crs_wkt: str) -> str:
    """WKT 1, which every reader of the format knows; parsed once per thread."""
    known: dict[str, str] = _local.__dict__.setdefault("wkt", {})
    if crs_wkt not in known:
        known[crs_wkt] = CRS.from_wkt(crs_wkt).to_wkt(version="WKT1_GDAL")
    return known[crs_wkt]
