"""Objects in S3-compatible stores, through boto3; one client per endpoint and identity.

Small objects are written through obstore where that goes without a question (:mod:`tasks.store._quick`).
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tasks.errors import NotFoundError, PreconditionFailedError, StoreError
from tasks.settings import StoreAccess
from tasks.store._local import file_sha256
from tasks.store._quick import ExistsAlready, QuickPuts
from tasks.store._types import HalfUpload, ObjectInfo
from tasks.store.uris import access_for, split_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Up to this size one request carries the object; beyond it a multipart upload does.
SINGLE_PUT_BYTES = 64 * 1024 * 1024
PART_BYTES = 32 * 1024 * 1024
_CONFLICT_TRIES = 5
# Who names a wrong endpoint wants to know soon; a store that has answered before is waited for, about a
# minute (botocore's pauses double up to 20 s and are drawn at random): it may be starting again.
_ATTEMPTS = 6
_PATIENT_ATTEMPTS = 9
_BODY_TRIES = 4
# A body's pieces; what is lost of one when it breaks off is asked for again.
_CHUNK_BYTES = 64 * 1024
_PROGRESS_BYTES = 1024 * 1024
_REFUSED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "403",
    "401",
}


_answered: set[tuple[object, ...]] = set()  # endpoints and identities that have answered this process


class S3Backend:
    """The verbs of the store on ``s3://`` URIs; see :class:`tasks.store.objects.ObjectStore`."""

    def __init__(self) -> None:
        self._clients: dict[tuple[object, ...], S3Client] = {}
        self._lock = threading.Lock()
        self._quick = QuickPuts()

    def read(self, uri: str) -> tuple[bytes, str]:
        bucket, key = split_s3(uri)
        with _errors(uri):
            client = self._client(uri)
            data, answer = _whole(lambda: client.get_object(Bucket=bucket, Key=key))
            return data, answer["ETag"]

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        from botocore.exceptions import ClientError

        bucket, key = split_s3(uri)
        if length <= 0:
            return b""
        with _errors(uri):
            try:
                client, part = self._client(uri), f"bytes={start}-{start + length - 1}"
                return _whole(lambda: client.get_object(Bucket=bucket, Key=key, Range=part))[0]
            except ClientError as error:
                # Past the end: a file would give nothing there, so does the store.
                if _code(error) in ("InvalidRange", "416"):
                    return b""
                raise

    def put(
        self,
        uri: str,
        source: bytes | Path,
        *,
        if_none_match: bool,
        if_match: str | None,
        content_type: str | None,
        sha256: str | None = None,
    ) -> str:
        if sha256 is None:
            sha256 = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else file_sha256(source)
        # The attempt's own mark tells our repeated request from another writer's when 412 comes back.
        attempt = uuid.uuid4().hex
        metadata = {"sha256": sha256, "attempt": attempt}
        extra: dict[str, Any] = {"Metadata": metadata}
        if content_type:
            extra["ContentType"] = content_type
        condition: dict[str, Any] = {}
        if if_none_match:
            condition["IfNoneMatch"] = "*"
        if if_match is not None:
            condition["IfMatch"] = if_match
        with _errors(uri):
            if isinstance(source, bytes) and if_match is None and len(source) <= SINGLE_PUT_BYTES:
                etag = self._put_quickly(
                    uri, source, if_none_match=if_none_match, content_type=content_type, metadata=metadata
                )
                if etag is not None:
                    return etag
            return self._put(uri, source, extra, condition, attempt)

    def _put_quickly(
        self,
        uri: str,
        data: bytes,
        *,
        if_none_match: bool,
        content_type: str | None,
        metadata: dict[str, str],
    ) -> str | None:
        """The etag; None where boto3 has to try and to explain."""
        try:
            return self._quick.put(
                uri,
                data,
                access_for(uri),
                if_none_match=if_none_match,
                content_type=content_type,
                metadata=metadata,
            )
        except ExistsAlready as error:
            bucket, key = split_s3(uri)
            there = _attempt_of(self._client(uri), bucket, key)
            if there is None:
                return None
            etag, attempt = there
            if attempt == metadata["attempt"]:
                return etag
            raise PreconditionFailedError(
                f"{uri} exists already.", "Read the existing object, or write under another key."
            ) from error

    def _put(
        self, uri: str, source: bytes | Path, extra: dict[str, Any], condition: dict[str, Any], attempt: str
    ) -> str:
        from botocore.exceptions import ClientError

        bucket, key = split_s3(uri)
        client = self._client(uri)
        send: Callable[[], str]
        if isinstance(source, bytes):
            body = source
            send = lambda: client.put_object(Bucket=bucket, Key=key, Body=body, **extra, **condition)["ETag"]  # noqa: E731
        elif source.stat().st_size <= SINGLE_PUT_BYTES:
            path = source
            send = lambda: _put_file(client, bucket, key, path, {**extra, **condition})  # noqa: E731
        else:
            path = source
            send = lambda: _put_parts(client, bucket, key, path, extra, condition)  # noqa: E731
        for turn in range(_CONFLICT_TRIES):
            try:
                return send()
            except ClientError as error:
                code = _code(error)
                # Two conditional writes at the same moment: S3 asks to try again.
                if code in ("ConditionalRequestConflict", "409") and turn + 1 < _CONFLICT_TRIES:
                    time.sleep(0.1 * 2**turn)
                    continue
                lost = code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
                gone = "IfMatch" in condition and code in ("NoSuchKey", "404", "NotFound")
                if not (condition and (lost or gone)):
                    raise
                if etag := _won(client, bucket, key, attempt):
                    return etag
                if "IfMatch" in condition:
                    raise PreconditionFailedError(
                        f"{uri} has changed since it was read.", "Read it again and repeat the change."
                    ) from error
                raise PreconditionFailedError(
                    f"{uri} exists already.", "Read the existing object, or write under another key."
                ) from error
        raise AssertionError("the loop returns or raises")

    def download(self, uri: str, path: Path) -> None:
        with _errors(uri), path.open("wb") as file:
            _fetch(self._client(uri), uri, file)

    def stat(self, uri: str) -> ObjectInfo:
        bucket, key = split_s3(uri)
        with _errors(uri):
            head = self._client(uri).head_object(Bucket=bucket, Key=key)
        return ObjectInfo(
            uri, head["ContentLength"], head["ETag"], head["LastModified"], head["Metadata"].get("sha256")
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        bucket, key = split_s3(prefix)
        with _errors(prefix):
            pages = self._client(prefix).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
            for page in pages:
                for item in page.get("Contents", []):
                    # A key that ends with a slash is a folder marker of some servers and tools.
                    if not item["Key"].endswith("/"):
                        yield ObjectInfo(
                            f"s3://{bucket}/{item['Key']}",
                            item["Size"],
                            item["ETag"],
                            item["LastModified"],
                            None,
                        )

    def delete(self, uri: str) -> None:
        bucket, key = split_s3(uri)
        with _errors(uri):
            self._client(uri).delete_object(Bucket=bucket, Key=key)

    def half_uploads(self, prefix: str) -> Iterator[HalfUpload]:
        bucket, start = split_s3(prefix)
        with _errors(prefix):
            client = self._client(prefix)
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=start)
            for page in pages:
                for item in page.get("Uploads", []):
                    key, number = item["Key"], item["UploadId"]
                    listed = client.get_paginator("list_parts").paginate(
                        Bucket=bucket, Key=key, UploadId=number
                    )
                    size = sum(part["Size"] for answer in listed for part in answer.get("Parts", []))
                    yield HalfUpload(f"s3://{bucket}/{key}", number, size, item["Initiated"])

    def abandon(self, upload: HalfUpload) -> None:
        bucket, key = split_s3(upload.uri)
        with _errors(upload.uri):
            self._client(upload.uri).abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload.number)

    def presign(self, uri: str, expires_s: int) -> str:
        bucket, key = split_s3(uri)
        with _errors(uri):
            return self._client(uri).generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=expires_s
            )

    def _client(self, uri: str) -> S3Client:
        access = access_for(uri)
        secret = access.secret_key.get_secret_value() if access and access.secret_key else None
        identity = (
            (access.endpoint_url, access.region, access.access_key, secret, access.anonymous)
            if access
            else ()
        )
        patient = identity in _answered
        with self._lock:
            if (patient, *identity) not in self._clients:
                client = _make_client(access, _PATIENT_ATTEMPTS if patient else _ATTEMPTS)
                client.meta.events.register("after-call.s3", lambda **_: _answered.add(identity))
                self._clients[patient, *identity] = client
            return self._clients[patient, *identity]


def _make_client(access: StoreAccess | None, attempts: int) -> S3Client:
    """A client for one access; without one, AWS's ordinary chain of credentials applies."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
        signature_version=UNSIGNED if access and access.anonymous else "s3v4",
    )
    session = boto3.session.Session()
    if access is None:
        return session.client("s3", config=config)
    signed = not access.anonymous
    return session.client(
        "s3",
        config=config,
        endpoint_url=access.endpoint_url,
        region_name=access.region,
        aws_access_key_id=access.access_key if signed else None,
        aws_secret_access_key=access.secret_key.get_secret_value() if signed and access.secret_key else None,
    )


def _won(client: S3Client, bucket: str, key: str, attempt: str) -> str | None:
    """The etag, when the object there is this very attempt's: an answer was lost, the request repeated."""
    there = _attempt_of(client, bucket, key)
    return there[0] if there is not None and there[1] == attempt else None


def _attempt_of(client: S3Client, bucket: str, key: str) -> tuple[str, str | None] | None:
    """Etag and attempt of the object that is there; None where there is none."""
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if _code(error) in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    return head["ETag"], head["Metadata"].get("attempt")


def _put_file(client: S3Client, bucket: str, key: str, path: Path, extra: dict[str, Any]) -> str:
    with path.open("rb") as file:
        return client.put_object(Bucket=bucket, Key=key, Body=file, **extra)["ETag"]


def _put_parts(
    client: S3Client, bucket: str, key: str, path: Path, extra: dict[str, Any], condition: dict[str, Any]
) -> str:
    """A multipart upload whose last request carries the condition."""
    upload = client.create_multipart_upload(Bucket=bucket, Key=key, **extra)["UploadId"]
    parts: list[Any] = []
    try:
        with path.open("rb") as file:
            while chunk := file.read(PART_BYTES):
                number = len(parts) + 1
                answer = client.upload_part(
                    Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=chunk
                )
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        return client.complete_multipart_upload(
            Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
        )["ETag"]
    except BaseException:
        # Parts of an upload that is never completed would stay in the store, unseen and paid for.
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        raise


def _code(error: Any) -> str:
    answer = error.response
    return str(answer.get("Error", {}).get("Code") or answer["ResponseMetadata"]["HTTPStatusCode"])


def _whole(ask: Callable[[], Any]) -> tuple[bytes, Any]:
    """Body and answer of a request; asked again where the body breaks off, which boto3 does not do."""
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError

    for attempt in range(_BODY_TRIES):
        answer = ask()
        try:
            return answer["Body"].read(), answer
        except (ConnectionError, HTTPClientError, IncompleteReadError):
            if attempt + 1 == _BODY_TRIES:
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _fetch(client: S3Client, uri: str, file: BinaryIO) -> None:
    """The object into an empty file; where its body breaks off, the rest of the same object is asked for.

    Raises:
        StoreError: the object was replaced meanwhile, or nothing of its rest comes any more.
    """
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    bucket, key = split_s3(uri)
    etag, size, done = "", 0, 0
    failures, best = 0, 0  # failures since this many bytes were there
    while True:
        rest: dict[str, Any] = {"Range": f"bytes={done}-", "IfMatch": etag} if etag and done else {}
        try:
            answer = client.get_object(Bucket=bucket, Key=key, **rest)
        except ClientError as error:
            if rest and _code(error) in ("PreconditionFailed", "412", "InvalidRange", "416"):
                raise _replaced(uri) from error
            raise
        if etag not in ("", answer["ETag"]):
            raise _replaced(uri)
        if answer["ResponseMetadata"]["HTTPStatusCode"] != HTTPStatus.PARTIAL_CONTENT:
            # The whole object: the first answer, or of a server that knows no ranges.
            etag, size, done = answer["ETag"], answer["ContentLength"], 0
            file.seek(0)
        reason: Exception | None = None
        try:
            for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
        except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
            reason = error
        if done == size:
            return
        # A body that goes on by a good piece each time comes to its end, however often it breaks off.
        failures, best = (1, done) if done >= best + _PROGRESS_BYTES else (failures + 1, best)
        if failures == _BODY_TRIES:
            raise StoreError(
                f"The body of {uri} breaks off after {done} of {size} bytes ({reason}).",
                "Check the network to the store and its log, then try again.",
            ) from reason
        time.sleep(0.2 * 2 ** (failures - 1))


def _replaced(uri: str) -> StoreError:
    return StoreError(f"{uri} was replaced while it was downloaded.", "Start again: it is then read anew.")


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """botocore's errors as ours, naming the URI, with a remedy."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code == "NoSuchBucket":
            raise NotFoundError(
                f"There is no bucket s3://{split_s3(uri)[0]}.", "Create it, or correct the address."
            ) from error
        if code in ("NoSuchKey", "NotFound", "404"):
            raise NotFoundError(
                f"There is no object at {uri}.", "Check the address, or upload the object first."
            ) from error
        if code in _REFUSED:
            raise StoreError(
                f"The store refused access to {uri} ({code}).",
                "Check the access key, the secret and the rights of this identity in CHIPLINE_STORES.",
            ) from error
        message = error.response.get("Error", {}).get("Message", "")
        raise StoreError(
            f"The store failed on {uri} ({code}: {message}).", "Look at the store's own log, then try again."
        ) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StoreError(
            f"There are no credentials for {uri}.",
            "Add its prefix to CHIPLINE_STORES with access_key and secret_key, or with anonymous=true.",
        ) from error
    except ParamValidationError as error:
        raise StoreError(
            f"{uri} is not a usable address ({error}).", "Write it as s3://bucket/key."
        ) from error
    except (ConnectionError, HTTPClientError) as error:
        access = access_for(uri)
        where = access.endpoint_url if access and access.endpoint_url else "AWS"
        raise StoreError(
            f"The store at {where} cannot be reached for {uri} ({error}).",
            "Check that it runs, and endpoint_url in CHIPLINE_STORES.",
        ) from error
    except BotoCoreError as error:
        raise StoreError(
            f"The request for {uri} failed ({error}).", "Check CHIPLINE_STORES, then try again."
        ) from error
