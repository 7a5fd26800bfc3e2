"""What has been put into a result's folder so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.infer.stac import ResultAsset
from tasks.store import FileRecord, Publication


@dataclass
class Outputs:
    """Files of a result on their way into the store.

    Attributes:
        publication: the folder, which stays invisible until its manifest is put.
        records: one per file.
        described: one per output, for the manifest; see ``docs/how-it-works.md``.
        assets: of the one item of a result that is made of another one.
        remarks: what a person should know.
    """

    publication: Publication
    records: list[FileRecord] = field(default_factory=list)
    described: list[dict[str, Any]] = field(default_factory=list)
    assets: dict[str, ResultAsset] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def put(self, path: Path, media_type: str) -> None:
        """Upload a file and remove it here: the disk holds one output at a time."""
        self.records.append(self.publication.put_file(path.name, path, media_type))
        path.unlink()

    def put_bytes(self, name: str, data: bytes, media_type: str) -> None:
        """Upload a small file."""
        self.records.append(self.publication.put_file(name, data, media_type))
