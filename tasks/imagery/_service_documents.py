"""The documents through which GDAL reads a service: its WMS driver's XML, and a VRT around it.

Source of both: https://gdal.org/drivers/raster/wms.html and …/vrt.html. There is never a ``Cache`` element,
so that nothing is kept on disk. The VRT says which bands are handed over and what they mean: the WMS driver
takes every fourth band for alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tasks.imagery._service_http import USER_AGENT
from tasks.imagery.grid import Transform

BLOCK_PX = 1024
"""Side of the images that are asked for where the service cuts them on request."""

_GDAL_NAMES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "float32": "Float32",
    "float64": "Float64",
}
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Band:
    """A band that is handed over: which one of the service's (from 1), its meaning, its name."""

    source: int
    interpretation: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that the documents need besides the service's own element.

    Attributes:
        crs: anything that GDAL takes for a reference system.
        transform: north-up.
        width: columns, px.
        height: rows, px.
        block: size of an image that is asked for, (rows, cols).
        dtype: numpy name.
        bands: what is handed over.
        source_bands: number of bands that GDAL makes of an image.
        nodata: value that means no data.
        window: further elements of GDAL's DataWindow.
        options: further elements of GDAL's document.
    """

    crs: str
    transform: Transform
    width: int
    height: int
    block: tuple[int, int]
    dtype: str
    bands: Sequence[Band]
    source_bands: int
    nodata: float | None = None
    window: str = ""
    options: str = ""


RGBA = tuple(Band(number, name) for number, name in enumerate(("Red", "Green", "Blue", "Alpha"), 1))
"""8-bit pictures: GDAL spreads grey and paletted images over them; alpha is 0 where there is no image."""

RGB = RGBA[:3]


def is_known_dtype(dtype: str) -> bool:
    """Whether pixels of this numpy type can be read."""
    return dtype in _GDAL_NAMES


def element(name: str, value: object) -> str:
    """``<name>value</name>``, escaped."""
    return f"<{name}>{escape(str(value))}</{name}>"


def document(service: str, layout: Layout) -> str:
    """The VRT; ``service`` is GDAL's ``<Service>`` element with its minidriver's parameters."""
    wms = _wms_document(service, layout)
    a, _, c, _, e, f = layout.transform
    rows, cols = layout.block
    dtype = _GDAL_NAMES[layout.dtype]
    bands = "".join(
        f'<VRTRasterBand dataType="{dtype}" band="{number}" blockXSize="{cols}" blockYSize="{rows}">'
        f"{element('Description', band.name) if band.name else ''}"
        f"{element('NoDataValue', repr(layout.nodata)) if layout.nodata is not None else ''}"
        f"{element('ColorInterp', band.interpretation)}"
        f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(wms)}</SourceFilename>'
        f"{element('SourceBand', band.source)}"
        f'<SourceProperties RasterXSize="{layout.width}" RasterYSize="{layout.height}" dataType="{dtype}" '
        f'BlockXSize="{cols}" BlockYSize="{rows}"/></SimpleSource></VRTRasterBand>'
        for number, band in enumerate(layout.bands, 1)
    )
    return (
        f'<VRTDataset rasterXSize="{layout.width}" rasterYSize="{layout.height}">'
        f"{element('SRS', layout.crs)}"
        f"<GeoTransform>{c!r},{a!r},0,{f!r},0,{e!r}</GeoTransform>{bands}</VRTDataset>"
    )


def _wms_document(service: str, layout: Layout) -> str:
    a, _, c, _, e, f = layout.transform
    nodata = "" if layout.nodata is None else f'<DataValues NoData="{layout.nodata!r}"/>'
    return (
        f"<GDAL_WMS>{service}<DataWindow>"
        f"{element('UpperLeftX', repr(c))}{element('UpperLeftY', repr(f))}"
        f"{element('LowerRightX', repr(c + a * layout.width))}"
        f"{element('LowerRightY', repr(f + e * layout.height))}"
        f"{element('SizeX', layout.width)}{element('SizeY', layout.height)}{layout.window}</DataWindow>"
        f"{element('Projection', layout.crs)}{element('BandsCount', layout.source_bands)}"
        f"{element('DataType', _GDAL_NAMES[layout.dtype])}"
        f"{element('BlockSizeX', layout.block[1])}{element('BlockSizeY', layout.block[0])}"
        f"{element('Timeout', _TIMEOUT_S)}{element('MaxConnections', 4)}{element('UserAgent', USER_AGENT)}"
        f"{nodata}{layout.options}</GDAL_WMS>"
    )
