"""What image services answer, before GDAL sees any of it: documents, error texts, a sample image."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import rasterio.errors
from rasterio.io import MemoryFile

from tasks.errors import NotFoundError, RasterError
from tasks.imagery.identity import unsigned

USER_AGENT = "Chipline"
TIMEOUT_S = 30.0
_MAX_DOCUMENT_BYTES = 16 * 2**20
_DRIVERS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
}
_TOKEN_STATUS = (401, 403, 498, 499)
_TOKEN_REMEDY = (
    "Append what the service asks for to the address, for example ?token=…, and check that it is valid."
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A small image that the service gave; it tells what its pixels are.

    Attributes:
        driver: GDAL driver of the format: ``PNG``, ``JPEG`` or ``GTiff``.
        width: columns, px.
        height: rows, px.
        dtypes: numpy name per band.
        alpha: whether the last band is one.
    """

    driver: str
    width: int
    height: int
    dtypes: tuple[str, ...]
    alpha: bool


def fetch_document(
    url: str, *, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """The document at ``url``.

    Args:
        url: address.
        body: what is posted, as JSON; None gets the document.
        headers: further ones.

    Raises:
        NotFoundError: there is none.
        RasterError: the service cannot be reached or refuses, or the document is too large.
    """
    status, data = _get(url, body, headers)
    if status in (404, 410):
        raise NotFoundError(f"There is no service at {unsigned(url)}.", "Check the address and its spelling.")
    _check(url, status, data)
    return data


def fetch_json(url: str) -> dict[str, Any]:
    """The JSON object at ``url``; an error object in it counts as an error, as ArcGIS means it.

    Raises:
        NotFoundError, RasterError: as :func:`fetch_document`, and an answer that is no JSON object.
    """
    data = fetch_document(url)
    try:
        found = json.loads(data)
    except ValueError as error:
        raise RasterError(
            f"{unsigned(url)} answered with {_kind_of(data)} instead of JSON.",
            "Check that the address ends in …/ImageServer and opens a service's page in a browser.",
        ) from error
    if not isinstance(found, dict):
        raise RasterError(
            f"{unsigned(url)} answered with JSON that describes no service.", "Check the address."
        )
    _check_arcgis_error(url, found)
    return found


def fetch_sample(url: str) -> Sample | None:
    """The image at ``url``, opened; None where the service has no image there (status 204 or 404).

    Raises:
        RasterError: the service cannot be reached or refuses, or answers with something that is no image.
    """
    status, data = _get(url)
    if status in (204, 404, 410) or (status == 200 and not data):
        return None
    _check(url, status, data)
    driver = next((name for magic, name in _DRIVERS.items() if data.startswith(magic)), None)
    if driver is None:
        raise _no_image(url, data)
    try:
        # Pixel counts and types only; an unreadable tail shows when it is read.
        with MemoryFile(data) as file, file.open(driver=driver) as dataset:
            interpretations = [kind.name for kind in dataset.colorinterp]
            return Sample(
                driver,
                dataset.width,
                dataset.height,
                tuple(dataset.dtypes),
                alpha=interpretations[-1] == "alpha",
            )
    except rasterio.errors.RasterioError as error:
        raise RasterError(
            f"{unsigned(url)} answered with a damaged image: {error}.", "Ask for another image format."
        ) from error


def _get(
    url: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    import httpx

    try:
        with httpx.stream(
            "GET" if body is None else "POST",
            url,
            json=body,
            timeout=TIMEOUT_S,
            follow_redirects=True,
            headers={**(headers or {}), "User-Agent": USER_AGENT},
        ) as answer:
            data = bytearray()
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > _MAX_DOCUMENT_BYTES:
                    raise RasterError(
                        f"{unsigned(url)} answered with more than {_MAX_DOCUMENT_BYTES} bytes.",
                        "Check the address; a file is named by an address without a query for an image.",
                    )
            return answer.status_code, bytes(data)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RasterError(
            f"{unsigned(url)} cannot be reached: {error}.", "Check the address and the network."
        ) from error


def _check(url: str, status: int, data: bytes) -> None:
    if status in _TOKEN_STATUS:
        raise RasterError(f"{unsigned(url)} asks for credentials (HTTP status {status}).", _TOKEN_REMEDY)
    if status >= 400:
        raise RasterError(
            f"{unsigned(url)} was refused with HTTP status {status}: {_text_of(data)}",
            "Check the address and its parameters, or try again when the service is well.",
        )


def _check_arcgis_error(url: str, found: dict[str, Any]) -> None:
    error = found.get("error")
    if not isinstance(error, dict):
        return
    text = f"{unsigned(url)} answered with error {error.get('code')}: {error.get('message')}."
    if error.get("code") in _TOKEN_STATUS:
        raise RasterError(text, _TOKEN_REMEDY)
    if error.get("code") == 404:
        raise NotFoundError(text, "Check the address and its spelling.")
    raise RasterError(text, "Check the address and its parameters.")


def _no_image(url: str, data: bytes) -> RasterError:
    if data.lstrip().startswith(b"{"):
        try:
            _check_arcgis_error(url, json.loads(data))
        except (ValueError, NotFoundError) as error:
            return RasterError(f"{unsigned(url)} gave no image: {error}", "Check the address.")
    return RasterError(
        f"{unsigned(url)} answered with {_kind_of(data)} instead of an image: {_text_of(data)}",
        "Check the address and its parameters (layers, reference system, image format PNG, JPEG or TIFF).",
    )


def _kind_of(data: bytes) -> str:
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith(b"<"):
        return "XML"
    return "JSON" if start.startswith((b"{", b"[")) else "something unknown"


def _text_of(data: bytes) -> str:
    """At most 200 characters of what a person may read in an error answer."""
    text = data[:4000].decode("utf-8", "replace")
    if text.lstrip().startswith("<") and b"<!ENTITY" not in data:
        try:
            text = " ".join(ElementTree.fromstring(data).itertext())
        except ElementTree.ParseError:
            text = re.sub(r"<[^>]*>", " ", text)
    return " ".join(text.split())[:200] or "no text"
