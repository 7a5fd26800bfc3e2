"""Identity of a raster: a short text that changes when any byte that decides its pixels may have changed.

ETag and size for S3 and HTTP; size, modification time and a content probe for files; a raster of several
files (side-cars, the sources of a VRT) is the sum of them.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from tasks.errors import NotFoundError, RasterError
from tasks.store import ObjectStore

_ADDRESS = re.compile(r"https?://[^\s<>\"']+")
_PROBE_BYTES = 64 * 1024
_PROBES = 4
_SIGNATURE_WORDS = ("x-amz-", "x-goog-", "awsaccesskeyid", "signature", "expires", "policy", "key-pair-id")
_CREDENTIAL_NAMES = {
    "token", "access_token", "apikey", "api_key", "api-key", "key", "auth", "authkey", "subscription-key",
    "user", "username", "password", "passwd", "pwd", "client_id", "client_secret",
}  # fmt: skip
_SHARED_ACCESS_SIGNATURE = {"sv", "se", "sr", "sp", "sig", "st", "spr", "sip", "skoid", "sktid", "ske", "sks"}


def identity_of_files(uris: Iterable[str], store: ObjectStore) -> str:
    """One identity for all files that a raster consists of, independent of their order.

    Args:
        uris: ``s3://`` and ``http(s)://`` URIs and local paths; the raster, its side-cars, its sources.
        store: reads the objects' records.

    Returns:
        32 hexadecimal digits.

    Raises:
        NotFoundError: one of them is not there.
        RasterError: an HTTP server gives neither an ETag nor a size and date.
    """
    records = sorted(_record(uri, store) for uri in dict.fromkeys(uris))
    return hashlib.sha256("\n".join(records).encode()).hexdigest()[:32]


def unsigned(uri: str) -> str:
    """The URI without what signs it or gives access: secrets, which change while the raster does not."""
    if not uri.startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    if not parts.query:
        return urlunsplit(parts)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    azure = any(name == "sig" for name, _ in pairs)
    kept = [
        (name, value)
        for name, value in pairs
        if not name.lower().startswith(_SIGNATURE_WORDS)
        and name.lower() not in _CREDENTIAL_NAMES
        and not (azure and name in _SHARED_ACCESS_SIGNATURE)
    ]
    # The braces of a tile template stay what they are.
    return urlunsplit(parts._replace(query=urlencode(kept).replace("%7B", "{").replace("%7D", "}")))


def on_record(value: Any) -> Any:
    """JSON-able parameters with every address in them as :func:`unsigned` gives it, as they go on record."""
    if isinstance(value, str):
        return unsigned(value)
    if isinstance(value, Mapping):
        return {name: on_record(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [on_record(item) for item in value]
    return value


def without_credentials(text: str) -> str:
    """A message with every http address in it as :func:`unsigned` gives it."""
    return _ADDRESS.sub(lambda found: unsigned(html.unescape(found.group())), text)


def _record(uri: str, store: ObjectStore) -> str:
    if uri.startswith("s3://"):
        found = store.stat(uri)
        return f"s3 {found.etag} {found.size}"
    if uri.startswith(("http://", "https://")):
        return _http_record(uri)
    return _file_record(Path(uri))


def _file_record(path: Path) -> str:
    try:
        status = path.stat()
        probe = hashlib.sha256()
        with path.open("rb") as file:
            # Evenly spread, first and last bytes included: headers, directories and pixels all count.
            last = max(0, status.st_size - _PROBE_BYTES)
            for start in sorted({last * step // (_PROBES - 1) for step in range(_PROBES)}):
                file.seek(start)
                probe.update(file.read(_PROBE_BYTES))
    except FileNotFoundError as error:
        raise NotFoundError(f"The file {path} does not exist.", "Check the path and its spelling.") from error
    except OSError as error:
        raise RasterError(
            f"The file {path} cannot be read: {error}.", "Check that it is a file and that it may be read."
        ) from error
    return f"file {status.st_size} {status.st_mtime_ns} {probe.hexdigest()}"


def _http_record(uri: str) -> str:
    import httpx

    address = unsigned(uri)
    try:
        # A signed address often allows GET only, so one byte is asked for instead of HEAD.
        with httpx.stream("GET", uri, headers={"Range": "bytes=0-0"}, follow_redirects=True) as answer:
            status, headers = answer.status_code, answer.headers
    except httpx.HTTPError as error:
        raise RasterError(
            f"{address} cannot be reached: {error}.", "Check the address and the network."
        ) from error
    if status in (404, 410):
        raise NotFoundError(f"{address} does not exist.", "Check the address and its spelling.")
    if status >= 400:
        raise RasterError(
            f"{address} was refused with HTTP status {status}.",
            "Check that the address may be read and that its signature has not expired.",
        )
    size = headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
    stamp = headers.get("etag") or headers.get("last-modified")
    if not stamp:
        raise RasterError(
            f"{address} has neither an ETag nor a modification date, so a changed raster could go unnoticed.",
            "Copy the raster into the object store and name it there.",
        )
    return f"http {address} {stamp} {size}"
