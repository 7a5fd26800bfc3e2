"""Where training data lie and which they are: by name, by address, published here or written by others."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.errors import NotFoundError, TrainingDataError
from tasks.settings import settings
from tasks.store import (
    ObjectInfo,
    ObjectStore,
    check_allowed,
    current,
    is_local,
    join,
    read_manifest,
    resolve_folder,
    run_key,
    sync_folder,
)
from tasks.training_data.reader import TrainingData, open_training_data

KIND = "training-data"
# What an export leaves in its folder from the beginning, and the manifest only at its end.
PLAN = "plan.json"


class DataFolder(BaseModel):
    """One folder of training data.

    Attributes:
        uri: the folder.
        identity: run key of a published folder; hash of the inventory of a foreign one.
        name: for people.
        details: what its manifest says about it; empty for a foreign folder.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    identity: str
    name: str
    details: dict[str, Any] = {}


def find_folder(store: ObjectStore, given: str) -> DataFolder:
    """The folder that a name or an address means; no chip is read.

    Raises:
        NotFoundError: there is none.
        BadInputError: an address that a caller may not name.
        TrainingDataError: it holds something else, or is not finished.
    """
    uri = given.rstrip("/")
    if "://" not in uri and not uri.startswith("/"):
        found = current(store, KIND, uri)
        if found is None:
            raise NotFoundError(
                f"There is no training data of the name {given!r} below {settings().root}/{KIND}.",
                "Run export_training_data with that output_location first, or give the URI of a folder.",
            )
        uri = found
    else:
        check_allowed(uri)
        uri = resolve_folder(store, uri)
    manifest = read_manifest(store, uri)
    if manifest is not None:
        if manifest.kind != KIND:
            raise TrainingDataError(
                f"{uri} holds {manifest.kind}, not training data.", "Name a folder of training data."
            )
        return DataFolder(uri=uri, identity=manifest.run_key, name=manifest.name, details=manifest.details)
    if store.exists(join(uri, PLAN)):
        raise TrainingDataError(
            f"{uri} is not finished: its chips are not all there.",
            "Wait for the run of export_training_data that writes it, or start that again.",
        )
    inventory = [
        [info.uri.removeprefix(uri), info.size, info.etag or info.modified.isoformat()]
        for info in _inventory(store, uri)
    ]
    return DataFolder(uri=uri, identity=run_key(inventory), name=uri.rsplit("/", 1)[-1])


def open_folder(store: ObjectStore, folder: DataFolder) -> TrainingData:
    """A local copy of the training data, checked against the manifest or the listing, and opened."""
    return open_training_data(sync_folder(store, folder.uri, settings().cache / KIND / folder.identity))


def _inventory(store: ObjectStore, uri: str) -> list[ObjectInfo]:
    # sorted: a listing's order is the store's own affair
    found = sorted(store.list(uri if is_local(uri) else uri + "/"), key=lambda info: info.uri)
    if not found:
        raise NotFoundError(f"There is no training data at {uri}.", "Check the address.")
    return found
