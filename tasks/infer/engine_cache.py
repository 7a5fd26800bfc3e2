"""What one start of a function leaves to the next one on the same machine: its engine, and how it compared.

Making an execution engine of a network takes seconds, and each part of a run starts a process. So the
function hands over what it made (``HostProcess.engine_kept``), and gets it back at its next start; a
comparison on the same tiles is not made again. Both lie in ``engines/<SHA-256 of the package>/`` of the
machine's cache.

What is kept was made in the process of a package, and a package is code from anybody. So the process itself
cannot write here; the names are hashes that are computed here; the bytes are given to no other package, and
nothing here reads them but for their SHA-256. Of packages that were not made here nothing is kept: it would
be a memory through which their code could carry something from one run into another, which containment
denies.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import NotFoundError, StoreError
from tasks.host import HostProcess
from tasks.settings import settings
from tasks.store import ObjectStore, run_key

FOLDER = "engines"
_DIGEST_BYTES = hashlib.sha256().digest_size


class EngineCache:
    """What is kept for a running function; nothing where it has no choice of engines or is from elsewhere.

    Args:
        store: writes files whole or not at all.
        host: runs the function.
        foreign: the package was not made here.
    """

    def __init__(self, store: ObjectStore, host: HostProcess, *, foreign: bool) -> None:
        self._store, self._limit = store, settings().engine_cache_mb * 2**20
        self._root = settings().cache / FOLDER
        self._folder: Path | None = None
        if host.engine_identity is not None and not foreign and self._limit:
            self._folder = self._root / host.package_digest
        self._identity = {"package": host.package_digest, "identity": host.engine_identity}
        self._arguments = dict(host.scalars)

    def engine(self) -> bytes:
        """What an earlier process of the package handed over; empty where there is nothing."""
        return self._read(self._engine_name) or b""

    def keep_engine(self, engine: bytes) -> None:
        """Keeps what the function handed over."""
        if engine:
            self._write(self._engine_name, engine)

    def verdict(self, tiles: Sequence[NDArray[Any]]) -> dict[str, Any] | None:
        """What a comparison on the very same tiles, with the same arguments, came to."""
        with suppress(ValueError):
            found = json.loads(self._read(self._verdict_name(tiles)) or b"null")
            if isinstance(found, dict) and {"execution_engine", "precision"} <= set(found):
                return found
        return None

    def keep_verdict(self, tiles: Sequence[NDArray[Any]], report: Mapping[str, Any]) -> None:
        """Keeps a comparison. One in which an engine failed is made again: the cause may be gone by then."""
        if tiles and len(report.get("refused", ())) == len(report.get("fell_back", ())):
            self._write(self._verdict_name(tiles), json.dumps(report).encode())

    @property
    def _engine_name(self) -> str:
        return run_key(self._identity) + ".engine"

    def _verdict_name(self, tiles: Sequence[NDArray[Any]]) -> str:
        digest = hashlib.sha256()
        for tile in tiles:
            digest.update(f"{tile.shape} {tile.dtype.str}".encode())
            digest.update(np.ascontiguousarray(tile).data)
        key = {**self._identity, "arguments": self._arguments, "tiles": digest.hexdigest()}
        return run_key(key) + ".json"

    def _read(self, name: str) -> bytes | None:
        if self._folder is None:
            return None
        path = self._folder / name
        with suppress(NotFoundError, StoreError, OSError):
            data = self._store.get(str(path))
            digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() == digest:
                os.utime(path)  # the ones that are used stay
                return content
            path.unlink()
        return None

    def _write(self, name: str, content: bytes) -> None:
        if self._folder is None or len(content) + _DIGEST_BYTES > self._limit:
            return
        try:
            self._store.put(str(self._folder / name), hashlib.sha256(content).digest() + content)
            self._shrink()
        except (StoreError, OSError) as error:
            # The work itself is as well off without.
            logging.getLogger(__name__).warning("The next start is not quicker: %s", error)

    def _shrink(self) -> None:
        """Removes what was not used for longest until the rest is within the limit."""
        held = []
        for path in self._root.glob("*/*"):
            with suppress(FileNotFoundError):  # another process shrinks, too
                state = path.stat()
                held.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)
            total -= size
