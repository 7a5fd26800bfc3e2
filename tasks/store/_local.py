"""Objects as files below a local path, with the rules of an S3 store.

An etag is the SHA-256 of the content. A write goes to a hidden temporary file beside its target and becomes
visible in one step; conditional writes hold a lock on the folder, so that they see what they replace.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from tasks.errors import NotFoundError, PreconditionFailedError, StoreError
from tasks.store._types import HalfUpload, ObjectInfo
from tasks.store.uris import local_path

# What makes the names of temporary files this process' own.
_PROCESS = uuid.uuid4().hex
_numbers = itertools.count()


def _temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    # A lock on the folder itself leaves no lock file behind and holds between threads and processes.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFoundError(f"There is no object at {uri}.", "Check the path, or create the file.") from error
    except PermissionError as error:
        raise StoreError(f"Access to {uri} was refused.", "Check the permissions of the path.") from error


class LocalBackend:
    """The verbs of the store on local paths; see :class:`tasks.store.objects.ObjectStore`."""

    def read(self, uri: str) -> tuple[bytes, str]:
        with _errors(uri):
            data = local_path(uri).read_bytes()
        return data, hashlib.sha256(data).hexdigest()

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        with _errors(uri), local_path(uri).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def put(
        self,
        uri: str,
        source: bytes | Path,
        *,
        if_none_match: bool,
        if_match: str | None,
        content_type: str | None,  # noqa: ARG002 - a file carries no content type
        sha256: str | None = None,
    ) -> str:
        # Texts, not paths: chips are many, and paths cost more here than the system's calls.
        path = os.fspath(uri.removeprefix("file://"))
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f".{name[:150]}.{_PROCESS}-{os.getpid()}-{next(_numbers)}.part")  # noqa: PTH118
        with _errors(uri):
            try:
                etag = _write(source, temporary, sha256)
            except FileNotFoundError:
                # Looked for only now: most folders are there already.
                os.makedirs(folder, exist_ok=True)  # noqa: PTH103
                etag = _write(source, temporary, sha256)
            try:
                self._make_visible(temporary, path, uri, if_none_match, if_match)
            finally:
                _remove(temporary)
        return etag

    @staticmethod
    def _make_visible(temporary: str, path: str, uri: str, if_none_match: bool, if_match: str | None) -> None:
        if if_none_match:
            try:
                # Fails where there is anything, and so needs no lock.
                os.link(temporary, path)
            except FileExistsError as error:
                _refuse_folder(path, uri)
                raise PreconditionFailedError(
                    f"{uri} exists already.", "Read the existing object, or write under another key."
                ) from error
            return
        target = Path(path)
        with _folder_lock(target.parent):
            _refuse_folder(path, uri)
            if if_match is not None and (not target.exists() or file_sha256(target) != if_match):
                raise PreconditionFailedError(
                    f"{uri} has changed since it was read.", "Read it again and repeat the change."
                )
            Path(temporary).replace(target)

    def download(self, uri: str, path: Path) -> None:
        with _errors(uri):
            shutil.copyfile(local_path(uri), path)

    def stat(self, uri: str) -> ObjectInfo:
        path = local_path(uri)
        with _errors(uri):
            if path.is_dir():
                raise IsADirectoryError(uri)
            status = path.stat()
            digest = file_sha256(path)
        return ObjectInfo(uri, status.st_size, digest, _time(status), digest)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        base = prefix.removeprefix("file://")
        # Names come back the way the prefix was written, so that prefix and URI can be compared.
        start = base[: base.rfind("/") + 1]
        if Path(start).is_dir():
            yield from self._walk(start, base)

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        entries = [entry for entry in os.scandir(folder or ".") if not _temporary(entry.name)]
        # S3's order: by the bytes of the whole key, in which a folder's name ends with a slash.
        for entry in sorted(entries, key=lambda e: os.fsencode(e.name + "/" * e.is_dir())):
            name = folder + entry.name
            if entry.is_dir():
                inner = name + "/"
                if inner.startswith(prefix) or prefix.startswith(inner):
                    yield from self._walk(inner, prefix)
            elif name.startswith(prefix) and entry.is_file():
                status = entry.stat()
                yield ObjectInfo(name, status.st_size, "", _time(status), None)

    def delete(self, uri: str) -> None:
        with _errors(uri):
            local_path(uri).unlink(missing_ok=True)

    def half_uploads(self, prefix: str) -> Iterator[HalfUpload]:
        base = prefix.removeprefix("file://")
        for folder, _, names in os.walk(base[: base.rfind("/") + 1]):
            for name in filter(_temporary, names):
                path = os.path.join(folder, name)  # noqa: PTH118
                with suppress(FileNotFoundError):
                    status = os.stat(path)  # noqa: PTH116
                    meant = os.path.join(folder, name[1:].rpartition(".part")[0].rpartition(".")[0])  # noqa: PTH118
                    if meant.startswith(base):
                        yield HalfUpload(meant, path, status.st_size, _time(status))

    def abandon(self, upload: HalfUpload) -> None:
        _remove(upload.number)

    def presign(self, uri: str, expires_s: int) -> str:  # noqa: ARG002 - a file needs no signature
        return local_path(uri).absolute().as_uri()


def _write(source: bytes | Path, target: str, sha256: str | None) -> str:
    """The source as a new file; its SHA-256. What a failed attempt has written is removed."""
    try:
        if isinstance(source, bytes):
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                left = memoryview(source)
                while left:
                    left = left[file.write(left) :]
            return sha256 or hashlib.sha256(source).hexdigest()
        shutil.copyfile(source, target)
        return file_sha256(Path(target))
    except BaseException:
        _remove(target)
        raise


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def _refuse_folder(path: str, uri: str) -> None:
    if Path(path).is_dir():
        raise StoreError(f"{uri} is a folder.", "Write the object under another name.")


def _time(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, UTC)
