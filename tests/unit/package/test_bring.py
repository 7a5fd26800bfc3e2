"""Packages that people bring: published under their digest, run only once somebody vouches for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.errors import BadInputError, NotFoundError, PackageError, StoreError
from tasks.package import read_definition, write_dlpk
from tasks.package.__main__ import main
from tasks.package.bring import (
    approve_brought,
    check_package_address,
    local_copy,
    pack_from_addresses,
    publish_brought,
)
from tasks.package.fetch import fetch_package
from tasks.package.parameters import AddPackageParameters, PackageModelParameters
from tasks.parameters import validated
from tasks.store import ObjectStore

TEXT = json.dumps(
    {
        "ModelType": "ObjectDetection",
        "InferenceFunction": "F.py",
        "ExtractBands": [0, 1, 2],
        "Classes": [{"Value": 1, "Name": "Tree"}, {"Value": 4, "Name": "Bush"}],
    }
)

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def dlpk(tmp_path: Path) -> Path:
    path = tmp_path / "work" / "My Trees.dlpk"
    write_dlpk(path, read_definition(TEXT), {"F.py": b"class F: pass\n"})
    return path


def test_a_brought_package_is_published_and_runs_after_its_approval_only(dlpk: Path, root: Path) -> None:
    store = ObjectStore()
    brought = publish_brought(store, dlpk, None)
    assert brought.uri == f"{root}/packages/My_Trees/{brought.digest}/My_Trees.dlpk"
    assert brought.tags == {
        "chipline.type": "ObjectDetection",
        "chipline.bands": "0, 1, 2",
        "chipline.classes": "1 Tree, 4 Bush",
    }
    assert approve_brought(store, brought, approved_by=None, reason=None) is None
    with pytest.raises(PackageError, match="neither made nor approved"):
        fetch_package(brought.uri, store)
    trust = approve_brought(store, brought, approved_by="Ada", reason="Hers")
    package = fetch_package(brought.uri, store)
    assert package.trust == trust
    assert not package.made_here


def test_a_zip_is_a_package_and_gets_the_name_that_is_wished(dlpk: Path, tmp_path: Path) -> None:
    zipped = Path(shutil.copy(dlpk, tmp_path / "trees.zip"))
    check_package_address(str(zipped))
    assert publish_brought(ObjectStore(), zipped, "crowns").name == "crowns"


def test_bad_addresses_are_said(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"\.dlpk or \.zip"):
        check_package_address(str(tmp_path / "a.tif"))
    with pytest.raises(BadInputError, match="allowed"):
        check_package_address("/etc/a.dlpk")
    with pytest.raises(NotFoundError):
        local_copy(ObjectStore(), str(tmp_path / "gone.dlpk"), tmp_path)


def test_a_model_is_packed_from_addresses(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "nets").mkdir(parents=True)
    (source / "m.emd").write_text(TEXT)
    (source / "F.py").write_text("class F: pass\n")
    (source / "w.h5").write_bytes(b"w")
    (source / "nets" / "a.py").write_text("")
    (source / "nets" / "deep").mkdir()
    (source / "nets" / "deep" / "b.py").write_text("")
    parameters = PackageModelParameters(
        definition=str(source / "m.emd"),
        weights=str(source / "w.h5"),
        inference_function=str(source / "F.py"),
        extra_files=[f"{source}/nets/"],
        output_name="trees",
    )
    work = tmp_path / "scratch"
    path = pack_from_addresses(ObjectStore(), parameters, work)
    package = publish_brought(ObjectStore(), path, "trees")
    folder = fetch_folder(package.uri, tmp_path)
    assert sorted(item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_file()) == [
        "F.py", "nets/a.py", "nets/deep/b.py", "trees.emd", "w.h5",
    ]  # fmt: skip
    with pytest.raises(NotFoundError, match="nothing under"):
        pack_from_addresses(
            ObjectStore(), parameters.model_copy(update={"extra_files": [f"{source}/none/"]}), tmp_path / "s2"
        )
    with pytest.raises(BadInputError, match="allowed"):
        pack_from_addresses(
            ObjectStore(), parameters.model_copy(update={"weights": "/etc/passwd"}), tmp_path / "s3"
        )


def fetch_folder(uri: str, tmp_path: Path) -> Path:
    from tasks.package import open_package

    return open_package(Path(uri), tmp_path / "opened").folder


@pytest.mark.parametrize(
    "values",
    [
        {"approve": True},
        {"approve": True, "approved_by": "Ada"},
        {"approved_by": "Ada"},
        {"output_name": "my trees"},
        {"package": ""},
    ],
)
def test_an_approval_is_whole_or_none(values: dict[str, object]) -> None:
    with pytest.raises(BadInputError):
        validated(AddPackageParameters, {"package": "s3://b/a.dlpk", **values})


def test_the_operator_approves_by_command_after_seeing_the_card(
    dlpk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ObjectStore()
    uri = publish_brought(store, dlpk, "trees").uri
    assert main(["approve", uri, "--by", "Ada", "--reason", "Hers"]) == 0
    said = capsys.readouterr().out
    assert "4           Bush" in said
    assert "approved by Ada" in said
    assert fetch_package(uri, store).trust is not None
    broken = tmp_path / "broken.dlpk"
    broken.write_text("no zip")
    assert main(["approve", str(broken), "--by", "Ada", "--reason", "Hers"]) == 1


def test_who_may_not_approve_leaves_the_package_published(
    dlpk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore()
    brought = publish_brought(store, dlpk, "trees")

    def refuse(*_: object, **__: object) -> str:
        raise StoreError("The store refused.", "Ask.")

    monkeypatch.setattr(ObjectStore, "put", refuse)
    with pytest.raises(PackageError, match=r"infra\.local env admin"):
        approve_brought(store, brought, approved_by="Ada", reason="Hers")
    assert store.exists(brought.uri)
