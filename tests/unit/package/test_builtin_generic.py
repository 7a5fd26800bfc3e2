"""Packages for the generic contract and for ONNX without a function: what they resolve to, what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.package import package_problems, read_definition
from tasks.package.builtin import Builtin, NotBuiltIn, resolve

SYSTEM = "[Functions]System\\DeepLearning\\ImageAnalysis\\"
GENERIC: dict[str, Any] = {
    "Framework": "PyTorch",
    "ModelConfiguration": "nets\\trees",
    "ModelType": "ImageClassification",
    "ModelFile": "net.pth",
    "ImageHeight": 8,
    "ImageWidth": 8,
    "Classes": [{"Value": 1, "Name": "Tree"}],
}


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({}, "GenericImageClassifier.py"),
        ({"InferenceFunction": SYSTEM + "ImageClassifier.py"}, "GenericImageClassifier.py"),
        ({"ModelType": "ObjectDetection"}, "GenericObjectDetector.py"),
        ({"ModelFile": "net.onnx"}, "GenericImageClassifier.py"),  # its module runs it
        ({"ModelFile": "net.onnx", "ModelConfiguration": None}, "OnnxImageClassifier.py"),
        ({"ModelFile": "net.onnx", "Framework": "ONNX"}, "OnnxImageClassifier.py"),
        (
            {
                "ModelFile": "NET.ONNX",
                "Framework": None,
                "ModelConfiguration": None,
                "ModelType": "ObjectDetection",
            },
            "OnnxObjectDetector.py",
        ),
    ],
)
def test_which_function_runs_it(changes: dict[str, Any], file: str) -> None:
    found = resolve(read_definition(json.dumps({**GENERIC, **changes})))
    assert isinstance(found, Builtin)
    assert found.file == file
    assert found.path.is_file()


def test_what_has_no_function_says_so() -> None:
    onnx = {**GENERIC, "ModelFile": "net.onnx", "Framework": "ONNX", "ModelType": "ObjectClassification"}
    for definition in (onnx, {**GENERIC, "ModelType": "ObjectClassification"}):
        assert isinstance(resolve(read_definition(json.dumps(definition))), NotBuiltIn)


def _problems(folder: Path, module: str | None, **changes: Any) -> list[str]:
    (folder / "a.emd").write_text(json.dumps({**GENERIC, **changes}))
    (folder / "net.pth").write_bytes(b"\x80\x02}q\x00.")
    if module is not None:
        (folder / "nets").mkdir(exist_ok=True)
        (folder / "nets" / "trees.py").write_text(module)
    return [item.text for item in package_problems(folder)]


@pytest.mark.parametrize(
    "module",
    [
        "class ChildImageClassifier: pass",
        "from elsewhere import Net as ChildImageClassifier",
        "from x import *",
    ],
)
def test_a_module_with_the_class_is_enough(tmp_path: Path, module: str) -> None:
    assert _problems(tmp_path, module) == []


@pytest.mark.parametrize(
    ("module", "changes", "said"),
    [
        (None, {}, "neither predefined nor a module"),
        (None, {"ModelConfiguration": "../../trees"}, "neither predefined nor a module"),
        ("class ChildObjectDetector: pass", {}, "no class ChildImageClassifier"),
        ("class ChildImageClassifier(:", {}, "cannot be parsed"),
        ("x = 1\0", {}, "cannot be parsed"),
    ],
)
def test_a_module_that_cannot_serve_is_told_before_it_runs(
    tmp_path: Path, module: str | None, changes: dict[str, Any], said: str
) -> None:
    (problem,) = _problems(tmp_path, module, **changes)
    assert said in problem
