from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from tasks.errors import NotFoundError, PreconditionFailedError, StoreError
from tasks.settings import settings
from tasks.store import ObjectStore, current, gdal_config, gdal_options, gdal_path, join, set_current
from tests.fault.faulty_proxy import faulty_proxy

UseStores = Callable[..., ObjectStore]


@pytest.fixture
def use_stores(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> UseStores:  # noqa: ARG001 - cleans up
    """A store under other accesses than the admin's."""

    def use(**access: Any) -> ObjectStore:
        monkeypatch.setenv("CHIPLINE_STORES", json.dumps([{"prefix": "s3://unit", **access}]))
        settings.cache_clear()
        return ObjectStore()

    return use


def test_put_get_range_stat_list_delete(store: ObjectStore, folder: str) -> None:
    uri = join(folder, "a b/é.bin")
    etag = store.put(uri, b"hello", content_type="text/plain")
    assert store.get_versioned(uri) == (b"hello", etag)
    assert [store.get_range(uri, *ends) for ends in ((1, 3), (3, 99), (5, 2), (0, 0))] == [
        b"ell",
        b"lo",
        b"",
        b"",
    ]
    info = store.stat(uri)
    assert (info.size, info.etag, info.sha256 is not None) == (5, etag, True)
    store.put(join(folder, "a"), b"")
    assert [(i.uri, i.size) for i in store.list(folder + "/")] == [(join(folder, "a"), 0), (uri, 5)]
    store.delete(uri)
    store.delete(uri)
    assert not store.exists(uri)


def test_a_listing_goes_beyond_one_page(store: ObjectStore, folder: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: store.put(join(folder, f"{i:04}"), b"x"), range(1100)))
    listed = [info.uri.rsplit("/")[-1] for info in store.list(folder)]
    assert listed == [f"{i:04}" for i in range(1100)]


def test_one_winner_of_eight(store: ObjectStore, folder: str) -> None:
    for race in range(2):
        start = Barrier(8)

        def create(racer: int, race: int = race, start: Barrier = start) -> int | None:
            start.wait()
            try:
                store.put(join(folder, f"race-{race}"), str(racer).encode(), if_none_match=True)
            except PreconditionFailedError:
                return None
            return racer

        with ThreadPoolExecutor(8) as pool:
            winners = [racer for racer in pool.map(create, range(8)) if racer is not None]
        assert [str(winner).encode() for winner in winners] == [store.get(join(folder, f"race-{race}"))]


def test_no_swap_is_lost(store: ObjectStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(lambda i: set_current(store, "packages", "swap", f"s3://b/{i}"), range(18)))
    assert sorted(numbers) == list(range(1, 19))
    assert current(store, "packages", "swap") is not None


def test_conditions_on_what_is_not_there(store: ObjectStore, folder: str) -> None:
    with pytest.raises(PreconditionFailedError):
        store.put(join(folder, "x"), b"", if_match='"5d41402abc4b2a76b9719d911017c592"')
    assert not store.exists(join(folder, "x"))


@pytest.mark.parametrize("single", [True, False])
def test_files_in_one_request_and_in_parts(
    store: ObjectStore, folder: str, single: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(1).bytes(11 * 1024 * 1024 + 3)
    (tmp_path / "in").write_bytes(content)
    if not single:
        monkeypatch.setattr("tasks.store._s3.SINGLE_PUT_BYTES", 1)
        monkeypatch.setattr("tasks.store._s3.PART_BYTES", 5 * 1024 * 1024)
    uri = join(folder, "big")
    etag = store.upload(tmp_path / "in", uri, if_none_match=True)
    assert store.stat(uri).etag == etag
    assert etag.endswith('-3"') != single
    with pytest.raises(PreconditionFailedError):
        store.upload(tmp_path / "in", uri, if_none_match=True)
    store.download(uri, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_a_download_goes_on_where_it_broke_off(
    store: ObjectStore, folder: str, use_stores: UseStores, server: Any, tmp_path: Path
) -> None:
    content, uri = np.random.default_rng(3).bytes(6 * 1024 * 1024), join(folder, "big")
    store.put(uri, content)
    with faulty_proxy(int(server.endpoint_url.rpartition(":")[2])) as proxy:
        behind = use_stores(
            endpoint_url=f"http://127.0.0.1:{proxy.port}",
            access_key="admin-key",
            secret_key="admin-secret-of-the-test",
        )
        proxy.fault, proxy.share = "truncate", 0.01
        behind.download(uri, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    assert proxy.met["truncate"]


def test_a_repeated_request_does_not_lose_against_itself(
    store: ObjectStore, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first answer is lost on the way: the object is written, and botocore's repetition gets 412.
    client = store._s3._client(folder)
    real, calls = client.put_object, []

    def put_twice(**request: Any) -> Any:
        calls.append(real(**request))
        return real(**request)

    monkeypatch.setattr(client, "put_object", put_twice)
    (tmp_path / "x").write_bytes(b"mine")
    etag = store.upload(tmp_path / "x", join(folder, "x"), if_none_match=True)
    assert [call["ETag"] for call in calls] == [etag]
    with pytest.raises(PreconditionFailedError):
        store.upload(tmp_path / "x", join(folder, "x"), if_none_match=True)


def test_a_signed_link_needs_no_credentials(store: ObjectStore, folder: str) -> None:
    store.put(join(folder, "x"), b"hello")
    link = store.presign(join(folder, "x"), 60)
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == b"hello"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(link.split("?")[0])


def test_errors_tell_what_to_do(store: ObjectStore, folder: str, use_stores: UseStores, server: Any) -> None:
    with pytest.raises(NotFoundError, match=f"{folder}/none.*Check the address"):
        store.get(join(folder, "none"))
    with pytest.raises(NotFoundError):
        store.download(join(folder, "none"), Path("none"))
    store.put(join(folder, "x"), b"1")
    url = server.endpoint_url
    for access in (
        {"endpoint_url": url, "access_key": "admin-key", "secret_key": "wrong"},
        {"endpoint_url": url, "access_key": "nobody", "secret_key": "wrong"},
        {"endpoint_url": url, "anonymous": True},
    ):
        refused = use_stores(**access)
        for attempt in (refused.get, refused.exists):
            with pytest.raises(StoreError, match=r"refused access to .*CHIPLINE_STORES"):
                attempt(join(folder, "x"))
    away = use_stores(endpoint_url="http://127.0.0.1:9", access_key="k", secret_key="s")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9 cannot be reached"):
        away.get(join(folder, "x"))
    reader = use_stores(endpoint_url=url, access_key="reader-key", secret_key="reader-secret-of-the-test")
    assert reader.get(join(folder, "x")) == b"1"
    with pytest.raises(StoreError, match="refused access"):
        reader.put(join(folder, "x"), b"2")


def test_a_missing_bucket_is_named(use_stores: UseStores, server: Any) -> None:
    access = {
        "endpoint_url": server.endpoint_url,
        "access_key": "admin-key",
        "secret_key": "admin-secret-of-the-test",
    }
    with pytest.raises(NotFoundError, match="no bucket s3://no-such-bucket"):
        use_stores(**access, prefix="s3://").get("s3://no-such-bucket/x")


@pytest.mark.usefixtures("store")
def test_gdal_reads_and_writes_through_the_same_access(folder: str) -> None:
    import rasterio

    uri = join(folder, "r.tif")
    values = np.arange(64, dtype="uint8").reshape(1, 8, 8)
    profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:32612"}
    with rasterio.Env(**gdal_options(uri)):
        transform = rasterio.transform.from_origin(0, 8, 1, 1)
        with rasterio.open(gdal_path(uri), "w", **profile, transform=transform) as target:
            target.write(values)
        with rasterio.open(gdal_path(uri)) as source:
            assert np.array_equal(source.read(), values)


@pytest.mark.usefixtures("store")
def test_pyogrio_reads_through_the_same_access(folder: str, tmp_path: Path, store: ObjectStore) -> None:
    import geopandas
    import pyogrio
    from shapely import Point

    frame = geopandas.GeoDataFrame({"a": [1]}, geometry=[Point(1, 2)], crs="EPSG:4326")
    frame.to_file(tmp_path / "p.gpkg", engine="pyogrio")
    store.upload(tmp_path / "p.gpkg", join(folder, "p.gpkg"))
    config = gdal_config(folder)
    pyogrio.set_gdal_config_options(config)
    try:
        assert len(geopandas.read_file(gdal_path(join(folder, "p.gpkg")), engine="pyogrio")) == 1
    finally:
        pyogrio.set_gdal_config_options(dict.fromkeys(config))
