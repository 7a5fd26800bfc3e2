from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import BadInputError, NotFoundError, StoreError
from tasks.store import (
    FileRecord,
    Manifest,
    ObjectStore,
    PartRecord,
    Publication,
    iter_files,
    join,
    output_folder,
    read_manifest,
    run_key,
)
from tasks.store.publication import _line

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=3), json_values, max_size=5))
def test_a_run_key_ignores_the_order_of_names(value: dict[str, object]) -> None:
    assert run_key(dict(reversed(list(value.items())))) == run_key(value)
    assert run_key({**value, "one more": 1}) != run_key(value)


def test_a_run_key_is_canonical_json() -> None:
    assert run_key({"b": [1, 2.5], "a": "é"}) == hashlib.sha256('{"a":"é","b":[1,2.5]}'.encode()).hexdigest()
    assert run_key((1, "x")) == run_key([1, "x"])


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}, {1: 2}, {"a": {1}}, object()])
def test_a_run_key_takes_plain_json_only(value: object) -> None:
    with pytest.raises(BadInputError):
        run_key(value)


def publish(store: ObjectStore, folder: str, content: bytes = b"tile") -> tuple[Manifest, PartRecord]:
    publication = Publication(store, folder)
    records = [publication.put_file(f"images/{i}.tif", content + bytes([i])) for i in (2, 0, 1)]
    part = publication.put_part("00000", records)
    return publication.finish(Manifest(kind="k", name="n", run_key="r", parts=[part])), part


def test_a_folder_is_visible_by_its_manifest_only(store: ObjectStore, root: str) -> None:
    folder = output_folder("training-data", "trees", "abc")
    assert folder == f"{root}/training-data/trees/abc"
    publication = Publication(store, folder)
    records = [publication.put_file(f"images/{i}.tif", bytes([i])) for i in (2, 0, 1)]
    part = publication.put_part("00000", records)
    assert read_manifest(store, folder) is None
    with pytest.raises(NotFoundError, match=r"has no manifest\.json"):
        list(iter_files(store, folder))
    publication.finish(Manifest(kind="training-data", name="trees", run_key="abc", parts=[part]))
    manifest = read_manifest(store, folder)
    assert manifest is not None
    assert (manifest.files, manifest.bytes) == (3, 3)
    listed = list(iter_files(store, folder))
    assert [record.path for record in listed] == ["images/0.tif", "images/1.tif", "images/2.tif"]
    for record in listed:
        assert hashlib.sha256(store.get(join(folder, record.path))).hexdigest() == record.sha256


def test_finishing_twice_is_fine_and_the_first_stays(store: ObjectStore, root: str) -> None:
    folder = join(root, "f")
    first, part = publish(store, folder)
    again = Publication(store, folder).finish(
        Manifest(kind="k", name="n", run_key="r", parts=[part], provenance={"run": "second"})
    )
    assert again == first == read_manifest(store, folder)
    with pytest.raises(StoreError, match="by another run"):
        Publication(store, folder).finish(Manifest(kind="k", name="n", run_key="other"))


def test_a_published_file_never_changes_but_a_leftover_does(
    store: ObjectStore, root: str, tmp_path: Path
) -> None:
    folder = join(root, "f")
    publication = Publication(store, folder)
    publication.put_file("a", b"of a killed run")
    assert publication.put_file("a", b"new").size == 3
    assert store.get(join(folder, "a")) == b"new"
    publication.finish(Manifest(kind="k", name="n", run_key="r"))
    (tmp_path / "same").write_bytes(b"new")
    publication.put_file("a", tmp_path / "same")
    with pytest.raises(StoreError, match="never change"):
        publication.put_file("a", b"newer")
    assert store.get(join(folder, "a")) == b"new"


def test_a_changed_part_manifest_is_found(store: ObjectStore, root: str) -> None:
    folder = join(root, "f")
    _, part = publish(store, folder)
    text = store.get(join(folder, part.path))
    store.put(join(folder, part.path), text.replace(b"images/0", b"images/9"))
    with pytest.raises(StoreError, match="not what the manifest says"):
        list(iter_files(store, folder))


def test_a_path_that_leaves_the_folder_is_refused(store: ObjectStore, root: str) -> None:
    publication = Publication(store, join(root, "f"))
    with pytest.raises(BadInputError):
        publication.put_file("../x", b"")
    evil = b'{"path":"../../x","size":1,"sha256":"0"}\n'
    file = publication.put_file("parts/0.jsonl", evil)
    part = PartRecord(path=file.path, size=file.size, sha256=file.sha256, files=1, bytes=1)
    publication.finish(Manifest(kind="k", name="n", run_key="r", parts=[part]))
    with pytest.raises(BadInputError, match="does not lie inside"):
        list(iter_files(store, join(root, "f")))


def test_a_damaged_manifest_is_an_error_not_a_foreign_folder(store: ObjectStore, root: str) -> None:
    store.put(join(root, "f", "manifest.json"), b'{"kind": 1}')
    with pytest.raises(StoreError, match="no manifest"):
        read_manifest(store, join(root, "f"))


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x" * 101])
def test_an_output_name_is_one_clean_segment(name: str) -> None:
    with pytest.raises(BadInputError):
        output_folder("packages", name, "k")


def test_an_output_may_be_an_allowed_address() -> None:
    assert output_folder("packages", "s3://mine/x/", "k") == "s3://mine/x/k"
    with pytest.raises(BadInputError, match="outside the allowed folders"):
        output_folder("packages", "/etc/x", "k")


@given(path=st.text(min_size=1, max_size=20), size=st.integers(0, 2**40))
def test_a_line_of_a_part_is_the_model_as_json(path: str, size: int) -> None:
    record = FileRecord(path=path, size=size, sha256="0" * 64)
    line = _line(record)
    assert FileRecord.model_validate_json(line) == record
    assert line == record.model_dump_json() + "\n"
