"""The collector of garbage against a real S3 server: what goes, what stays, and races with runs."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest

from tasks.infer.collect import Collection, Collector
from tasks.infer.leases import leased
from tasks.settings import settings
from tasks.store import ObjectStore, join
from tests.integration.store.conftest import BUCKET, Server


@pytest.fixture
def root(server: Server, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A root of the test's own."""
    assert server.admin
    assert store
    address = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    monkeypatch.setenv("CHIPLINE_ROOT", address)
    settings.cache_clear()
    yield address
    settings.cache_clear()


def collect(store: ObjectStore, marked: Any = None) -> Collection:
    collector = Collector(store, older_than=timedelta(0), grace=timedelta(seconds=30), marked=marked)
    return collector.run(["SHARDS", "UNFINISHED_FOLDERS", "HALF_UPLOADS"], dry_run=False)


def put_plan(store: ObjectStore, root: str, keys: list[str]) -> str:
    uri = join(root, "outputs", "classify_pixels", "x", "a" * 64, "plan-1.json")
    store.put(uri, json.dumps({"shards": [{"key": key} for key in keys]}).encode())
    return uri


def names(store: ObjectStore, root: str) -> set[str]:
    return {item.uri.rpartition("/")[2] for item in store.list(f"{root}/shards/")}


def test_garbage_goes_and_what_runs_need_stays(store: ObjectStore, root: str, server: Server) -> None:
    keys = [f"{number:064x}" for number in range(8)]
    for key in keys:
        store.put(join(root, "shards", key), b"12345")
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="admin-key",
        aws_secret_access_key="admin-secret-of-the-test",
    )
    half = join(root, "shards", "half").removeprefix(f"s3://{BUCKET}/")
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=half)["UploadId"]
    client.upload_part(Bucket=BUCKET, Key=half, UploadId=upload, PartNumber=1, Body=b"x" * 1000)
    plan = put_plan(store, root, keys[:3])
    with leased(store, plan):
        found = collect(store)
        shards, folders, uploads = found.kinds
        assert (shards.deleted, shards.deleted_bytes, shards.needed) == (5, 25, 3)
        assert (folders.deleted, folders.needed) == (0, 1)
        assert (uploads.deleted, uploads.deleted_bytes) == (1, 1000)
        assert names(store, root) == set(keys[:3])
        assert not list(store.half_uploads(f"{root}/"))
    collect(store)
    assert not names(store, root)
    assert not store.exists(plan)


def test_no_run_loses_a_shard_that_it_saw(store: ObjectStore, root: str) -> None:
    """Runs start at random moments of a collection; each looks for shards under its lease, and finds again
    at its end all that it saw."""
    keys = [f"{number:064x}" for number in range(24)]
    for key in keys:
        store.put(join(root, "shards", key), b"12345")
    plan = put_plan(store, root, keys[::2])
    lost: list[str] = []
    saw: list[int] = []
    stop = threading.Event()

    def run() -> None:
        with leased(store, plan):
            seen = [key for key in keys[::2] if store.exists(join(root, "shards", key))]
            saw.append(len(seen))
            stop.wait(10)
            lost.extend(key for key in seen if not store.exists(join(root, "shards", key)))

    threads = [threading.Thread(target=run) for _ in range(4)]

    def begin() -> None:
        for thread in threads:
            thread.start()
            time.sleep(0.02)

    starter = threading.Thread(target=begin)
    collect(store, marked=starter.start)
    starter.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert len(saw) == len(threads)
    assert not lost
    assert not names(store, root) & set(keys[1::2])
