from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.errors import BadInputError, NotFoundError, StoreError
from tasks.store import Manifest, ObjectStore, Publication, join, sync_folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".chipline")
    }


def publish(store: ObjectStore, folder: str, count: int = 30) -> dict[str, bytes]:
    publication = Publication(store, folder)
    files = {f"images/{i:03}.tif": os.urandom(50 + i) for i in range(count)}
    records = [publication.put_file(path, data) for path, data in files.items()]
    parts = [
        publication.put_part("0", records[: count // 2]),
        publication.put_part("1", records[count // 2 :]),
    ]
    publication.finish(Manifest(kind="training-data", name="n", run_key="r", parts=parts))
    return files


class Counting(ObjectStore):
    def __init__(self) -> None:
        super().__init__()
        self.downloads: list[str] = []

    def download(self, uri: str, path: Path) -> None:
        self.downloads.append(uri)
        super().download(uri, path)


@pytest.mark.usefixtures("store")
def test_a_published_folder_arrives_whole_and_once(folder: str, tmp_path: Path) -> None:
    store = Counting()
    files = publish(store, folder)
    store.put(join(folder, "plan.json"), b"not part of what was published")
    into = sync_folder(store, folder, tmp_path / "copy")
    assert contents(into) == files
    assert len(store.downloads) == 30
    sync_folder(store, folder, into)
    assert len(store.downloads) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == [".copy.lock", "copy"]


@pytest.mark.usefixtures("store")
def test_an_interrupted_copy_goes_on(folder: str, tmp_path: Path) -> None:
    class Failing(Counting):
        def download(self, uri: str, path: Path) -> None:
            if len(self.downloads) >= 12:
                raise StoreError("The network went away.", "Wait.")
            super().download(uri, path)

    files = publish(ObjectStore(), folder)
    failing = Failing()
    with pytest.raises(StoreError, match="went away"):
        sync_folder(failing, folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    # One of the files that are there was cut off by the failure.
    whole = sorted((tmp_path / ".copy.partial").rglob("*.tif"))
    whole[0].write_bytes(b"cut")
    store = Counting()
    assert contents(sync_folder(store, folder, tmp_path / "copy")) == files
    assert len(store.downloads) == 30 - len(whole) + 1


def test_a_changed_file_is_found(store: ObjectStore, folder: str, tmp_path: Path) -> None:
    files = publish(store, folder)
    store.put(join(folder, "images/007.tif"), bytes(len(files["images/007.tif"])))
    with pytest.raises(StoreError, match=r"007\.tif is not what"):
        sync_folder(store, folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_manifest_cannot_write_outside(store: ObjectStore, folder: str, tmp_path: Path) -> None:
    publication = Publication(store, folder)
    file = publication.put_file("0.jsonl", b'{"path":"../../escaped","size":1,"sha256":"0"}\n')
    part = publication.put_part("0", []).model_copy(update=file.model_dump())
    publication.finish(Manifest(kind="k", name="n", run_key="r", parts=[part]))
    with pytest.raises(BadInputError, match="does not lie inside"):
        sync_folder(store, folder, tmp_path / "a" / "copy")
    assert not (tmp_path / "escaped").exists()


def test_a_foreign_folder_comes_as_it_is_and_follows_changes(
    store: ObjectStore, folder: str, tmp_path: Path
) -> None:
    store.put(join(folder, "map.txt"), b"1")
    store.put(join(folder, "labels/1/x.tif"), b"2")
    store.put(folder + "-other/x", b"3")
    into = sync_folder(store, folder + "/", tmp_path / "copy")
    assert contents(into) == {"map.txt": b"1", "labels/1/x.tif": b"2"}
    store.delete(join(folder, "labels/1/x.tif"))
    store.put(join(folder, "map.txt"), b"9")
    assert contents(sync_folder(store, folder, tmp_path / "copy")) == {"map.txt": b"9"}


def test_two_at_once_make_one_copy(store: ObjectStore, folder: str, tmp_path: Path) -> None:
    files = publish(store, folder)
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: sync_folder(store, folder, tmp_path / "copy"), range(4)))
    assert {contents(copy) == files for copy in copies} == {True}


def test_files_of_others_are_not_replaced(store: ObjectStore, folder: str, tmp_path: Path) -> None:
    publish(store, folder, 2)
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(BadInputError, match="no copy of a folder"):
        sync_folder(store, folder, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_local_folders_are_returned_as_they_are(store: ObjectStore, tmp_path: Path) -> None:
    assert sync_folder(store, str(tmp_path), tmp_path / "x") == tmp_path
    with pytest.raises(NotFoundError, match="no folder"):
        sync_folder(store, str(tmp_path / "none"), tmp_path / "x")
    with pytest.raises(NotFoundError, match="nothing under"):
        sync_folder(store, "s3://unit/nothing-here", tmp_path / "x")
