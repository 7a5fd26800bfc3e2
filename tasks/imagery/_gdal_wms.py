"""GDAL_WMS files: read, checked, and written anew with nothing but what we know to be harmless.

Source: https://gdal.org/drivers/raster/wms.html.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tasks.errors import BadInputError
from tasks.imagery._service_documents import element
from tasks.store import ObjectStore, check_allowed

_MAX_BYTES = 64 * 1024
_MAX_BLOCK_PX = 4096
_MINIDRIVERS = ("WMS", "TMS", "AGS", "VirtualEarth")
_SERVICE = {
    "version", "serverurl", "layers", "layer", "styles", "srs", "crs", "imageformat", "format", "transparent",
    "bboxorder", "timerange", "tilexmultiplier",
}  # fmt: skip
_WINDOW = {
    "upperleftx", "upperlefty", "lowerrightx", "lowerrighty", "sizex", "sizey", "tilex", "tiley", "tilelevel",
    "tilecountx", "tilecounty", "yorigin",
}  # fmt: skip
_TOP = {
    "projection", "bandscount", "datatype", "blocksizex", "blocksizey", "overviewcount", "timeout",
    "useragent", "referer", "userpwd", "zeroblockhttpcodes", "clamprequests", "accept",
}  # fmt: skip
_LEFT_OUT = {"cache", "maxconnections", "adviseread", "verifyadviseread", "offlinemode"}  # change no pixel
_REMEDY = (
    "Write the file as https://gdal.org/drivers/raster/wms.html describes it, without what is named here."
)


def looks_like_gdal_wms(uri: str, store: ObjectStore) -> bool:
    """Whether the file or object at ``uri`` is a GDAL_WMS file, by its first bytes."""
    return b"<GDAL_WMS" in store.get_range(uri, 0, 1024)


def checked_document(uri: str, store: ObjectStore) -> str:
    """The file's content, with nothing in it but an allowed address and numbers.

    Raises:
        BadInputError: it is damaged, reads an address that may not be named, or holds an element that could
            read or write files.
        NotFoundError: it is not there.
    """
    data = store.get_range(uri, 0, _MAX_BYTES + 1)
    if len(data) > _MAX_BYTES or b"<!" in re.sub(rb"<!--.*?-->", b"", data, flags=re.DOTALL):
        raise BadInputError(f"{uri} is too large, or declares types or entities.", _REMEDY)
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise BadInputError(f"{uri} is not valid XML: {error}.", _REMEDY) from error
    if root.tag != "GDAL_WMS":
        raise BadInputError(f"{uri} does not begin with GDAL_WMS.", _REMEDY)
    pieces = []
    for node in root:
        name = node.tag.lower()
        if name == "service":
            pieces.append(_service(uri, node))
        elif name == "datawindow":
            inner = "".join(_plain(uri, child, _WINDOW) for child in node)
            pieces.append(f"<DataWindow>{inner}</DataWindow>")
        elif name == "datavalues":
            pieces.append(_data_values(uri, node))
        elif name not in _LEFT_OUT:
            pieces.append(_plain(uri, node, _TOP))
    return f"<GDAL_WMS>{''.join(pieces)}</GDAL_WMS>"


def _service(uri: str, node: ElementTree.Element) -> str:
    name = node.get("name", "")
    if name not in _MINIDRIVERS or set(node.keys()) != {"name"}:
        raise BadInputError(
            f"{uri} names the service {name!r}.", f"Services that are read: {', '.join(_MINIDRIVERS)}."
        )
    addresses = [(child.text or "").strip() for child in node if child.tag.lower() == "serverurl"]
    if len(addresses) != 1 or not addresses[0].startswith(("http://", "https://")):
        raise BadInputError(f"{uri} needs one ServerUrl that begins with http:// or https://.", _REMEDY)
    check_allowed(addresses[0])
    inner = "".join(_plain(uri, child, _SERVICE) for child in node)
    return f'<Service name="{name}">{inner}</Service>'


def _data_values(uri: str, node: ElementTree.Element) -> str:
    given = {name.lower(): value for name, value in node.attrib.items()}
    if len(node) or not set(given) <= {"nodata", "min", "max"}:
        raise BadInputError(f"{uri} has {sorted(given)} in DataValues.", _REMEDY)
    values = "".join(f' {name}="{_number(uri, value)!r}"' for name, value in sorted(given.items()))
    return f"<DataValues{values.replace(' nodata=', ' NoData=')}/>"


def _number(uri: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise BadInputError(f"{uri} has {text!r} where a number belongs.", _REMEDY) from error


def _plain(uri: str, node: ElementTree.Element, known: set[str]) -> str:
    name, text = node.tag, (node.text or "").strip()
    if name.lower() not in known or node.attrib or len(node):
        raise BadInputError(f"{uri} holds the element {name}, which is not read.", _REMEDY)
    if name.lower() != "serverurl" and (
        text.startswith(("/", "\\", ".", "<", "@")) or re.search(r"/vsi|file:|://|[A-Za-z]:[\\/]", text)
    ):
        raise BadInputError(f"{uri} names a file or an address in {name}.", _REMEDY)
    if name.lower() in ("blocksizex", "blocksizey") and not 0 < _number(uri, text) <= _MAX_BLOCK_PX:
        raise BadInputError(f"{uri} has {name} {text}.", f"Give 1 to {_MAX_BLOCK_PX}.")
    return element(name, text)
