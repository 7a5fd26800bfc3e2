"""Immutable published folders: files first, part manifests next, the root manifest last.

A folder is visible when it has ``manifest.json``. That lists part manifests (``parts/<name>.jsonl``, one line
per file with path, size and SHA-256), so that a folder of a million files stays a stream.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import BadInputError, NotFoundError, PreconditionFailedError, StoreError
from tasks.settings import settings
from tasks.store._local import file_sha256
from tasks.store.objects import ObjectStore
from tasks.store.uris import check_allowed, check_name, check_relative, join

MANIFEST = "manifest.json"


class FileRecord(BaseModel):
    """One file of a folder: its path inside the folder, size in bytes, SHA-256 (hexadecimal)."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    sha256: str


class PartRecord(BaseModel):
    """One part manifest: where it lies in the folder, its own size and SHA-256, what it lists."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    sha256: str
    files: int
    bytes: int


class Manifest(BaseModel):
    """The root manifest of a published folder.

    ``provenance`` (times, run ids) is the only part that may differ between two runs with the same run key.
    """

    kind: str
    name: str
    run_key: str
    parameters: dict[str, Any] = {}
    inputs: list[dict[str, Any]] = []
    versions: dict[str, Any] = {}
    parts: list[PartRecord] = []
    files: int = 0
    bytes: int = 0
    details: dict[str, Any] = {}
    provenance: dict[str, Any] = {}


def run_key(value: object) -> str:
    """SHA-256 (hexadecimal) of a JSON value in canonical form: sorted keys, no blanks, no NaN.

    Raises:
        BadInputError: the value is not plain JSON.
    """
    try:
        text = json.dumps(
            _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise BadInputError(
            f"A run key cannot be made ({error}).",
            "Use finite numbers, texts, lists and dicts with text keys.",
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        # json would write the key 1 and the key "1" alike.
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key of a dict is no text")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def output_folder(kind: str, name_or_uri: str, key: str) -> str:
    """The folder of one run: below ``settings().root`` for a name, below the URI itself for a URI or path.

    Args:
        kind: ``training-data``, ``packages`` or ``outputs/<tool>``.
        name_or_uri: the output's name, or an address that the caller may write to.
        key: the run key.
    """
    if "://" in name_or_uri or name_or_uri.startswith("/"):
        check_allowed(name_or_uri)
        return join(name_or_uri, key)
    return join(settings().root, kind, check_name(name_or_uri, "an output's name"), key)


class Publication:
    """Writes one immutable folder. Several workers may write files and parts; one of them finishes.

    Args:
        store: where to.
        folder_uri: the folder, whose last segment is the run key.
    """

    def __init__(self, store: ObjectStore, folder_uri: str) -> None:
        self.store = store
        self.folder_uri = folder_uri.rstrip("/")

    def put_file(self, relative: str, data: bytes | Path, content_type: str | None = None) -> FileRecord:
        """Write one file. A leftover of an unfinished run is replaced; a published file never changes.

        Raises:
            StoreError: the folder is published and holds another content under this path.
        """
        uri = join(self.folder_uri, check_relative(relative, self.folder_uri))
        if isinstance(data, bytes):
            record = FileRecord(path=relative, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        else:
            if not data.is_file():
                raise NotFoundError(f"There is no file {data} to publish.", "Check the path.")
            record = FileRecord(path=relative, size=data.stat().st_size, sha256=file_sha256(data))
        try:
            self._write(uri, data, record, content_type, if_none_match=True)
        except PreconditionFailedError as error:
            there = self.store.stat(uri)
            if there.sha256 == record.sha256:
                return record
            if self.store.exists(join(self.folder_uri, MANIFEST)):
                raise StoreError(
                    f"{uri} is published already, with another content.",
                    "Published folders never change: run with other parameters or under another name.",
                ) from error
            self._write(uri, data, record, content_type, if_none_match=False)
        return record

    def _write(
        self,
        uri: str,
        data: bytes | Path,
        record: FileRecord,
        content_type: str | None,
        *,
        if_none_match: bool,
    ) -> None:
        if isinstance(data, bytes):
            self.store.put(
                uri,
                data,
                if_none_match=if_none_match,
                content_type=content_type,
                sha256=record.sha256,
            )
        else:
            self.store.upload(
                data, uri, if_none_match=if_none_match, content_type=content_type, sha256=record.sha256
            )

    def put_part(self, name: str, records: Iterable[FileRecord]) -> PartRecord:
        """Write the part manifest ``parts/<name>.jsonl``, sorted by path."""
        ordered = sorted(records, key=attrgetter("path"))
        text = "".join(map(_line, ordered))
        path = f"parts/{check_name(name, 'a part')}.jsonl"
        file = self.put_file(path, text.encode(), "application/x-ndjson")
        return PartRecord(
            path=path,
            size=file.size,
            sha256=file.sha256,
            files=len(ordered),
            bytes=sum(record.size for record in ordered),
        )

    def finish(self, manifest: Manifest) -> Manifest:
        """Make the folder visible. Counts of files and bytes are taken from the parts.

        Returns the manifest in force: the first one, where the same run finished before.

        Raises:
            StoreError: another run is published in this folder.
        """
        manifest = manifest.model_copy(
            update={
                "files": sum(part.files for part in manifest.parts),
                "bytes": sum(part.bytes for part in manifest.parts),
            }
        )
        uri = join(self.folder_uri, MANIFEST)
        data = (manifest.model_dump_json(indent=1) + "\n").encode()
        try:
            self.store.put(uri, data, if_none_match=True, content_type="application/json")
        except PreconditionFailedError as error:
            existing = read_manifest(self.store, self.folder_uri)
            if existing is not None and _identity(existing) == _identity(manifest):
                return existing
            raise StoreError(
                f"{self.folder_uri} is published already, by another run.",
                "Published folders never change: run with other parameters or under another name.",
            ) from error
        return manifest


def _line(record: FileRecord) -> str:
    """The record as the model writes it, in a third of the time: there are millions."""
    path = json.dumps(record.path, ensure_ascii=False)
    return f'{{"path":{path},"size":{record.size},"sha256":"{record.sha256}"}}\n'


def _identity(manifest: Manifest) -> tuple[str, str, str]:
    return manifest.kind, manifest.name, manifest.run_key


def read_manifest(store: ObjectStore, folder_uri: str) -> Manifest | None:
    """The root manifest of a published folder; None for a folder that has none (unfinished or foreign).

    Raises:
        StoreError: there is one that cannot be understood.
    """
    uri = join(folder_uri, MANIFEST)
    try:
        data = store.get(uri)
    except NotFoundError:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(
            f"{uri} is no manifest of a published folder.", "Remove it, or name another folder."
        ) from error


def iter_files(store: ObjectStore, folder_uri: str) -> Iterator[FileRecord]:
    """The files of a published folder, streamed from its part manifests, each of which is verified.

    Raises:
        NotFoundError: the folder is not published.
        StoreError: a part manifest is not what the root manifest says.
        BadInputError: a path leaves the folder.
    """
    manifest = read_manifest(store, folder_uri)
    if manifest is None:
        raise NotFoundError(
            f"{folder_uri} has no {MANIFEST}.",
            "Wait until the run that writes it has finished, or start it again.",
        )
    for part in manifest.parts:
        data = store.get(join(folder_uri, check_relative(part.path, folder_uri)))
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise StoreError(
                f"{join(folder_uri, part.path)} is not what the manifest says.",
                "The folder was changed after it was published: write it again.",
            )
        for line in data.splitlines():
            record = FileRecord.model_validate_json(line)
            check_relative(record.path, folder_uri)
            yield record
