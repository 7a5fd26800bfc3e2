"""URIs of the object store: joining, splitting, access per prefix, GDAL's view of them, what may be named."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.errors import BadInputError
from tasks.settings import StoreAccess, settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


def is_s3(uri: str) -> bool:
    """Whether the URI names an object in an S3 store."""
    return uri.startswith("s3://")


def is_local(uri: str) -> bool:
    """Whether the URI is a plain local path (or a ``file://`` URI)."""
    return uri.startswith("file://") or "://" not in uri


def local_path(uri: str) -> Path:
    """The path behind a local URI."""
    return Path(uri.removeprefix("file://"))


def split_s3(uri: str) -> tuple[str, str]:
    """``s3://bucket/key`` as ``(bucket, key)``; the key may be empty.

    Raises:
        BadInputError: not an S3 URI, or no bucket in it.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not is_s3(uri) or not bucket:
        raise BadInputError(f"{uri!r} is not an S3 URI.", "Write it as s3://bucket/key.")
    return bucket, key


def join(base: str, *parts: str) -> str:
    """``base`` with ``parts`` appended, one slash between each.

    Raises:
        BadInputError: a part would leave ``base`` (``..``) or is empty.
    """
    result = base.rstrip("/") if base != "/" else ""
    for part in parts:
        clean = part.strip("/")
        if not clean or any(piece in ("", ".", "..") for piece in clean.split("/")):
            raise BadInputError(
                f"{part!r} cannot be appended to {base}.", "Use a relative path without '.', '..' and '//'."
            )
        result = f"{result}/{clean}"
    return result or base


def check_name(name: str, what: str = "name") -> str:
    """``name`` itself, when it can stand for one path segment.

    Raises:
        BadInputError: characters that a key or a file name should not carry.
    """
    if not _NAME.match(name):
        raise BadInputError(
            f"{name!r} cannot be used as {what}.",
            "Use up to 100 letters, digits, '.', '_' and '-', starting with a letter or a digit.",
        )
    return name


def check_relative(path: str, folder: str) -> str:
    """``path`` itself, when it stays inside the folder that it belongs to.

    Raises:
        BadInputError: absolute, backslashes, NUL, or a segment that is empty, ``.`` or ``..``.
    """
    bad = not path or "\\" in path or "\0" in path or re.match(r"[A-Za-z]:", path) is not None
    if bad or any(piece in ("", ".", "..") for piece in path.split("/")):
        raise BadInputError(
            f"{folder} lists a file at {path!r}, which does not lie inside the folder.",
            "Do not use this folder; write it again with a tool that you trust.",
        )
    return path


def access_for(uri: str) -> StoreAccess | None:
    """The access whose prefix matches the URI longest, at a segment's end; None when no prefix does."""
    fitting = [access for access in settings().stores if _inside(uri, access.prefix)]
    return max(fitting, key=lambda access: len(access.prefix.rstrip("/")), default=None)


def _inside(uri: str, root: str) -> bool:
    if root.endswith("://"):
        return uri.startswith(root)
    trimmed = root.rstrip("/")
    return uri == trimmed or uri.startswith(trimmed + "/")


def check_allowed(uri: str) -> None:
    """Refuse what a caller may not name: other schemes, other roots, GDAL's own path syntax.

    Raises:
        BadInputError: with the roots that are allowed.
    """
    roots = [*settings().allowed_roots, settings().root]
    remedy = (
        f"Use an address under one of: {', '.join(dict.fromkeys(roots))}; CHIPLINE_ALLOWED_ROOTS sets them."
    )
    if "\0" in uri or not uri.strip():
        raise BadInputError("An address is empty or holds a NUL character.", remedy)
    if is_local(uri):
        path = local_path(uri)
        if not path.is_absolute() or str(path).startswith("/vsi"):
            raise BadInputError(f"{uri!r} is neither an absolute path nor a URI.", remedy)
        resolved = path.resolve()
        folders = [local_path(root).resolve() for root in roots if is_local(root)]
        if not any(resolved.is_relative_to(folder) for folder in folders):
            raise BadInputError(f"{uri} lies outside the allowed folders.", remedy)
        return
    scheme, _, rest = uri.partition("://")
    if scheme not in ("s3", "http", "https"):
        raise BadInputError(f"The scheme of {uri} is not supported.", remedy)
    # The store's server may fold '..' where S3 would take it literally, so it never gets there.
    if any(piece in (".", "..") for piece in rest.split("?")[0].split("/")) or "//" in rest.split("?")[0]:
        raise BadInputError(f"{uri} holds '.', '..' or an empty segment.", remedy)
    if not any(_inside(uri, root) for root in roots):
        raise BadInputError(f"{uri} lies outside the allowed roots.", remedy)


def gdal_path(uri: str) -> str:
    """The name under which GDAL opens the URI: ``/vsis3/bucket/key``, ``/vsicurl/…`` or the path itself."""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        return f"/vsis3/{bucket}/{key}"
    if is_local(uri):
        return str(local_path(uri))
    return f"/vsicurl/{uri}"


def gdal_options(uri: str) -> dict[str, Any]:
    """Options for ``rasterio.Env(**gdal_options(uri))`` that reach the URI; empty for a local path.

    rasterio refuses keys among its options, so they travel in its own session object. For pyogrio use
    :func:`gdal_config`.
    """
    config: dict[str, Any] = dict(gdal_config(uri))
    key, secret = config.pop("AWS_ACCESS_KEY_ID", None), config.pop("AWS_SECRET_ACCESS_KEY", None)
    unsigned = config.pop("AWS_NO_SIGN_REQUEST", None) is not None
    if is_s3(uri):
        config["session"] = _rasterio_session(key, secret, config.pop("AWS_REGION", None), unsigned)
    return config


@lru_cache(maxsize=64)
def _rasterio_session(key: str | None, secret: str | None, region: str | None, unsigned: bool) -> Any:
    from rasterio.session import AWSSession

    return AWSSession(
        aws_access_key_id=key, aws_secret_access_key=secret, region_name=region, aws_unsigned=unsigned
    )


def gdal_config(uri: str) -> dict[str, str]:
    """The same as plain GDAL configuration options, for ``pyogrio.set_gdal_config_options``."""
    if is_local(uri):
        return {}
    config = {"GDAL_HTTP_MAX_RETRY": "4", "GDAL_HTTP_RETRY_DELAY": "0.5", "GDAL_HTTP_CONNECTTIMEOUT": "10"}
    if not is_s3(uri):
        return config
    # GTiff writes at random offsets, which an object store cannot do.
    config["CPL_VSIL_USE_TEMP_FILE_FOR_RANDOM_WRITE"] = "YES"
    access = access_for(uri)
    if access is None:
        return config
    config["AWS_REGION"] = access.region
    if access.endpoint_url:
        endpoint = urlsplit(access.endpoint_url)
        config["AWS_S3_ENDPOINT"] = endpoint.netloc
        config["AWS_HTTPS"] = "NO" if endpoint.scheme == "http" else "YES"
        config["AWS_VIRTUAL_HOSTING"] = "FALSE"
    if access.anonymous:
        config["AWS_NO_SIGN_REQUEST"] = "YES"
    elif access.access_key and access.secret_key:
        config["AWS_ACCESS_KEY_ID"] = access.access_key
        config["AWS_SECRET_ACCESS_KEY"] = access.secret_key.get_secret_value()
    return config
