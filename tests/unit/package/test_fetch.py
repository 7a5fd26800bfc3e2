"""Publishing and fetching: one object per content, and no code runs here that nobody vouched for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.errors import BadInputError, NotFoundError, PackageError
from tasks.package import read_definition, write_dlpk
from tasks.package.fetch import fetch_package
from tasks.package.publish import publish_package
from tasks.package.trust import revoke_package
from tasks.settings import settings
from tasks.store import ObjectStore, current

TEXT = json.dumps(
    {
        "ModelType": "ObjectDetection",
        "InferenceFunction": "F.py",
        "Classes": [{"Value": 1, "Name": "Tree", "Color": [0, 255, 0]}],
    }
)

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def dlpk(tmp_path: Path) -> Path:
    write_dlpk(tmp_path / "work" / "trees.dlpk", read_definition(TEXT), {"F.py": b"class F: pass\n"})
    return tmp_path / "work" / "trees.dlpk"


def approve(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    monkeypatch.setenv("CHIPLINE_APPROVED_PACKAGES", json.dumps([digest]))
    settings.cache_clear()


def test_a_published_package_lies_under_its_digest_and_is_trusted(dlpk: Path, root: Path) -> None:
    store = ObjectStore()
    uri = publish_package(store, dlpk, made_by="s3://chipline/outputs/x")
    package = fetch_package(uri, store)
    assert package.made_here
    assert package.trust is not None
    assert "made here by s3://chipline/outputs/x" in package.trust.text
    assert uri == f"{root}/packages/trees/{package.digest}/trees.dlpk"
    assert publish_package(store, dlpk) == uri
    assert current(store, "packages", "trees") == uri.rpartition("/")[0]
    assert package.name == "trees"
    assert package.folder.is_relative_to(settings().cache)


def test_a_cached_package_is_not_read_again_but_must_still_be_there(dlpk: Path) -> None:
    store = ObjectStore()
    uri = publish_package(store, dlpk, made_by="test")
    first = fetch_package(uri, store)
    Path(uri).chmod(0o644)
    Path(uri).write_bytes(b"not read")
    assert fetch_package(uri, store) == first
    Path(uri).unlink()
    with pytest.raises(NotFoundError):
        fetch_package(uri, store)


def test_a_package_from_elsewhere_is_refused_with_its_digest(
    dlpk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore()
    with pytest.raises(PackageError, match="neither made nor approved") as caught:
        fetch_package(str(dlpk), store)
    digest = str(caught.value).rstrip(".").rpartition(" ")[2]
    assert len(digest) == 64
    approve(monkeypatch, "sha256:" + digest.upper())
    package = fetch_package(str(dlpk), store)
    assert package.digest == digest
    assert package.trust is not None
    assert package.trust.kind == "setting"
    assert not package.made_here


def test_other_bytes_at_a_published_address_are_refused(dlpk: Path, tmp_path: Path) -> None:
    store = ObjectStore()
    uri = publish_package(store, dlpk, made_by="test")
    text = TEXT.replace("Tree", "Thief")
    write_dlpk(tmp_path / "other" / "trees.dlpk", read_definition(text), {"F.py": b"evil = 1\n"})
    Path(uri).chmod(0o644)
    Path(uri).write_bytes((tmp_path / "other" / "trees.dlpk").read_bytes())
    with pytest.raises(PackageError, match="not the one that was published"):
        fetch_package(uri, store)


def test_a_published_package_is_not_trusted_because_it_was_published(dlpk: Path) -> None:
    store = ObjectStore()
    uri = publish_package(store, dlpk)
    with pytest.raises(PackageError, match=r"neither made nor approved.*tasks\.package approve"):
        fetch_package(uri, store)


@pytest.mark.parametrize(
    "place", ["packages/trees.dlpk", "outputs/x/trees.dlpk", "packages/trees/1234/trees.dlpk"]
)
def test_no_address_is_trusted_for_itself(dlpk: Path, root: Path, place: str) -> None:
    (root / place).parent.mkdir(parents=True)
    (root / place).write_bytes(dlpk.read_bytes())
    with pytest.raises(PackageError, match="neither made nor approved"):
        fetch_package(str(root / place), ObjectStore())


@pytest.mark.parametrize("model", ["s3://bucket/image.tif", "trees", "models.txt", ""])
def test_what_is_no_package_is_said(model: str) -> None:
    with pytest.raises(BadInputError, match="not a deep learning package"):
        fetch_package(model, ObjectStore())


def test_a_missing_package_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        fetch_package(str(tmp_path / "none.dlpk"), ObjectStore())


def test_a_broken_package_is_not_published(dlpk: Path, root: Path) -> None:
    dlpk.write_bytes(dlpk.read_bytes()[:-30])
    with pytest.raises(PackageError):
        publish_package(ObjectStore(), dlpk)
    assert not root.exists()


def test_a_revoked_package_is_refused_although_a_training_made_it_and_the_cache_holds_it(dlpk: Path) -> None:
    store = ObjectStore()
    uri = publish_package(store, dlpk, made_by="s3://chipline/outputs/x")
    digest = fetch_package(uri, store).digest
    revoke_package(store, digest, name="trees", revoked_by="Grace", reason="Mislabelled chips")
    for address in (uri, str(dlpk)):
        with pytest.raises(PackageError, match=r"revoked by Grace at .*: Mislabelled chips"):
            fetch_package(address, store)
