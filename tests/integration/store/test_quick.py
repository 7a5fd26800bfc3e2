"""Small objects go through obstore, with the same rules; whatever fails there, boto3 does or explains."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import obstore
import pytest

from tasks.errors import PreconditionFailedError
from tasks.store import ObjectStore, join


@pytest.fixture
def boto3_puts(store: ObjectStore, folder: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that boto3 is asked to write."""
    client = store._s3._client(folder)
    real, keys = client.put_object, []

    def put(**request: Any) -> Any:
        keys.append(request["Key"])
        return real(**request)

    monkeypatch.setattr(client, "put_object", put)
    return keys


def test_a_quick_put_is_as_any_other(store: ObjectStore, folder: str, boto3_puts: list[str]) -> None:
    uri = join(folder, "images", "000000000.tif")
    etag = store.put(uri, b"pixels", if_none_match=True, content_type="image/tiff")
    assert boto3_puts == []
    info = store.stat(uri)
    assert (info.etag, info.size) == (etag, 6)
    assert info.sha256 == hashlib.sha256(b"pixels").hexdigest()
    head = store._s3._client(uri).head_object(Bucket="unit", Key=uri.removeprefix("s3://unit/"))
    assert head["ContentType"] == "image/tiff"
    # Its etag is good for a conditional write.
    assert store.put(uri, b"changed", if_match=etag) != etag
    assert store.get(uri) == b"changed"


def test_what_is_there_stays_and_is_not_sent_again(
    store: ObjectStore, folder: str, boto3_puts: list[str]
) -> None:
    uri = join(folder, "x")
    store.put(uri, b"first", if_none_match=True)
    with pytest.raises(PreconditionFailedError, match="exists already"):
        store.put(uri, b"second", if_none_match=True)
    assert (store.get(uri), boto3_puts) == (b"first", [])
    store.put(uri, b"third")
    assert store.get(uri) == b"third"


def test_a_repeated_quick_request_does_not_lose_against_itself(
    store: ObjectStore, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = obstore.put

    def put_twice(*arguments: Any, **options: Any) -> Any:
        real(*arguments, **options)
        return real(*arguments, **options)

    monkeypatch.setattr(obstore, "put", put_twice)
    etag = store.put(join(folder, "x"), b"mine", if_none_match=True)
    assert store.stat(join(folder, "x")).etag == etag


def test_boto3_takes_over_and_in_the_end_for_good(
    store: ObjectStore, folder: str, boto3_puts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fail(*_: Any, **__: Any) -> Any:
        tries.append(1)
        raise obstore.exceptions.GenericError("no trust in the certificate")

    monkeypatch.setattr(obstore, "put", fail)
    for number in range(5):
        store.put(join(folder, str(number)), b"1", if_none_match=True)
    assert (len(boto3_puts), len(tries)) == (5, 3)


@pytest.mark.parametrize("name", ["a b", "100%", "ä", "(1)", "a+b=c", "tilde~", ".hidden"])
def test_unusual_names_are_the_same_to_all(store: ObjectStore, name: str) -> None:
    folder = f"s3://unit/{uuid.uuid4().hex}"
    store.put(f"{folder}/{name}", b"1", if_none_match=True)
    assert [item.uri for item in store.list(folder + "/")] == [f"{folder}/{name}"]
    assert store.get(f"{folder}/{name}") == b"1"


def test_the_settings_decide_not_the_environment(
    store: ObjectStore, folder: str, boto3_puts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.setenv(name, "another")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    store.put(join(folder, "x"), b"1", if_none_match=True)
    assert boto3_puts == []
    assert store.get(join(folder, "x")) == b"1"
