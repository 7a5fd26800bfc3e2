"""Records that the store hands out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its URI, size in bytes, etag, time of change (UTC).

    ``etag`` is what ``if_match`` takes; listings of local files leave it empty (they would read them).
    ``sha256`` is known for objects that were written through this store, None otherwise.
    """

    uri: str
    size: int
    etag: str
    modified: datetime
    sha256: str | None = None


@dataclass(frozen=True)
class HalfUpload:
    """An upload that was begun and not completed: no object, but bytes that are kept and paid for.

    ``uri`` is the object that it would become; ``number`` is the store's own name of the upload.
    """

    uri: str
    number: str
    size: int
    begun: datetime
