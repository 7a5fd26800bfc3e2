"""The imagery and labels of ``examples/``, put into the store so that every form's sample values work."""

from __future__ import annotations

import hashlib

from botocore.exceptions import ClientError

from infra.local.health import s3_client
from infra.local.layout import BUCKET, PROJECT, Layout
from infra.local.secrets import Secrets

PREFIX = "imagery"
_SUFFIXES = (".tif", ".gpkg", ".json")


def upload(layout: Layout, keys: Secrets) -> int:
    """Put what the store lacks (or holds otherwise) under ``s3://chipline/imagery/``; returns how many."""
    key = keys.s3_keys["admin"]
    s3 = s3_client(layout, key.access_key, key.secret_key)
    count = 0
    for path in sorted((PROJECT / "examples").rglob("*")):
        if path.suffix not in _SUFFIXES:
            continue
        name = f"{PREFIX}/{path.relative_to(PROJECT / 'examples').as_posix()}"
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        try:
            # A new ETag would make every result that was computed from the raster look outdated.
            if s3.head_object(Bucket=BUCKET, Key=name)["Metadata"].get("sha256") == digest:
                continue
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                raise
        s3.put_object(Bucket=BUCKET, Key=name, Body=data, Metadata={"sha256": digest})
        count += 1
    return count
