"""Cards and problems: what a person sees of a package before anything of it runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import NotFoundError, PackageError
from tasks.package import open_package, read_definition, write_dlpk
from tasks.package.__main__ import main
from tasks.package.card import card_markdown, card_text
from tasks.package.checks import CHECKS
from tasks.package.examine import examine_package, metrics_of
from tasks.package.function_source import FunctionArgument, function_arguments

SAMPLES = Path(__file__).parent / "samples"
FUNCTION = b"""
import helper

class F:
    def getParameterInfo(self):
        raise SystemExit("this must never run")
        return [
            {"name": "raster", "dataType": "raster", "required": True},
            {"name": "padding", "dataType": "numeric", "value": 16, "displayName": "Padding"},
            {"name": "threshold", "dataType": "numeric", "value": self.t, "description": "Least score"},
            {"name": "class_of_interest", "dataType": "numeric", "value": -1},
            helper.parameter("tta", "GPString", "False", "Augment", "Mirror images, too"),
        ]
"""
BROKEN: dict[str, Any] = {
    "ModelType": "Telepathy",
    "InferenceFunction": "gone.py",
    "ModelFile": "gone.pth",
    "Classes": [{"Value": 1, "Name": "Tree"}, {"Value": 1, "Name": " "}],
    "ImageHeight": 0,
    "BatchSize": "many",
}


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    text = (SAMPLES / "arcgis_unet.emd").read_text()
    definition = read_definition(text.replace("ArcGISImageClassifier.py", "F.py").replace("unet.pth", "w.h5"))
    files: dict[str, bytes | Path] = {"F.py": FUNCTION, "helper.py": b"x = 1\n", "w.h5": b"weights"}
    write_dlpk(tmp_path / "trees.dlpk", definition, files)
    return tmp_path / "trees.dlpk"


def test_the_card_tells_what_a_person_asks_first(trees: Path) -> None:
    examination = examine_package(trees)
    text = card_text(examination)
    assert not examination.problems
    for said in (
        examination.digest,
        "ImageClassification",
        "arcgis.learn.models._inferencing / _unet",
        "64 x 64 pixels",
        "0, 1, 2",
        "0.5 x 0.5 (EPSG:32633)",
        "1 #ff0000   Building",
        "padding = 16",
        "w.h5",
    ):
        assert said in text


def test_arguments_are_read_from_the_source_and_nothing_runs(trees: Path) -> None:
    arguments = examine_package(trees).arguments
    assert arguments == [
        FunctionArgument("padding", "numeric", "16", "Padding"),
        FunctionArgument("threshold", "numeric", "", "Least score"),
        FunctionArgument("class_of_interest", "numeric", "-1", ""),
        FunctionArgument("tta", "GPString", "False", "Mirror images, too"),
    ]


@pytest.mark.parametrize("source", [b"def (", b"\0", b"(" * 10_000, b"print 'two'"])
def test_source_that_is_no_python_of_today_has_no_known_arguments(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "F.py").write_bytes(source)
    assert function_arguments(tmp_path / "F.py") is None


def test_metrics_are_found_in_every_form() -> None:
    unet = metrics_of(read_definition((SAMPLES / "arcgis_unet.emd").read_text()))
    ssd = metrics_of(read_definition((SAMPLES / "arcgis_ssd.emd").read_text()))
    assert unet["accuracy"] == "0.8171"
    assert unet["f1 of Tree"] == "0.03355"
    assert ssd == {
        "average precision score of Building": "0.7083",
        "average precision score of Tree": "0.4899",
    }


def test_everything_that_is_wrong_is_said_at_once_in_order_with_remedies(tmp_path: Path) -> None:
    members = {"a.emd": json.dumps(BROKEN).encode(), "../evil.py": b"", "/abs": b""}
    dlpk = packed(tmp_path / "a.dlpk", members)
    problems = examine_package(dlpk).problems
    checks = [item.check for item in problems]
    assert checks == [
        "members", "members", "model type", "function", "weights", "classes", "classes", "numbers", "numbers",
    ]  # fmt: skip
    assert checks == sorted(checks, key=CHECKS.index)
    assert all(item.remedy.endswith(".") for item in problems)
    assert not (tmp_path / "evil.py").exists()
    # Whoever opens it to run it is told the same.
    with pytest.raises(PackageError) as refused:
        open_package(dlpk, tmp_path / "cache")
    assert all(item.text in str(refused.value) and item.remedy in str(refused.value) for item in problems)


def test_a_7z_archive_is_refused_with_the_way_out(tmp_path: Path) -> None:
    dlpk = tmp_path / "a.dlpk"
    dlpk.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    (found,) = examine_package(dlpk).problems
    assert "7z archive" in found.text
    assert "zip -r" in found.remedy


def test_a_page_shows_a_package_s_words_as_words(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "ModelType": "ObjectDetection",
            "InferenceFunction": "F.py",
            "Description": "<script>alert(1)</script> | [x](http://y)\n# big",
            "Classes": [{"Value": 1, "Name": "a|b\x1b[31m"}],
        }
    )
    page = card_markdown(
        examine_package(packed(tmp_path / "a.dlpk", {"a.emd": text.encode(), "F.py": b"class F: pass\n"}))
    )
    assert "<script>" not in page
    assert "[x](" not in page
    assert "a\\|b \\[31m" in page


def test_the_command_line_says_it_with_its_exit_code(
    trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(trees)]) == 0
    assert "is sound" in capsys.readouterr().out
    assert main(["inspect", str(trees), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["card"]["type"] == "ImageClassification"
    assert shown["arguments"][0]["name"] == "padding"

    broken = packed(tmp_path / "broken.zip", {"a.emd": json.dumps(BROKEN).encode()})
    assert main(["validate", str(broken)]) == 1
    assert "1. [model type] ModelType 'Telepathy' is unknown" in capsys.readouterr().out
    assert main(["validate", "--json", str(broken)]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert not shown["sound"]
    assert {"check", "problem", "remedy"} == set(shown["problems"][0])
    assert main(["inspect", str(broken)]) == 1
    out = capsys.readouterr()
    assert "sha256" in out.out
    assert "[weights]" in out.err
    assert main(["inspect", str(tmp_path / "none.dlpk")]) == 1
    assert "no package" in capsys.readouterr().err


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        examine_package(tmp_path / "none.dlpk")
