"""A folder of the store as a local folder: verified, resumable, visible only when complete."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import BadInputError, NotFoundError, StoreError
from tasks.store._local import file_sha256
from tasks.store.objects import ObjectStore
from tasks.store.publication import MANIFEST, iter_files
from tasks.store.uris import check_relative, is_local, join, local_path

# Written into a complete copy: where it came from and in which state.
MARK = ".chipline-sync.json"
THREADS = 8


def sync_folder(store: ObjectStore, folder_uri: str, into: Path) -> Path:
    """A local copy of a folder in the store at ``into``; a local folder is returned as it is.

    A published folder is read through its manifest and every file is checked (size and SHA-256). A foreign
    folder is copied as it is. An interrupted copy goes on where it stopped; a complete one costs one request.

    Raises:
        NotFoundError: nothing lies there.
        StoreError: a file is not what the manifest says.
        BadInputError: a path leaves the folder, or ``into`` holds something else.
    """
    if is_local(folder_uri):
        path = local_path(folder_uri)
        if not path.is_dir():
            raise NotFoundError(f"There is no folder {path}.", "Check the path.")
        return path
    folder_uri = folder_uri.rstrip("/")
    into = into.absolute()
    into.parent.mkdir(parents=True, exist_ok=True)
    with _lock(into.parent / f".{into.name}.lock"):
        published, state = _state(store, folder_uri)
        mark = json.dumps({"folder": folder_uri, "state": state})
        if into.exists() and _read(into / MARK) == mark:
            return into
        if into.exists() and not (into / MARK).exists() and any(into.iterdir()):
            raise BadInputError(
                f"{into} holds files that are no copy of a folder of the store.",
                "Name an empty or a new folder.",
            )
        partial = into.parent / f".{into.name}.partial"
        partial.mkdir(exist_ok=True)
        files = _published(store, folder_uri) if published else _foreign(store, folder_uri)
        wanted = _download_all(store, folder_uri, files, partial)
        _remove_others(partial, wanted)
        (partial / MARK).write_text(mark)
        if into.exists():
            shutil.rmtree(into)
        partial.replace(into)
    return into


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _state(store: ObjectStore, folder_uri: str) -> tuple[bool, str]:
    """Whether the folder is published, and a hash that changes with its content."""
    try:
        return True, hashlib.sha256(store.get(join(folder_uri, MANIFEST))).hexdigest()
    except NotFoundError:
        digest = hashlib.sha256()
        count = 0
        for info in store.list(folder_uri + "/"):
            digest.update(f"{info.uri}\0{info.size}\0{info.etag}\n".encode())
            count += 1
        if count == 0:
            raise NotFoundError(f"There is nothing under {folder_uri}/.", "Check the address.") from None
        return False, digest.hexdigest()


def _published(store: ObjectStore, folder_uri: str) -> Iterator[tuple[str, int, str | None]]:
    for record in iter_files(store, folder_uri):
        yield record.path, record.size, record.sha256


def _foreign(store: ObjectStore, folder_uri: str) -> Iterator[tuple[str, int, str | None]]:
    for info in store.list(folder_uri + "/"):
        relative = info.uri.removeprefix(folder_uri + "/")
        yield check_relative(relative, folder_uri), info.size, None


def _download_all(
    store: ObjectStore, folder_uri: str, files: Iterable[tuple[str, int, str | None]], target: Path
) -> set[str]:
    """Fetch what is missing or wrong, with a bounded number of downloads under way."""
    wanted: set[str] = set()
    pending: set[Future[None]] = set()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for relative, size, sha256 in files:
                wanted.add(relative)
                pending.add(pool.submit(_fetch, store, folder_uri, target, relative, size, sha256))
                if len(pending) >= 8 * THREADS:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in pending:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return wanted


def _fetch(
    store: ObjectStore, folder_uri: str, target: Path, relative: str, size: int, sha256: str | None
) -> None:
    path = target / relative
    # A foreign folder gives no SHA-256 to trust an earlier copy by, so it is fetched again.
    if sha256 is not None and path.is_file() and path.stat().st_size == size and file_sha256(path) == sha256:
        return
    uri = join(folder_uri, relative)
    store.download(uri, path)
    if path.stat().st_size != size or (sha256 is not None and file_sha256(path) != sha256):
        path.unlink()
        raise StoreError(
            f"{uri} is not what its folder's manifest or listing says.",
            "The folder was changed after it was published, or is being written: write it again.",
        )


def _remove_others(folder: Path, wanted: set[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in wanted:
            path.unlink()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
