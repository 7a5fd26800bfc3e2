"""A published result that is to be refined."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tasks.errors import BadInputError, NotFoundError, StoreError
from tasks.infer.part import load_plan
from tasks.infer.planned import Plan, PlannedClass
from tasks.store import Manifest, ObjectStore, check_allowed, join, read_manifest
from tasks.store.pointer import resolve_folder


@dataclass(frozen=True)
class Source:
    """A published result.

    Attributes:
        folder: where it lies.
        manifest: of the folder.
        classes: of its package.
    """

    folder: str
    manifest: Manifest
    classes: list[PlannedClass]

    def outputs(self, ending: str) -> list[dict[str, Any]]:
        """What the manifest says of the files with this ending."""
        return [item for item in self.manifest.details["outputs"] if item["path"].endswith(ending)]


def plan_of(store: ObjectStore, source: Source) -> Plan | None:
    """The plan that the result was made by; None where another version of Chipline made it."""
    for found in store.list(join(source.folder, "plan-")):
        with suppress(StoreError):
            return load_plan(store, found.uri)
    return None


def source_of(store: ObjectStore, uri: str) -> Source:
    """The result at a URI, or the newest of the name that the URI stands for.

    Raises:
        NotFoundError: nothing was published there.
        BadInputError: it is no result that can be refined.
    """
    check_allowed(uri)
    folder = resolve_folder(store, uri)
    manifest = read_manifest(store, folder)
    if manifest is None:
        raise NotFoundError(
            f"There is no published result at {uri}.",
            "Name the folder, or the name, of a result of classify_pixels, detect_change or detect_objects.",
        )
    if manifest.kind not in ("outputs/classify_pixels", "outputs/detect_change", "outputs/detect_objects"):
        raise BadInputError(
            f"{uri} holds {manifest.kind}, which cannot be refined.",
            "Name a result of classify_pixels, detect_change or detect_objects.",
        )
    classes = [PlannedClass.model_validate(item) for item in manifest.details["classes"]]
    return Source(folder, manifest, classes)
