from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.errors import StoreError
from tasks.store import ObjectStore, current, resolve_folder, set_current
from tasks.store.pointer import pointer_uri


@pytest.mark.usefixtures("root")
def test_the_pointer_moves_and_remembers(store: ObjectStore) -> None:
    assert current(store, "packages", "trees") is None
    assert set_current(store, "packages", "trees", "s3://b/1") == 1
    assert set_current(store, "packages", "trees", "s3://b/1") == 1
    assert set_current(store, "packages", "trees", "s3://b/2") == 2
    assert current(store, "packages", "trees") == "s3://b/2"
    assert json.loads(store.get(pointer_uri("packages", "trees")))["previous"] == "s3://b/1"


def test_a_name_stands_for_its_newest_folder(store: ObjectStore, root: str) -> None:
    set_current(store, "packages", "trees", f"{root}/packages/trees/k2")
    assert resolve_folder(store, f"{root}/packages/trees/") == f"{root}/packages/trees/k2"
    assert resolve_folder(store, f"{root}/packages/trees/k1/") == f"{root}/packages/trees/k1"


@pytest.mark.usefixtures("root")
def test_no_change_is_lost(store: ObjectStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(lambda i: set_current(store, "packages", "n", f"s3://b/{i}"), range(18)))
    assert sorted(numbers) == list(range(1, 19))


@pytest.mark.usefixtures("root")
def test_a_damaged_pointer_is_named(store: ObjectStore) -> None:
    store.put(pointer_uri("packages", "n"), b"[]")
    with pytest.raises(StoreError, match="damaged"):
        current(store, "packages", "n")
