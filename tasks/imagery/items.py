"""Rasters that a document lists: STAC items, collections of items as JSON, and GeoParquet of items.

Source: STAC 1.0/1.1 items, OGC API Features' FeatureCollection, the STAC API's links to next pages (``rel``
``next`` with ``method``, ``body``, ``merge`` and ``headers``), and the stac-geoparquet layout (columns
``assets`` and ``datetime``). Addresses in a document are its author's: each must lie where a caller may read.
"""

from __future__ import annotations

import json
import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit

from tasks.errors import BadInputError
from tasks.imagery._service_http import fetch_document
from tasks.imagery.identity import unsigned
from tasks.imagery.services import kind_of_service
from tasks.store import ObjectStore, check_allowed, is_local
from tasks.store.uris import is_s3

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".mrf")
"""Name endings that count as a raster in a folder or under a prefix; a raster named itself may have any."""

_JSON, _PARQUET = (".json", ".geojson"), (".parquet", ".geoparquet")
_LARGEST_DOCUMENT = 256 * 2**20
MOST_PAGES = 1000
"""Pages of one list of items that are followed."""
# Keys that providers give the one asset to look at, best first.
_WELL_KNOWN = ("visual", "data", "image", "raster")
_URI_COLUMNS = ("location", "href", "uri", "url", "path")
_PICTURES_ONLY = {"thumbnail", "overview", "metadata"}
_CANDIDATE = "candidate"
# Where items say when they were taken, best first: STAC's names, then those of footprint tables.
_TIMES = ("datetime", "start_datetime", "acquisitiondate", "acquisition_date")


@dataclass(frozen=True, slots=True)
class ListedRaster:
    """A raster that a collection holds.

    Attributes:
        uri: where it lies.
        acquired: when it was taken, UTC, ISO 8601 without a zone, where a document says so.
        candidate: the attribute ``Candidate`` of its item; None where it has none.
    """

    uri: str
    acquired: str | None = None
    candidate: int | None = None


@dataclass(frozen=True, slots=True)
class _Page:
    """Where a page of items lies, and how it is asked for; ``body``: what is posted, None where it is not."""

    uri: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None

    @property
    def request(self) -> str:
        """The same for the same request."""
        return json.dumps([self.uri, self.body], sort_keys=True)


def split_asset(text: str) -> tuple[str, str | None]:
    """``…/items.json#red`` as document and asset key (a table's column); no other text is cut."""
    base, mark, asset = text.rpartition("#")
    return (base, asset) if mark and asset and _suffix(base) in (*_JSON, *_PARQUET) else (text, None)


def is_item_document(text: str) -> bool:
    """Whether the text names a document that lists rasters, and not a raster."""
    base, _ = split_asset(text)
    if kind_of_service(base):
        return False
    if _suffix(base) in (*_JSON, *_PARQUET):
        return True
    # Addresses of a STAC API have no ending.
    path = urlsplit(base).path.rstrip("/")
    return base.startswith("http") and not _is_raster(path) and ("/items" in path or path.endswith("/search"))


def listed_rasters(text: str, store: ObjectStore) -> Iterator[ListedRaster]:
    """The rasters that a document lists, in its order.

    Args:
        text: address of the document, with ``#`` and an asset's key where its items have several assets.
        store: reads it.

    Raises:
        NotFoundError: there is no such document.
        BadInputError: it lists no items, an item has no or several fitting assets, or an address in it may
            not be read.
    """
    document, asset = split_asset(text)
    if _suffix(document) in _PARQUET:
        pages = iter([(document, _rows_of_table(document, asset, store))])
    else:
        pages = _pages_of_json(document, store)
    number = 0
    for place, rows in pages:
        for row in rows:
            number += 1
            uri = row.get("uri") or _href(row, asset, document, number)
            resolved = _resolved(str(uri), place)
            check_allowed(resolved)
            properties = row.get("properties", {})
            yield ListedRaster(resolved, _time(properties), _candidate(properties))


def _pages_of_json(uri: str, store: ObjectStore) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A document's items, and those of the pages that follow it, each with the page's address."""
    page: _Page | None = _Page(uri)
    asked: set[str] = set()
    while page is not None:
        if page.request in asked:
            raise BadInputError(
                f"The pages of {unsigned(uri)} lead back to {unsigned(page.uri)}.",
                "Ask for all items at once (a higher limit), or save all pages as one ItemCollection.",
            )
        if len(asked) == MOST_PAGES:
            raise BadInputError(
                f"{unsigned(uri)} goes on after {MOST_PAGES} pages.",
                "Ask for more items per page (a higher limit), or for fewer (a box, a time).",
            )
        asked.add(page.request)
        items, following = _page_of_json(page, store)
        yield page.uri, items
        page = following


def _page_of_json(page: _Page, store: ObjectStore) -> tuple[list[dict[str, Any]], _Page | None]:
    uri = page.uri
    try:
        found = json.loads(_bytes(page, store))
    except (ValueError, RecursionError) as error:
        raise _no_items(uri, f"is no JSON ({error})") from error
    kind = found.get("type") if isinstance(found, dict) else None
    following = None
    if kind == "Feature":
        items = [found]
    elif kind == "FeatureCollection" and isinstance(found.get("features"), list):
        items, following = found["features"], _next_page(found, page)
    else:
        raise _no_items(uri, f"is a {kind or 'document'} without items")
    if not all(isinstance(item, dict) and isinstance(item.get("assets"), dict) for item in items):
        raise _no_items(uri, "holds features without assets")
    return items, following


def _next_page(found: Mapping[str, Any], page: _Page) -> _Page | None:
    """The page that a list of items names as its next one; None at the end."""
    links = [link for link in found.get("links") or () if isinstance(link, Mapping)]
    link = next((link for link in links if link.get("rel") == "next"), None)
    if link is None:
        return None
    body, method = link.get("body"), str(link.get("method") or "GET").upper()
    headers = link.get("headers") or {}
    usable = (
        isinstance(link.get("href"), str)
        and method in ("GET", "POST")
        and isinstance(body, Mapping | None)
        and isinstance(headers, Mapping)
    )
    if not usable:
        raise BadInputError(
            f"{unsigned(page.uri)} names a next page in a way that is not understood.",
            "Ask for all items at once (a higher limit), or save all pages as one ItemCollection.",
        )
    uri = (
        urljoin(page.uri, link["href"]) if page.uri.startswith("http") else _resolved(link["href"], page.uri)
    )
    check_allowed(uri)
    posted = None
    if method == "POST":
        posted = {**((page.body or {}) if link.get("merge") else {}), **(body or {})}
    return _Page(uri, posted, {str(name): str(value) for name, value in headers.items()})


def _rows_of_table(uri: str, column: str | None, store: ObjectStore) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet

    with tempfile.TemporaryDirectory(prefix="chipline-items-") as folder:
        path = Path(folder) / "items.parquet"
        if is_local(uri):
            path = Path(uri.removeprefix("file://"))
            store.stat(uri)
        elif is_s3(uri):
            store.download(uri, path)
        else:
            path.write_bytes(fetch_document(uri))
        try:
            names = pa.parquet.read_schema(path).names
            places = {name.lower(): name for name in reversed(names)}
            properties = [name for name in names if name.lower() in (*_TIMES, _CANDIDATE)]
            source = "assets" if "assets" in names else None
            if source is None:
                wanted = [column] if column is not None else [n for n in _URI_COLUMNS if n in places]
                if not wanted or wanted[0].lower() not in places:
                    what = column or "with addresses"
                    raise BadInputError(
                        f"{unsigned(uri)} has no column {what}: it has {', '.join(names)}.",
                        "Append the column's name to the address, as in items.parquet#location.",
                    )
                source = places[wanted[0].lower()]
            rows = pa.parquet.read_table(path, columns=[source, *properties]).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise _no_items(uri, f"cannot be read as Parquet ({error})") from error
    if source == "assets":
        # A column of structures names every asset of every item; those that an item lacks are null.
        return [
            {
                "assets": {key: value for key, value in (row["assets"] or {}).items() if value},
                "properties": {name: row[name] for name in properties},
            }
            for row in rows
        ]
    empty = next((number for number, row in enumerate(rows, start=1) if not row[source]), None)
    if empty is not None:
        raise _no_items(uri, f"has no address in row {empty}")
    return [{"uri": row[source], "properties": {name: row[name] for name in properties}} for row in rows]


def _href(item: Mapping[str, Any], asset: str | None, document: str, number: int) -> str:
    assets = {
        str(key): value
        for key, value in item["assets"].items()
        if isinstance(value, Mapping) and isinstance(value.get("href"), str)
    }
    name = f"Item {item.get('id') or number} of {unsigned(document)}"
    if asset is not None:
        if asset not in assets:
            raise BadInputError(
                f"{name} has no asset {asset!r}: it has {', '.join(assets) or 'none'}.",
                "Name one that every item has.",
            )
        return str(assets[asset]["href"])
    rasters = {key: value for key, value in assets.items() if _shows_pixels(value)}
    data = {key: value for key, value in rasters.items() if "data" in (value.get("roles") or ())}
    for group in (data, rasters):
        if len(group) == 1:
            return str(next(iter(group.values()))["href"])
        known = next((key for key in _WELL_KNOWN if key in group), None)
        if known is not None:
            return str(group[known]["href"])
    base = unsigned(document)
    raise BadInputError(
        f"{name} has {'several rasters' if rasters else 'no raster'} among its assets: "
        f"{', '.join(rasters or assets) or 'none'}.",
        f"Append the asset's key to the address, as in {base}#{next(iter(rasters or assets), 'data')}.",
    )


def _shows_pixels(asset: Mapping[str, Any]) -> bool:
    roles = set(asset.get("roles") or ())
    if roles and roles <= _PICTURES_ONLY:
        return False
    kind = str(asset.get("type") or "").lower()
    return kind.startswith("image/") or (not kind and _is_raster(urlsplit(asset["href"]).path))


def _resolved(href: str, document: str) -> str:
    """The address in full; a relative one counts from the document's folder."""
    if not href.strip() or href.startswith("/vsi"):
        raise BadInputError(
            f"{unsigned(document)} has the address {href!r}, which is neither a file nor an object.",
            "Give plain addresses of files, s3:// or http(s)://.",
        )
    if "://" in href or href.startswith("/"):
        if href.startswith("/") and document.startswith("http"):
            return urljoin(document, href)
        return href
    if document.startswith("http"):
        return urljoin(document, href)
    scheme, separator, rest = document.removeprefix("file://").rpartition("://")
    folder = rest.rpartition("/")[0]
    return scheme + separator + posixpath.normpath(posixpath.join(folder, href))


def _bytes(page: _Page, store: ObjectStore) -> bytes:
    uri = page.uri
    if uri.startswith("http"):
        return fetch_document(uri, body=page.body, headers=page.headers)
    size = store.stat(uri).size
    if size > _LARGEST_DOCUMENT:
        raise _no_items(uri, f"has {size} bytes, too many for a list of items")
    return store.get(uri)


def _time(properties: Mapping[str, Any]) -> str | None:
    """The item's time in UTC, ISO 8601 without a zone; None where it states none that can be read."""
    by_name = {name.lower(): value for name, value in properties.items()}
    for name in _TIMES:
        value = by_name.get(name)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            in_utc = value.astimezone(UTC) if value.tzinfo is not None else value
            return in_utc.replace(tzinfo=None).isoformat(timespec="seconds")
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day).isoformat()
    return None


def _candidate(properties: Mapping[str, Any]) -> int | None:
    value = next((value for name, value in properties.items() if name.lower() == _CANDIDATE), None)
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None


def _suffix(uri: str) -> str:
    path = urlsplit(uri).path if uri.startswith("http") else uri
    return PurePosixPath(path).suffix.lower()


def _is_raster(name: str) -> bool:
    return name.lower().endswith(RASTER_SUFFIXES)


def _no_items(uri: str, what: str) -> BadInputError:
    return BadInputError(
        f"{unsigned(uri)} {what}.",
        "Give a STAC item, an ItemCollection (JSON), or GeoParquet of items or addresses.",
    )
