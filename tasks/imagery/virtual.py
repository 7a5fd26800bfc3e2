"""The sources of a VRT, checked before GDAL reads a single one of them."""

from __future__ import annotations

import posixpath
from pathlib import Path
from xml.etree import ElementTree

from tasks.errors import BadInputError
from tasks.store import ObjectStore, check_allowed

_MAX_DEPTH = 5
_SOURCE_TAGS = ("SourceFilename", "SourceDataset")


def sources_of_virtual_raster(uri: str, store: ObjectStore) -> list[str]:
    """URIs of all files that the VRT at ``uri`` reads, nested ones included, each once.

    A source must lie below the VRT's own folder or where the caller may read anyway.

    Raises:
        BadInputError: a source may not be read, the VRT carries code, is nested too deeply or is no VRT.
    """
    found: dict[str, None] = {}
    _collect(uri, store, found, above=())
    return list(found)


def _collect(uri: str, store: ObjectStore, found: dict[str, None], above: tuple[str, ...]) -> None:
    if len(above) > _MAX_DEPTH:
        raise BadInputError(
            f"The VRT {uri} nests more than {_MAX_DEPTH} levels of VRTs.", "Name the rasters themselves."
        )
    for source in _direct_sources(uri, store.get(uri)):
        if source in (uri, *above):
            raise BadInputError(f"The VRT {source} reads itself.", "Write it again with gdalbuildvrt.")
        if source in found:
            continue
        if not _is_below(source, _folder(uri)):
            check_allowed(source)
        found[source] = None
        if looks_virtual(source, store):
            _collect(source, store, found, (*above, uri))


def _direct_sources(uri: str, data: bytes) -> list[str]:
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise BadInputError(f"The VRT {uri} declares XML entities.", "Write it again with gdalbuildvrt.")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise BadInputError(
            f"The VRT {uri} is not valid XML: {error}.", "Write it again with gdalbuildvrt."
        ) from error
    if any((node.text or "").strip().lower() == "python" for node in root.iter("PixelFunctionLanguage")):
        raise BadInputError(
            f"The VRT {uri} carries a Python pixel function.",
            "Compute the band with gdal_calc into a GeoTIFF and name that instead.",
        )
    sources = []
    for tag in _SOURCE_TAGS:
        for node in root.iter(tag):
            text = (node.text or "").strip()
            relative = node.get("relativeToVRT", node.get("relativetoVRT", "0")) == "1"
            sources.append(_resolved(uri, text, relative=relative))
    return sources


def _resolved(uri: str, text: str, *, relative: bool) -> str:
    if text.startswith("/vsis3/"):
        return _normal("s3://" + text.removeprefix("/vsis3/"))
    if text.startswith("/vsicurl/http"):
        return text.removeprefix("/vsicurl/")
    # Sub-datasets, inline XML and chained file systems are datasets to GDAL, but no files.
    if not text or text.startswith(("/vsi", "<")) or (":" in text and not text.startswith(("s3://", "http"))):
        raise BadInputError(
            f"The VRT {uri} has the source {text!r}, which is neither a file nor an object.",
            "Build the VRT from plain raster files.",
        )
    if "://" in text:
        return _normal(text) if text.startswith("s3://") else text
    if relative or not text.startswith("/"):
        return _normal(_folder(uri) + "/" + text)
    return _normal(text)


def _folder(uri: str) -> str:
    if "://" in uri:
        return uri.rpartition("/")[0]
    return str(Path(uri).absolute().parent)


def _normal(uri: str) -> str:
    scheme, separator, rest = uri.rpartition("://")
    return scheme + separator + posixpath.normpath(rest)


def _is_below(source: str, folder: str) -> bool:
    if "://" not in source:
        # A link must not lead out of the folder.
        return Path(source).resolve().is_relative_to(Path(folder).resolve())
    return source.startswith(folder + "/")


def looks_virtual(uri: str, store: ObjectStore) -> bool:
    """Whether GDAL would take the file or object at ``uri`` for a VRT; it looks at the first 1024 bytes."""
    if uri.startswith(("http://", "https://")):
        return False  # such rasters are opened without the VRT driver
    return b"<VRTDataset" in store.get_range(uri, 0, 1024)
