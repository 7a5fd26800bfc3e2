"""The one place where bytes reach and leave the object store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import BadInputError, NotFoundError
from tasks.store._local import LocalBackend
from tasks.store._s3 import S3Backend
from tasks.store._types import HalfUpload, ObjectInfo
from tasks.store.uris import is_local, is_s3, local_path


class ObjectStore:
    """Objects by URI, ``s3://bucket/key`` or a local path, with the same rules; safe from many threads.

    Endpoints and credentials come from ``settings().stores``, per bucket or prefix.
    Every verb raises :class:`~tasks.errors.NotFoundError` for a missing object and
    :class:`~tasks.errors.StoreError` when the store refuses or cannot be reached.
    """

    def __init__(self) -> None:
        self._s3 = S3Backend()
        self._local = LocalBackend()

    def _backend(self, uri: str) -> S3Backend | LocalBackend:
        if is_s3(uri):
            return self._s3
        if is_local(uri):
            return self._local
        raise BadInputError(
            f"The store cannot work on {uri}.",
            "Use an s3:// address or a local path, or upload the file first.",
        )

    def get(self, uri: str) -> bytes:
        """The whole object."""
        return self._backend(uri).read(uri)[0]

    def get_versioned(self, uri: str) -> tuple[bytes, str]:
        """The whole object and the etag of just this content, for a later ``if_match``."""
        return self._backend(uri).read(uri)

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``; fewer at the object's end, none past it."""
        return self._backend(uri).get_range(uri, start, length)

    def put(
        self,
        uri: str,
        data: bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        content_type: str | None = None,
        sha256: str | None = None,
    ) -> str:
        """Write an object in one step and return its etag.

        Args:
            uri: where to.
            data: the content.
            if_none_match: only if there is no such object yet.
            if_match: only if the object still has this etag.
            content_type: MIME type, kept by S3 stores.
            sha256: of the data, hexadecimal, where the caller knows it; spares computing it.

        Raises:
            PreconditionFailedError: the condition does not hold.
        """
        return self._backend(uri).put(
            uri,
            data,
            if_none_match=if_none_match,
            if_match=if_match,
            content_type=content_type,
            sha256=sha256,
        )

    def upload(
        self,
        path: Path,
        uri: str,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        content_type: str | None = None,
        sha256: str | None = None,
    ) -> str:
        """As :meth:`put`, from a file, which is never held in memory whole. ``sha256`` spares a reading."""
        if not path.is_file():
            raise NotFoundError(f"There is no file {path} to upload.", "Check the path.")
        return self._backend(uri).put(
            uri,
            path,
            if_none_match=if_none_match,
            if_match=if_match,
            content_type=content_type,
            sha256=sha256,
        )

    def download(self, uri: str, path: Path) -> None:
        """The object as a file, which appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name[:150]}.{uuid.uuid4().hex}.part"
        try:
            self._backend(uri).download(uri, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def stat(self, uri: str) -> ObjectInfo:
        """Size, etag and time of an object."""
        return self._backend(uri).stat(uri)

    def exists(self, uri: str) -> bool:
        """Whether there is an object at the URI; refused access is an error, not False."""
        if is_local(uri):
            return local_path(uri).is_file()
        try:
            self.stat(uri)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose URI starts with ``prefix``, in the order of the keys' bytes."""
        return self._backend(prefix).list(prefix)

    def delete(self, uri: str) -> None:
        """Remove an object; one that is not there is no error."""
        self._backend(uri).delete(uri)

    def half_uploads(self, prefix: str) -> Iterator[HalfUpload]:
        """Uploads below ``prefix`` that were begun and not completed; those of processes that live, too."""
        return self._backend(prefix).half_uploads(prefix)

    def abandon(self, upload: HalfUpload) -> None:
        """Drop what was uploaded; whoever still uploads fails."""
        self._backend(upload.uri).abandon(upload)

    def presign(self, uri: str, expires_s: int) -> str:
        """A link that reads the object without credentials for ``expires_s`` seconds."""
        return self._backend(uri).presign(uri, expires_s)
