"""Objects of a few kilobytes into S3 stores through obstore (Rust): a chip set is a million of them.

A put takes a fifth of the processor time that it takes through boto3, and none of it under Python's lock.
This way knows whole objects and "only if there is none yet"; everything else, and every answer that needs
explaining, is boto3's (:mod:`tasks.store._s3`).
"""

from __future__ import annotations

import re
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tasks.settings import StoreAccess
from tasks.store.uris import split_s3

if TYPE_CHECKING:
    from obstore.store import S3Store

# Failures in a row after which a store is left to boto3 alone: its certificate is one that obstore does not
# trust, say, and every further try would cost seconds.
_ENOUGH = 3
# Keys that every client writes into a request in the same way.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*\Z")


class ExistsAlready(Exception):
    """The store holds an object under this key: another writer's, or this very request's, repeated."""


class QuickPuts:
    """Puts that succeed at once, or not at all."""

    def __init__(self) -> None:
        self._stores: dict[tuple[object, ...], S3Store] = {}
        self._failures: dict[int, int] = {}
        self._lock = threading.Lock()

    def put(
        self,
        uri: str,
        data: bytes,
        access: StoreAccess | None,
        *,
        if_none_match: bool,
        content_type: str | None,
        metadata: dict[str, str],
    ) -> str | None:
        """Write an object and return its etag; None where it was not written for whatever reason.

        Raises:
            ExistsAlready: the condition does not hold.
        """
        bucket, key = split_s3(uri)
        store = self._store(bucket, access) if _PLAIN_KEY.match(key) else None
        if store is None or self._failures.get(id(store), 0) >= _ENOUGH:
            return None
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        attributes = {**metadata, "Content-Type": content_type} if content_type else metadata
        try:
            answer = obstore.put(
                store,
                key,
                data,
                mode="create" if if_none_match else "overwrite",
                attributes=attributes,
                use_multipart=False,
            )
        except AlreadyExistsError as error:
            raise ExistsAlready from error
        except BaseError:
            self._failures[id(store)] = self._failures.get(id(store), 0) + 1
            return None
        self._failures[id(store)] = 0
        return answer["e_tag"]

    def _store(self, bucket: str, access: StoreAccess | None) -> S3Store | None:
        # AWS's chain of credentials is boto3's: obstore knows only a part of it.
        if access is None or access.anonymous or not access.access_key or not access.secret_key:
            return None
        secret = access.secret_key.get_secret_value()
        identity = (bucket, access.endpoint_url, access.region, access.access_key, secret)
        with self._lock:
            if identity not in self._stores:
                self._stores[identity] = _make_store(bucket, access, access.access_key, secret)
            return self._stores[identity]


def _make_store(bucket: str, access: StoreAccess, access_key: str, secret: str) -> S3Store:
    from obstore.store import S3Store

    # obstore reads AWS_* variables for whatever is not said; the settings alone decide, as with boto3.
    # A provider of credentials is the one way to say that there is no session token.
    def credentials() -> Any:
        return {
            "access_key_id": access_key,
            "secret_access_key": secret,
            "token": None,
            "expires_at": None,
        }

    endpoint: Any = {}
    if access.endpoint_url:
        endpoint = {"endpoint": access.endpoint_url, "aws_endpoint_url_s3": access.endpoint_url}
    return S3Store(
        bucket,
        credential_provider=credentials,
        region=access.region,
        virtual_hosted_style_request=False,
        skip_signature=False,
        unsigned_payload=False,
        s3_express=False,
        conditional_put="etag",
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=60),
        },
        retry_config={
            "max_retries": 2,
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
            "retry_timeout": timedelta(seconds=60),
        },
        **endpoint,
    )
