"""Addresses that give access (tokens, signatures, passwords) travel apart from the plan, which stays.

Workers need them to read image services; whoever may read the training data must not find them there.
"""

from __future__ import annotations

import json
from typing import Any

from tasks.errors import NotFoundError
from tasks.imagery.identity import unsigned
from tasks.store import ObjectStore, join

ACCESS = "plan/access.json"


def taken_out(value: Any, secrets: dict[str, str]) -> Any:
    """A JSON value whose addresses are without what gives access.

    Args:
        value: plain JSON.
        secrets: takes the addresses as they were, by what they have become.
    """
    if isinstance(value, str):
        plain = unsigned(value)
        if plain != value:
            secrets[plain] = value
        return plain
    return _each(value, lambda item: taken_out(item, secrets))


def put_back(value: Any, secrets: dict[str, str]) -> Any:
    """The reverse of :func:`taken_out`."""
    if isinstance(value, str):
        return secrets.get(value, value)
    return _each(value, lambda item: put_back(item, secrets))


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    if isinstance(value, list):
        return [change(item) for item in value]
    return value


def save_access(store: ObjectStore, folder_uri: str, secrets: dict[str, str]) -> None:
    """Keep what was taken out until the run is finished; writes nothing where there is nothing."""
    if secrets:
        text = json.dumps(secrets).encode()
        store.put(join(folder_uri, ACCESS), text, content_type="application/json")
    else:
        remove_access(store, folder_uri)


def load_access(store: ObjectStore, folder_uri: str) -> dict[str, str]:
    """What :func:`save_access` has kept."""
    try:
        secrets: dict[str, str] = json.loads(store.get(join(folder_uri, ACCESS)))
    except NotFoundError:
        return {}
    return secrets


def remove_access(store: ObjectStore, folder_uri: str) -> None:
    """Forget it."""
    store.delete(join(folder_uri, ACCESS))
