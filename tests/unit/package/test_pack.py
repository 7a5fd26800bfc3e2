"""Packages of models that were trained elsewhere: the same bytes for the same files, or nothing."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import NotFoundError, PackageError
from tasks.package import file_digest, open_package
from tasks.package.__main__ import main
from tasks.package.pack import NAME, files_below, pack_package, safe_name

DEFINITION: dict[str, Any] = {
    "ModelType": "ObjectionDetection",
    "ModelFile": ".\\trees.h5",
    "Classes": [{"Value": 1, "Name": "Tree", "Color": [0, 160, 0]}],
    "MyOwnKey": 3,
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "nets" / "__pycache__").mkdir(parents=True)
    (folder / "model.emd").write_text(json.dumps(DEFINITION))
    (folder / "epoch9.h5").write_bytes(b"numbers")
    (folder / "Trees.py").write_text("class Trees: pass\n")
    (folder / "nets" / "net.py").write_text("x = 1\n")
    (folder / "nets" / "__pycache__" / "net.pyc").write_bytes(b"compiled")
    return folder


def pack(files: Path, into: Path, **changes: Any) -> tuple[Path, str]:
    given: dict[str, Any] = {
        "name": "trees",
        "definition": files / "model.emd",
        "weights": files / "epoch9.h5",
        "function": files / "Trees.py",
        "extra": files_below([files / "nets"]),
        "into": into,
    }
    return pack_package(**{**given, **changes})


def test_a_packed_model_opens_and_holds_what_was_given(files: Path, tmp_path: Path) -> None:
    path, digest = pack(files, tmp_path / "out")
    package = open_package(path, tmp_path / "cache")
    assert digest == file_digest(path) == package.digest
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["Trees.py", "nets/net.py", "trees.emd", "trees.h5"]
        written = json.loads(archive.read("trees.emd"))
    assert written == {
        **DEFINITION,
        "ModelType": "ObjectDetection",
        "ModelFile": "trees.h5",
        "InferenceFunction": "Trees.py",
    }
    assert package.function_path is not None
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["trees.dlpk"]


def test_the_same_files_give_the_same_bytes(files: Path, tmp_path: Path) -> None:
    first = pack(files, tmp_path / "one")[1]
    (files / "epoch9.h5").touch()
    assert pack(files, tmp_path / "two")[1] == first
    (files / "epoch9.h5").write_bytes(b"other numbers")
    assert pack(files, tmp_path / "two")[1] != first


@pytest.mark.parametrize(
    ("definition", "changes", "said"),
    [
        ({"ModelFile": "trees.pth"}, {}, "another kind of file"),
        ({"InferenceFunction": "Bushes.py"}, {}, r"asks for the function 'Bushes\.py'"),
        (
            {"InferenceFunction": "[Functions]System\\DeepLearning\\ObjectDetector.py"},
            {},
            "asks for the function",
        ),
        ({"Classes": []}, {}, "Classes is missing"),
        ({"BatchSize": "many"}, {}, "BatchSize"),
        ({}, {"function": None}, "InferenceFunction is missing"),
        ({}, {"weights": None}, r"'trees\.h5' is not in the package"),
        ({}, {"name": "my trees"}, "no name for a package"),
    ],
)
def test_what_would_be_broken_is_not_written(
    files: Path, tmp_path: Path, definition: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    (files / "model.emd").write_text(json.dumps({**DEFINITION, **definition}))
    with pytest.raises(PackageError, match=said):
        pack(files, tmp_path / "out", **changes)
    assert not list((tmp_path / "out").glob("**/*"))


def test_files_that_would_replace_each_other_are_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="given twice"):
        pack(files, tmp_path / "out", extra={"Trees.py": files / "Trees.py"})
    with pytest.raises(PackageError, match="given twice"):
        files_below([files / "Trees.py", files / "Trees.py"])
    with pytest.raises(NotFoundError):
        files_below([files / "gone"])
    with pytest.raises(NotFoundError, match="gone"):
        pack(files, tmp_path / "out", weights=files / "gone.h5")


@pytest.mark.parametrize("stem", ["Tree Detection (v2)", "Bäume", "...", "x" * 300, "ok-1.2", ""])
def test_every_stem_becomes_a_name(stem: str) -> None:
    assert NAME.fullmatch(safe_name(stem))
    assert safe_name("ok-1.2") == "ok-1.2"


def test_the_command_packs(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "trees.dlpk"
    arguments = ["pack", str(output), "--definition", str(files / "model.emd")]
    arguments += ["--weights", str(files / "epoch9.h5"), "--function", str(files / "Trees.py")]
    assert main([*arguments, "--extra", str(files / "nets")]) == 0
    assert capsys.readouterr().out == f"{output} {pack(files, tmp_path / 'api')[1]}\n"
    assert main(["pack", str(tmp_path / "trees.zip"), "--definition", str(files / "model.emd")]) == 1
    assert "suffix .dlpk" in capsys.readouterr().err
