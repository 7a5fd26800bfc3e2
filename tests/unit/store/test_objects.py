from __future__ import annotations

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import BadInputError, NotFoundError, PreconditionFailedError, StoreError
from tasks.store import ObjectStore


def test_put_get_stat_delete(store: ObjectStore, tmp_path: Path) -> None:
    uri = f"{tmp_path}/a/b/c.bin"
    etag = store.put(uri, b"hello")
    assert etag == hashlib.sha256(b"hello").hexdigest()
    assert store.get(uri) == b"hello"
    assert store.get_versioned(uri) == (b"hello", etag)
    info = store.stat(uri)
    assert (info.size, info.etag) == (5, etag)
    assert store.exists(uri)
    store.delete(uri)
    store.delete(uri)
    assert not store.exists(uri)


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 50), st.integers(0, 50))
def test_a_range_is_a_slice(data: bytes, start: int, length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ObjectStore()
        store.put(f"{folder}/x", data)
        assert store.get_range(f"{folder}/x", start, length) == data[start : start + length]


def test_conditions(store: ObjectStore, tmp_path: Path) -> None:
    uri = f"{tmp_path}/x"
    with pytest.raises(PreconditionFailedError):
        store.put(uri, b"0", if_match="0" * 64)
    first = store.put(uri, b"1", if_none_match=True)
    with pytest.raises(PreconditionFailedError, match="exists already"):
        store.put(uri, b"2", if_none_match=True)
    second = store.put(uri, b"2", if_match=first)
    with pytest.raises(PreconditionFailedError, match="has changed"):
        store.put(uri, b"3", if_match=first)
    assert store.get_versioned(uri) == (b"2", second)


def test_one_winner_of_eight_and_no_lost_swap(store: ObjectStore, tmp_path: Path) -> None:
    uri = f"{tmp_path}/race"

    def pad(number: int) -> bytes:
        # Long enough that a comparison without a lock would be overtaken.
        return str(number).encode().ljust(500_000)

    def create(racer: int) -> int:
        try:
            store.put(uri, str(racer).encode(), if_none_match=True)
        except PreconditionFailedError:
            return 0
        return 1

    def count(_: int) -> None:
        while True:
            data, etag = store.get_versioned(f"{tmp_path}/count")
            try:
                store.put(f"{tmp_path}/count", pad(int(data) + 1), if_match=etag)
            except PreconditionFailedError:
                continue
            return

    store.put(f"{tmp_path}/count", pad(0))
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1
        list(pool.map(count, range(16)))
    assert int(store.get(f"{tmp_path}/count")) == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count", "race"]


def test_errors_name_the_uri_and_a_remedy(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no object at .*/none\. Check"):
        store.get(f"{tmp_path}/none")
    with pytest.raises(NotFoundError):
        store.stat(str(tmp_path))
    with pytest.raises(NotFoundError):
        store.upload(tmp_path / "none", f"{tmp_path}/x")
    with pytest.raises(StoreError, match="is a folder"):
        store.put(str(tmp_path), b"")
    with pytest.raises(BadInputError, match="upload the file first"):
        store.get("https://example.org/x")


def test_a_failed_download_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        store.download(f"{tmp_path}/none", tmp_path / "to" / "x")
    assert list((tmp_path / "to").iterdir()) == []


def test_upload_and_download(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abc" * 1000)
    etag = store.upload(tmp_path / "in", f"{tmp_path}/object", if_none_match=True)
    assert etag == hashlib.sha256(b"abc" * 1000).hexdigest()
    store.download(f"{tmp_path}/object", tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out").read_bytes() == b"abc" * 1000


names = st.text("ab-./é", min_size=1, max_size=4).filter(lambda s: s.strip(".") != "" and "/" not in s)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@settings(max_examples=60, deadline=None)
@given(st.sets(paths, max_size=8), paths, st.integers(0, 5))
def test_a_listing_is_a_string_prefix_in_byte_order(keys: set[str], path: str, length: int) -> None:
    # A file cannot be a folder too, which S3 would allow.
    keys = {key for key in keys if not any(other.startswith(key + "/") for other in keys)}
    prefix = path[:length]
    with tempfile.TemporaryDirectory() as folder:
        store = ObjectStore()
        for key in keys:
            store.put(f"{folder}/{key}", b"x")
        listed = [info.uri for info in store.list(f"{folder}/{prefix}")]
        expected = sorted((k for k in keys if k.startswith(prefix)), key=str.encode)
        assert listed == [f"{folder}/{key}" for key in expected]


def test_temporary_files_are_not_listed(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / ".x.0123.part").touch()
    store.put(f"{tmp_path}/x", b"")
    assert [info.uri for info in store.list(f"{tmp_path}/")] == [f"{tmp_path}/x"]
    assert list(store.list(f"{tmp_path}/none/")) == []
