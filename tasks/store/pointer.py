"""``<kind>/<name>/current.json``: the newest published folder of a name, swapped losing no change."""

from __future__ import annotations

import json
import random
import time
from datetime import UTC, datetime
from typing import Any

from tasks.errors import NotFoundError, PreconditionFailedError, StoreError
from tasks.settings import settings
from tasks.store.objects import ObjectStore
from tasks.store.uris import check_name, join

_TRIES = 40


def pointer_uri(kind: str, name: str) -> str:
    """Where the pointer of a name lies."""
    return join(settings().root, kind, check_name(name, "an output's name"), "current.json")


def set_current(store: ObjectStore, kind: str, name: str, folder_uri: str) -> int:
    """Point ``name`` at a published folder and return the pointer's number, which counts the changes.

    Raises:
        StoreError: others changed the pointer all the time.
    """
    uri = pointer_uri(kind, name)
    for turn in range(_TRIES):
        before, etag = _read(store, uri)
        if before and before["folder"] == folder_uri:
            return int(before["number"])
        number = int(before["number"]) + 1 if before else 1
        data = json.dumps(
            {
                "folder": folder_uri,
                "number": number,
                "previous": before["folder"] if before else None,
                "changed": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            indent=1,
        ).encode()
        try:
            store.put(uri, data, if_none_match=etag is None, if_match=etag, content_type="application/json")
        except PreconditionFailedError:
            time.sleep(random.uniform(0.005, 0.05) * min(turn + 1, 8))
            continue
        return number
    raise StoreError(f"{uri} changes all the time.", "Try again when fewer runs finish under this name.")


def current(store: ObjectStore, kind: str, name: str) -> str | None:
    """The folder that ``name`` points at; None when nothing was published under it."""
    pointer, _ = _read(store, pointer_uri(kind, name))
    return str(pointer["folder"]) if pointer else None


def resolve_folder(store: ObjectStore, folder_uri: str) -> str:
    """The folder itself, or the newest published one where the URI is a name's (``…/<kind>/<name>``)."""
    pointer, _ = _read(store, join(folder_uri, "current.json"))
    return str(pointer["folder"]) if pointer else folder_uri.rstrip("/")


def _read(store: ObjectStore, uri: str) -> tuple[dict[str, Any] | None, str | None]:
    try:
        data, etag = store.get_versioned(uri)
    except NotFoundError:
        return None, None
    try:
        pointer = json.loads(data)
        if not isinstance(pointer["folder"], str) or not isinstance(pointer["number"], int):
            raise ValueError("wrong types")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{uri} is damaged.", "Remove it; the next run under this name writes it again."
        ) from error
    return pointer, etag
