"""What has been put into a result's folder so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.store import FileRecord, Publication


@dataclass
class Outputs:
    """Files of a result on their way into the store.

    Attributes:
        publication: the folder, which stays invisible until its manifest is put.
        records: one per file.
        described: one per output, for the manifest; see ``docs/how-it-works.md``.
    """

    publication: Publication
    records: list[FileRecord] = field(default_factory=list)
    described: list[dict[str, Any]] = field(default_factory=list)

    def put(self, path: Path, media_type: str) -> None:
        """Upload a file and remove it here: the disk holds one output at a time."""
        self.records.append(self.publication.put_file(path.name, path, media_type))
        path.unlink()

    def put_bytes(self, name: str, data: bytes, media_type: str) -> None:
        """Upload a small file."""
        self.records.append(self.publication.put_file(name, data, media_type))
