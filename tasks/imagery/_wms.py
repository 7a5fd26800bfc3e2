"""OGC Web Map Services, by an address that has ``service=WMS`` or a GetMap or GetCapabilities request in it.

Source: OGC 01-068r3 (WMS 1.1.1) and OGC 06-042 (WMS 1.3.0).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote
from xml.etree import ElementTree

import rasterio.errors
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from tasks.errors import BadInputError, RasterError
from tasks.imagery._service_address import Address, four_numbers, positive
from tasks.imagery._service_documents import (
    BLOCK_PX,
    RGB,
    RGBA,
    Band,
    Layout,
    document,
    element,
    is_known_dtype,
)
from tasks.imagery._service_http import Sample, fetch_document, fetch_sample
from tasks.imagery.grid import Bounds, Transform

OPTIONS = ("cell_size",)
_OURS = (
    "service", "request", "version", "layers", "styles", "crs", "srs", "bbox", "width", "height", "format",
    "transparent",
)  # fmt: skip
_SAMPLE_PX = 16
_MAX_SIDE_PX = 2**31 - 1


@dataclass
class _Layer:
    """What the capabilities say of a layer, and what it has from those above it."""

    title: str
    crs: list[str] = field(default_factory=list)
    bounds: dict[str, str] = field(default_factory=dict)
    world: Bounds | None = None


def describe(address: Address) -> tuple[str, str]:
    """GDAL's document and what identifies the map.

    Raises:
        BadInputError: the address says too little.
        NotFoundError, RasterError: the service is not there, refuses, or gives no image.
    """
    version = address.get("version") or ("1.3.0" if address.get("crs") else "1.1.1")
    layers = address.get("layers")
    crs = address.get("crs") or address.get("srs")
    box = address.get("bbox")
    root = None
    if not layers or not crs or not box:
        root = _capabilities(address, version)
        version = root.get("version") or version
    known = {} if root is None else dict(_layers(root))
    if not layers:
        raise BadInputError(
            f"The address of the WMS at {address.base} names no layer.",
            f"Add layers=… with one of: {', '.join(known)}.",
        )
    layer = _found(known, layers.split(",")[0], address) if root is not None else _Layer("")
    crs = crs or _first_crs(layer)
    _check_crs(crs)
    flipped = version.startswith("1.3") and _is_flipped(crs)
    bounds = _bounds(box, crs, flipped=flipped) if box else _layer_bounds(layer, crs, flipped=flipped)
    cols, rows, transform = _grid(address, bounds)
    image_format = address.get("format") or "image/png"
    opaque = (address.get("transparent") or "true").lower() != "true" or "jp" in image_format.lower()
    transparent = "FALSE" if opaque else "TRUE"
    base = address.without(_OURS)
    styles = address.get("styles") or ""
    reference = "crs" if version.startswith("1.3") else "srs"
    # GDAL writes layers and styles into the address as they are.
    names = f"layers={quote(layers, safe=',')}&styles={quote(styles, safe=',')}"
    sample = _sample(
        f"{base}service=WMS&request=GetMap&version={version}&{names}&{reference}={crs}"
        f"&format={quote(image_format, safe='/')}&transparent={transparent}",
        transform,
        (cols, rows),
        flipped=flipped,
    )
    picture = set(sample.dtypes) == {"uint8"} and sample.driver != "GTiff"
    bands = (RGB if opaque else RGBA) if picture else _bands(sample)
    layout = Layout(
        crs=crs,
        transform=transform,
        width=cols,
        height=rows,
        block=(min(BLOCK_PX, rows), min(BLOCK_PX, cols)),
        dtype=sample.dtypes[0],
        bands=bands,
        source_bands=len(bands),
    )
    service = (
        f'<Service name="WMS">{element("Version", version)}{element("ServerUrl", base)}'
        f"{element('Layers', quote(layers, safe=','))}{element('Styles', quote(styles, safe=','))}"
        f"{element(reference.upper(), crs)}{element('ImageFormat', quote(image_format, safe='/'))}"
        f"{element('Transparent', transparent)}"
        f"{element('BBoxOrder', 'yxYX' if flipped else 'xyXY')}</Service>"
    )
    facts = (version, layers, styles, crs, transform, cols, rows, image_format, transparent, sample.dtypes)
    return document(service, layout), repr(facts)


def _capabilities(address: Address, version: str) -> ElementTree.Element:
    data = fetch_document(f"{address.without(_OURS)}service=WMS&request=GetCapabilities&version={version}")
    wrong = RasterError(
        f"{address.base} does not answer GetCapabilities as a WMS does.",
        "Check the address; services of other kinds (WMTS, WFS) are not read. Tiles are named by a template "
        "https://…/{z}/{x}/{y}.png#zoom=….",
    )
    if b"<!ENTITY" in data:
        raise wrong
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise wrong from error
    if _tag(root) not in ("WMS_Capabilities", "WMT_MS_Capabilities"):
        raise wrong
    return root


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]


def _child_text(node: ElementTree.Element, name: str) -> str:
    return next(((child.text or "").strip() for child in node if _tag(child) == name), "")


def _layers(root: ElementTree.Element) -> Iterator[tuple[str, _Layer]]:
    """Every layer that has a name, with what it inherits."""
    top = (node for part in root if _tag(part) == "Capability" for node in part if _tag(node) == "Layer")
    waiting = [(node, _Layer("")) for node in top]
    while waiting:
        node, above = waiting.pop(0)
        own = _Layer(_child_text(node, "Title"), [], dict(above.bounds), above.world)
        for child in node:
            kind = _tag(child)
            if kind in ("CRS", "SRS"):
                own.crs += (child.text or "").split()
            elif kind == "BoundingBox":
                name = child.get("CRS") or child.get("SRS") or ""
                own.bounds[name] = ",".join(child.get(side, "") for side in ("minx", "miny", "maxx", "maxy"))
            elif kind == "EX_GeographicBoundingBox":
                sides = (
                    "westBoundLongitude",
                    "southBoundLatitude",
                    "eastBoundLongitude",
                    "northBoundLatitude",
                )
                own.world = _world(",".join(_child_text(child, side) for side in sides))
            elif kind == "LatLonBoundingBox":
                sides = ("minx", "miny", "maxx", "maxy")
                own.world = _world(",".join(child.get(side, "") for side in sides))
        own.crs += [name for name in above.crs if name not in own.crs]
        if name := _child_text(node, "Name"):
            yield name, own
        waiting += [(child, own) for child in node if _tag(child) == "Layer"]


def _world(text: str) -> Bounds | None:
    try:
        return four_numbers(text, "A bounding box")
    except BadInputError:
        return None  # a layer without content; the address may say it


def _found(known: dict[str, _Layer], name: str, address: Address) -> _Layer:
    if name not in known:
        raise BadInputError(
            f"The WMS at {address.base} has no layer {name!r}.", f"It has: {', '.join(known)}."
        )
    return known[name]


def _first_crs(layer: _Layer) -> str:
    named = [name for name in layer.bounds if name in layer.crs] or layer.crs
    if not named:
        raise BadInputError(
            "The WMS tells no reference system of the layer.", "Add crs=EPSG:… to the address."
        )
    return named[0]


def _check_crs(crs: str) -> None:
    # GDAL would take other texts for files or addresses that hold a definition.
    if not re.fullmatch(r"[A-Za-z]{2,10}:[A-Za-z0-9:._-]{1,40}", crs):
        raise BadInputError(
            f"The WMS's reference system {crs!r} is not known.", "Add crs=EPSG:… to the address."
        )
    _parsed(crs)


def _parsed(crs: str) -> CRS:
    try:
        return CRS.from_user_input("EPSG:4326" if crs == "CRS:84" else crs)
    except (rasterio.errors.CRSError, ValueError) as error:
        raise BadInputError(
            f"The WMS's reference system {crs!r} is not known.", "Add crs=EPSG:… to the address."
        ) from error


def _is_flipped(crs: str) -> bool:
    """Whether the authority puts north before east, as WMS 1.3.0 then does."""
    import pyproj

    if crs.upper().startswith("CRS:"):
        return False
    return str(pyproj.CRS.from_user_input(crs).axis_info[0].direction).lower() in ("north", "south")


def _bounds(text: str, crs: str, *, flipped: bool) -> Bounds:
    first, second, third, fourth = four_numbers(text, f"The WMS's bbox in {crs}")
    return (second, first, fourth, third) if flipped else (first, second, third, fourth)


def _layer_bounds(layer: _Layer, crs: str, *, flipped: bool) -> Bounds:
    if crs in layer.bounds:
        return _bounds(layer.bounds[crs], crs, flipped=flipped)
    if layer.world is None:
        raise BadInputError("The WMS tells no extent of the layer.", "Add bbox=… to the address.")
    xmin, ymin, xmax, ymax = transform_bounds("EPSG:4326", _parsed(crs), *layer.world)
    return (xmin, ymin, xmax, ymax)


def _grid(address: Address, bounds: Bounds) -> tuple[int, int, Transform]:
    """(cols, rows, transform); with a cell size, the map grows to whole cells to the right and below."""
    xmin, ymin, xmax, ymax = bounds
    given = address.options.get("cell_size")
    if given is not None:
        cell_x = cell_y = positive(given, "cell_size behind '#'")
        cols, rows = (math.ceil(side / cell_x - 1e-6) for side in (xmax - xmin, ymax - ymin))
    elif address.get("width") and address.get("height"):
        cols = round(positive(address.get("width") or "", "The WMS's width"))
        rows = round(positive(address.get("height") or "", "The WMS's height"))
        cell_x, cell_y = (xmax - xmin) / max(1, cols), (ymax - ymin) / max(1, rows)
    else:
        raise BadInputError(
            f"The address of the WMS at {address.base} says nothing of a resolution.",
            "A WMS has no cell size of its own: append #cell_size=… in units of its reference system, "
            "or give bbox, width and height.",
        )
    if not (1 <= cols <= _MAX_SIDE_PX and 1 <= rows <= _MAX_SIDE_PX):
        raise BadInputError(f"The map would measure {cols} x {rows} px.", "Give another cell size or bbox.")
    return cols, rows, (cell_x, 0.0, xmin, 0.0, -cell_y, ymax)


def _sample(request: str, transform: Transform, size: tuple[int, int], *, flipped: bool) -> Sample:
    """A few pixels from the middle."""
    cell_x, _, left, _, step_y, top = transform
    cols, rows = min(_SAMPLE_PX, size[0]), min(_SAMPLE_PX, size[1])
    xmin = left + cell_x * ((size[0] - cols) // 2)
    ymax = top + step_y * ((size[1] - rows) // 2)
    box = (xmin, ymax + rows * step_y, xmin + cols * cell_x, ymax)
    if flipped:
        box = (box[1], box[0], box[3], box[2])
    text = ",".join(f"{number:.8f}" for number in box)
    found = fetch_sample(f"{request}&width={cols}&height={rows}&bbox={text}")
    if found is None or (found.width, found.height) != (cols, rows):
        raise RasterError(
            "The WMS gave no image of the size that was asked for.", "Check the layer and the bbox."
        )
    if len(set(found.dtypes)) != 1 or not is_known_dtype(found.dtypes[0]):
        raise RasterError(f"The WMS has pixels of type {found.dtypes}.", "Ask for image/png or image/tiff.")
    return found


def _bands(sample: Sample) -> tuple[Band, ...]:
    count = len(sample.dtypes)
    kinds = ["Gray"] if count - sample.alpha == 1 else ["Undefined"] * (count - sample.alpha)
    if count - sample.alpha == 3 and sample.dtypes[0] == "uint8":
        kinds = ["Red", "Green", "Blue"]
    return tuple(Band(n, kind) for n, kind in enumerate([*kinds, *["Alpha"] * sample.alpha], 1))
