"""Packages: the same content gives the same bytes, and nothing hostile gets out of the zip."""

from __future__ import annotations

import io
import json
import os
import stat
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import NotFoundError, PackageError
from tasks.package import (
    ModelDefinition,
    UnpackLimits,
    file_digest,
    open_package,
    read_definition,
    unpacked_package,
    write_dlpk,
)
from tasks.package.__main__ import main

DEFINITION: dict[str, Any] = {
    "ModelType": "ObjectDetection",
    "InferenceFunction": "Function.py",
    "ModelFile": "model.pth",
    "ImageHeight": 64,
    "ImageWidth": 64,
    "Classes": [{"Value": 1, "Name": "Tree", "Color": [0, 255, 0]}],
}


def definition(**changes: Any) -> ModelDefinition:
    return read_definition(json.dumps({**DEFINITION, **changes}))


def weights() -> bytes:
    stream = io.BytesIO()
    torch.save({"layer.weight": torch.arange(6.0).reshape(2, 3)}, stream)
    return stream.getvalue()


FILES: dict[str, bytes | Path] = {"Function.py": b"class Function: pass\n", "model.pth": weights()}
Member = tuple[str | zipfile.ZipInfo, bytes]


def zipped(path: Path, members: list[Member]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # zipfile itself warns of duplicates
        for name, content in members:
            archive.writestr(name, content)
    return path


def good_members(**changes: Any) -> list[Member]:
    text = json.dumps({**DEFINITION, **changes})
    return [("a.emd", text.encode()), *((name, bytes(data)) for name, data in FILES.items())]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_dlpk(tmp_path / "one" / "a.dlpk", definition(), FILES)
    source = tmp_path / "elsewhere.bin"
    source.write_bytes(bytes(FILES["model.pth"]))
    os.utime(source, (time.time() - 9e6, time.time() - 9e6))
    reordered = {"model.pth": source, "Function.py": FILES["Function.py"]}
    second = write_dlpk(tmp_path / "two" / "a.dlpk", definition(), reordered)
    assert first == second == file_digest(tmp_path / "one" / "a.dlpk")
    assert first != write_dlpk(tmp_path / "a.dlpk", definition(ImageHeight=65), FILES)


def test_everything_lies_at_the_root_under_the_package_s_name(tmp_path: Path) -> None:
    write_dlpk(tmp_path / "trees.dlpk", definition(), FILES)
    with zipfile.ZipFile(tmp_path / "trees.dlpk") as archive:
        assert archive.namelist() == ["Function.py", "model.pth", "trees.emd"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a//b", "a\\..\\b", "C:a", "", "folder/", "other.emd", "a\nb"]
)
def test_members_that_no_reader_takes_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageError):
        write_dlpk(tmp_path / "a.dlpk", definition(), {**FILES, name: b""})
    assert list(tmp_path.iterdir()) == []


def test_a_package_opens_once_and_whole(tmp_path: Path) -> None:
    digest = write_dlpk(tmp_path / "trees.dlpk", definition(), FILES)
    cache = tmp_path / "cache"
    package = open_package(tmp_path / "trees.dlpk", cache)
    assert package.digest == digest
    assert package.name == "trees"
    assert package.emd_path == cache / digest / "trees" / "trees.emd"
    assert package.function_path == package.folder / "Function.py"
    assert package.weights_path is not None
    assert torch.load(package.weights_path, weights_only=True)["layer.weight"][1, 2] == 5
    written = package.emd_path.stat().st_mtime_ns
    assert open_package(tmp_path / "trees.dlpk", cache) == package == unpacked_package(digest, cache)
    assert package.emd_path.stat().st_mtime_ns == written
    assert [entry.name for entry in cache.iterdir()] == [digest]
    assert unpacked_package("0" * 64, cache) is None


def _link(name: str, target: str) -> Member:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target.encode()


def _device(name: str) -> Member:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFCHR | 0o666) << 16
    return info, b""


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([("../outside.py", b"")], "leaves the package"),
        ([("deep/../../outside.py", b"")], "leaves the package"),
        ([("..\\outside.py", b"")], "leaves the package"),
        ([("/outside.py", b"")], "absolute"),
        ([("C:\\outside.py", b"")], "absolute"),
        ([("a//b.py", b"")], "empty part"),
        ([("bad\x07name.py", b"")], "control"),
        ([("x" * 300, b"")], "too long"),
        ([_link("innocent.py", "/etc/passwd")], "link"),
        ([_device("innocent.py")], "neither a file nor a folder"),
        ([("Function.py", b"other")], "occurs twice"),
        ([("FUNCTION.PY", b"other")], "occurs twice"),
        ([("Function.py/inside.py", b"other")], "a file and a folder"),
        ([("b.emd", b"{}")], "2 model definitions"),
        ([("B.EMD", b"{}")], "2 model definitions"),
    ],
)
def test_hostile_members_are_refused_before_anything_is_written(
    tmp_path: Path, extra: list[Member], said: str
) -> None:
    path = zipped(tmp_path / "a.dlpk", [*good_members(), *extra])
    cache = tmp_path / "cache"
    with pytest.raises(PackageError, match=said):
        open_package(path, cache)
    assert list(cache.iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.dlpk", "cache"]


def test_a_wrapping_folder_is_explained(tmp_path: Path) -> None:
    members: list[Member] = [(f"trees/{name}", content) for name, content in good_members()]
    with pytest.raises(PackageError, match="zip the files themselves"):
        open_package(zipped(tmp_path / "a.dlpk", members), tmp_path / "cache")


def test_no_definition_at_all(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no model definition"):
        open_package(zipped(tmp_path / "a.dlpk", good_members()[1:]), tmp_path / "cache")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (UnpackLimits(members=2), "more than 2"),
        (UnpackLimits(bytes=1000), "unpack to"),
        (UnpackLimits(ratio_from=1000, ratio=20), "20 times"),
    ],
)
def test_bombs_are_refused(tmp_path: Path, limits: UnpackLimits, said: str) -> None:
    path = zipped(tmp_path / "a.dlpk", [*good_members(), ("zeros.bin", bytes(1 << 20))])
    with pytest.raises(PackageError, match=said):
        open_package(path, tmp_path / "cache", limits)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_member_larger_than_its_header_says_is_stopped(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.dlpk", [*good_members(), ("zeros.bin", bytes(1 << 20))])
    data = path.read_bytes()
    path.write_bytes(data.replace((1 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(PackageError):
        open_package(path, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_all_problems_are_listed_in_the_order_of_the_checks(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "ImageHeight": -1,
            "ExtractBands": [-2],
            "Classes": [{"Value": 1, "Name": "a"}, {"Value": 1, "Name": " "}],
            "ModelFile": "gone.pth",
            "InferenceFunction": "../../gone.py",
            "ModelType": "Fortune",
            "BatchSize": "many",
        }
    )
    path = zipped(tmp_path / "a.dlpk", [("a.emd", text.encode())])
    with pytest.raises(PackageError) as caught:
        open_package(path, tmp_path / "cache")
    message = str(caught.value)
    order = [
        "Fortune",
        "gone.py",
        "gone.pth",
        "value 1 more",
        "Classes.1.Name",
        "BatchSize",
        "ImageHeight is -1",
    ]
    places = [message.index(part) for part in [*order, "negative band"]]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ModelType": None}, "ModelType is missing"),
        ({"InferenceFunction": None}, "InferenceFunction is missing"),
        ({"InferenceFunction": "model.pth"}, "not a Python file"),
        ({"ModelFile": "/etc/passwd"}, "outside the package"),
        ({"Classes": []}, "Classes is missing"),
        ({"MinCellSize": {"x": 0, "y": 1}}, "MinCellSize"),
        ({"DataRange": [1, 1]}, "DataRange"),
    ],
)
def test_each_problem_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PackageError, match=said):
        open_package(zipped(tmp_path / "a.dlpk", good_members(**changes)), tmp_path / "cache")


def test_predefined_functions_and_prompted_models_are_complete_without_files(tmp_path: Path) -> None:
    for index, text in enumerate(
        (
            '{"Framework":"Keras","ModelConfiguration":"KerasClassifier","ModelFile":".\\\\9.h5",'
            '"ModelType":"ObjectClassification","ImageHeight":64,"ImageWidth":64,'
            '"Classes":[{"Value":0,"Name":"Pool","Color":[0,255,0]}]}',
            '{"ModelType":"ObjectionDetection","InferenceFunction":"P.py","Classes":[{"Value":1,"Name":"O"}]}',
        )
    ):
        members: list[Member] = [("a.emd", text.encode()), ("9.h5", b"\x89HDF\r\n\x1a\n"), ("P.py", b"")]
        package = open_package(zipped(tmp_path / f"{index}.dlpk", members), tmp_path / "cache")
        assert package.name == "a"
        assert (package.function_path is None) == (index == 0)


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"7z\xbc\xaf"), lambda path: path.touch()])
def test_what_is_no_zip_is_said(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "a.dlpk")
    with pytest.raises(PackageError, match="plain zip file"):
        open_package(tmp_path / "a.dlpk", tmp_path / "cache")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no package"):
        open_package(tmp_path / "a.dlpk", tmp_path / "cache")


def test_weights_with_code_are_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, ("true",))

    stream = io.BytesIO()
    torch.save({"layer.weight": torch.zeros(1), "x": Attack()}, stream)
    write_dlpk(tmp_path / "a.dlpk", definition(), {**FILES, "model.pth": stream.getvalue()})
    with pytest.raises(PackageError, match=r"posix\.system"):
        open_package(tmp_path / "a.dlpk", tmp_path / "cache")


def test_the_command_tells_what_is_inside_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = write_dlpk(tmp_path / "trees.dlpk", definition(), FILES)
    assert main(["inspect", str(tmp_path / "trees.dlpk")]) == 0
    said = capsys.readouterr().out
    assert digest in said
    assert "Function.py" in said
    assert "ObjectDetection" in said
    (tmp_path / "bad.dlpk").write_bytes(b"no zip")
    assert main(["validate", str(tmp_path / "bad.dlpk")]) == 1
    assert "plain zip file" in capsys.readouterr().out
