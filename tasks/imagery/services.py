"""Image services as rasters: WMS, XYZ tiles, ArcGIS ImageServer, and GDAL_WMS files.

An address becomes a document that GDAL's WMS driver reads; from there on a service is a raster like any
other. ``docs/imagery.md`` says what can be named.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from tasks.errors import BadInputError
from tasks.imagery import _arcgis, _gdal_wms, _tiles, _wms
from tasks.imagery._service_address import parse_address
from tasks.imagery.identity import identity_of_files, unsigned, without_credentials
from tasks.settings import settings
from tasks.store import ObjectStore

ServiceKind = Literal["wms", "xyz", "imageserver", "gdal_wms"]

READ_OPTIONS: dict[str, str | bool | int] = {
    # No cache on disk, no .aux.xml in the working directory.
    "GDAL_ENABLE_WMS_CACHE": "NO",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
}
"""GDAL's options while a service is read."""

RETRY_WAITS_S = (0.5, 2.0, 5.0)
"""Pauses before a service that failed is asked again; GDAL asks it once only."""

_TEMPLATE = re.compile(r"\{(-?[xyzsqr]|quadkey|switch:[^}]*)\}")
_STATUS = re.compile(r"HTTP status code: (\d+)")
_PASSING_STATUS = {0, 408, 425, 429, 500, 502, 503, 504}  # 0: the connection broke or timed out
_KEPT = 256
_known: dict[str, Service] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Service:
    """A service, ready to be opened.

    Attributes:
        kind: what it is.
        address: where it is, without credentials; for messages.
        driver: the GDAL driver that opens the document.
        document: what GDAL opens; it may hold credentials.
        identity: changes when the service says that it has changed; its pixels may change unseen.
    """

    kind: ServiceKind
    address: str
    driver: Literal["VRT", "WMS"]
    document: str = field(repr=False)
    identity: str


def kind_of_service(uri: str) -> ServiceKind | None:
    """What kind of service ``uri`` names, by its form alone; None where it names a file.

    A local file or an object that ends in ``.xml`` or ``.wms`` counts as a GDAL_WMS file.

    Raises:
        BadInputError: it names a service that is not read, with the way out.
    """
    if not uri.startswith(("http://", "https://")):
        return "gdal_wms" if uri.lower().endswith((".xml", ".wms")) else None
    parts = urlsplit(uri)
    query = {name.lower(): value.lower() for name, value in parse_qsl(parts.query, keep_blank_values=True)}
    if _TEMPLATE.search(uri.partition("#")[0]):
        return "xyz"
    path = parts.path.lower().rstrip("/")
    if path.endswith(("/imageserver", "/imageserver/exportimage")):
        return "imageserver"
    if query.get("service") == "wms" or query.get("request") in ("getmap", "getcapabilities"):
        if query.get("service", "wms") != "wms":
            raise BadInputError(
                f"{unsigned(uri)} is a {query['service'].upper()}, which is not read.",
                "Name a WMS, an ArcGIS ImageServer or a tile template https://…/{z}/{x}/{y}.png#zoom=…; a "
                "WMTS in Web Mercator has such a template, too.",
            )
        return "wms"
    if path.endswith("/mapserver"):
        raise BadInputError(
            f"{unsigned(uri)} is a map service, which draws maps and gives no imagery.",
            "Name the ImageServer, or the map's tiles: …/MapServer/tile/{z}/{y}/{x}#zoom=….",
        )
    return None


def service_at(uri: str, *, fresh: bool = False) -> Service | None:
    """The service that ``uri`` names; None where it names a file.

    What a service tells of itself is asked for once per process, and again with ``fresh``.

    Raises:
        BadInputError: the address says too little or names what may not be read.
        NotFoundError: there is no such service.
        RasterError: it cannot be reached, refuses, asks for a token, or answers with something else.
    """
    kind = kind_of_service(uri)
    if kind is None:
        return None
    with _lock:
        found = _known.get(uri)
    if found is not None and not fresh:
        return found
    found = _described(uri, kind)
    if found is not None:
        with _lock:
            while len(_known) >= _KEPT:
                _known.pop(next(iter(_known)))
            _known[uri] = found
    return found


def reason_of(error: BaseException) -> str:
    """Why GDAL could not read, in one line and without credentials."""
    text = str(error.__cause__ or error).partition("Add the HTTP status code")[0]
    return without_credentials(" ".join(text.split())).rstrip(".")


def may_pass(reason: str) -> bool:
    """Whether a service that failed for this reason is worth asking again."""
    found = _STATUS.search(reason)
    return found is not None and int(found[1]) in _PASSING_STATUS


def _described(uri: str, kind: ServiceKind) -> Service | None:
    if kind == "gdal_wms":
        store = ObjectStore()
        if not _gdal_wms.looks_like_gdal_wms(uri, store):
            return None
        _check_driver(uri)
        content = _gdal_wms.checked_document(uri, store)
        return Service(kind, uri, "WMS", content, identity_of_files([uri], store))
    _check_driver(uri)
    reader = {"wms": _wms, "xyz": _tiles, "imageserver": _arcgis}[kind]
    document, facts = reader.describe(parse_address(uri, options=reader.OPTIONS))
    address = unsigned(uri)
    text = "\n".join(["service", kind, address, facts])
    return Service(kind, address, "VRT", document, hashlib.sha256(text.encode()).hexdigest()[:32])


def _check_driver(uri: str) -> None:
    if "WMS" not in settings().gdal_drivers:
        raise BadInputError(
            f"{unsigned(uri)} is an image service, and these are switched off here.",
            "Add WMS to CHIPLINE_GDAL_DRIVERS, or name a file.",
        )
