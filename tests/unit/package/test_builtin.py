"""Which built-in function a definition gets, and what is said where there is none; no framework is needed."""

from __future__ import annotations

import ast
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tasks.package import builtin, package_problems, read_definition
from tasks.package.builtin import (
    BUILTIN,
    FOLDER,
    GENERIC,
    Builtin,
    NotBuiltIn,
    function_identity,
    resolve,
)
from tasks.package.builtin_check import graph_nodes
from tasks.package.card import card_text
from tasks.package.dlpk import write_dlpk
from tasks.package.examine import examine_package

DETECTOR: dict[str, Any] = {
    "Framework": "TensorFlow",
    "ModelConfiguration": "ObjectDetectionAPI",
    "ModelType": "ObjectDetection",
    "ModelFile": ".\\model.pb",
    "ImageHeight": 64,
    "ImageWidth": 64,
    "Classes": [{"Value": 1, "Name": "Tree", "Color": [0, 255, 0]}],
}
TENSORS = ("image_tensor", "detection_boxes", "detection_scores", "detection_classes")
HDF5 = b"\x89HDF\r\n\x1a\n"


def _resolved(**changes: Any) -> Builtin | NotBuiltIn | None:
    return resolve(read_definition(json.dumps({**DETECTOR, **changes})))


def _varint(value: int) -> bytes:
    head = value & 0x7F
    return bytes([head]) if value < 0x80 else bytes([head | 0x80]) + _varint(value >> 7)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _graph(names: tuple[str, ...], operation: str = "Identity") -> bytes:
    """A ``GraphDef`` with nodes of these names, and fields of every wire type beside them."""
    attribute = _field(5, _field(1, b"T") + _field(2, b"\x30\x01")) + b"\x3d" + struct.pack("<f", 1.0)
    nodes = [
        _field(1, _field(1, name.encode()) + _field(2, operation.encode()) + attribute) for name in names
    ]
    return b"".join(nodes) + _field(4, b"\x08\x16") + b"\x18\x07" + b"\x31" + bytes(8)


def _folder(tmp_path: Path, definition: dict[str, Any], **files: bytes) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "a.emd").write_text(json.dumps(definition))
    for name, data in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({}, "TensorFlowObjectDetector.py"),
        (
            {"Framework": "tensorflow", "ModelConfiguration": " objectdetectionapi"},
            "TensorFlowObjectDetector.py",
        ),
        (
            {"InferenceFunction": "[functions]System/DeepLearning/objectdetector.PY"},
            "TensorFlowObjectDetector.py",
        ),
        ({"ModelConfiguration": "DeepLab", "ModelType": "ClassifyPixels"}, "TensorFlowImageClassifier.py"),
        ({"Framework": "Keras", "ModelConfiguration": {"Name": "MaskRCNN"}}, "KerasMaskDetector.py"),
        (
            {
                "Framework": "Keras",
                "ModelConfiguration": {"Name": "MaskRCNN"},
                "ModelType": "InstanceDetection",
            },
            "KerasMaskDetector.py",
        ),
        (
            {
                "Framework": "Keras",
                "ModelConfiguration": {"Name": "MaskRCNN"},
                "InferenceFunction": "[Functions]System\\DeepLearning\\ImageClassifier.py",
            },
            "KerasMaskClassifier.py",
        ),
        (
            {
                "Framework": "Keras",
                "ModelConfiguration": "KerasClassifier",
                "ModelType": "ObjectClassification",
            },
            "KerasObjectClassifier.py",
        ),
    ],
)
def test_a_predefined_configuration_gets_its_function(changes: dict[str, Any], file: str) -> None:
    found = _resolved(**changes)
    assert isinstance(found, Builtin)
    assert found.file == file
    assert found.path.is_file()


@pytest.mark.parametrize(
    ("changes", "problem", "remedy"),
    [
        ({"Framework": "CNTK", "ModelConfiguration": "FasterRCNN"}, "CNTK", "ONNX"),
        (
            {"Framework": "PyTorch", "ModelConfiguration": "FastaiSSD"},
            "FastaiSSD is not built in yet",
            "InferenceFunction",
        ),
        (
            {"Framework": "PyTorch", "ModelConfiguration": "FeatureClassifier"},
            "FeatureClassifier",
            "save_inference_file",
        ),
        ({"ModelType": "ObjectClassification"}, "does not go with", "Set ModelType to ObjectDetection"),
        (
            {"InferenceFunction": "[Functions]System\\DeepLearning\\ArcGISLearn\\ArcGISImageClassifier.py"},
            "built into ArcGIS",
            "save_inference_file",
        ),
        (
            {"InferenceFunction": "[Functions]System\\ObjectDetector.py", "ModelConfiguration": None},
            "needs a Framework",
            "predefined",
        ),
    ],
)
def test_what_is_not_built_in_says_the_way_out(changes: dict[str, Any], problem: str, remedy: str) -> None:
    found = _resolved(**changes)
    assert isinstance(found, NotBuiltIn)
    assert problem in found.problem
    assert remedy in found.remedy


def test_a_package_with_a_function_of_its_own_gets_none() -> None:
    assert _resolved(InferenceFunction="Own.py") is None
    assert _resolved(Framework=None, ModelConfiguration=None) is None


def test_the_source_of_built_in_functions_counts_where_it_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = read_definition(json.dumps({**DETECTOR, "InferenceFunction": "Own.py"}))
    asked = read_definition(json.dumps(DETECTOR))
    assert function_identity(own) == {}
    shipped = function_identity(asked)
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    (tmp_path / "TensorFlowObjectDetector.py").write_text("changed = True")
    builtin._source_digest.cache_clear()
    changed = function_identity(asked)
    builtin._source_digest.cache_clear()
    assert set(changed) == set(shipped) == {"builtin"}
    assert changed != shipped


def test_built_in_functions_are_whole_and_import_nothing_of_ours() -> None:
    entries = [entry for kinds in (*BUILTIN.values(), GENERIC) for entry in kinds.values()]
    for file in {entry.file for entry in entries}:
        tree = ast.parse((FOLDER / file).read_text())
        assert any(isinstance(node, ast.ClassDef) and node.name == Path(file).stem for node in tree.body)
    ours = {"tasks", "flows", "infra", "pydantic"}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & ours, path.name


def test_a_sound_frozen_graph_is_read_without_tensorflow(tmp_path: Path) -> None:
    folder = _folder(tmp_path, DETECTOR, model__pb=_graph((*TENSORS, "a" * 300)))
    assert graph_nodes(folder / "model.pb") == dict.fromkeys((*TENSORS, "a" * 300), "Identity")
    assert package_problems(folder) == []


@pytest.mark.parametrize(
    ("data", "said", "remedy"),
    [
        (_graph(TENSORS[:3]), "has no tensor detection_classes", "ObjectDetectionAPI exporter"),
        (_graph(TENSORS, "VarHandleOp"), "holds variables", "Freeze"),
        (b"\x08\x01" + _field(2, b""), "SavedModel", "Freeze"),
        (_graph(TENSORS)[:-8], "cut off", "Freeze"),
        (b"", "empty", "Freeze"),
        (b"\xff" * 40, "no frozen graph", "Freeze"),
    ],
)
def test_a_graph_that_cannot_run_is_told(tmp_path: Path, data: bytes, said: str, remedy: str) -> None:
    (problem,) = package_problems(_folder(tmp_path, DETECTOR, model__pb=data))
    assert problem.check == "weights"
    assert said in problem.text
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("changes", "files", "check", "said"),
    [
        ({"ImageWidth": None}, {"model__pb": _graph(TENSORS)}, "numbers", "ImageWidth is missing"),
        ({"ModelFile": "model.h5"}, {"model__h5": HDF5}, "weights", "is none of .pb"),
        (
            {"Framework": "Keras", "ModelConfiguration": {"Name": "MaskRCNN", "Config": "..\\net"}}
            | {"ModelFile": "m.h5"},
            {"m__h5": HDF5},
            "function",
            "Architecture is missing",
        ),
        (
            {"Framework": "Keras", "ModelConfiguration": {"Name": "MaskRCNN", "Architecture": "net"}}
            | {"ModelFile": "m.h5"},
            {"m__h5": HDF5, "other__py": b""},
            "function",
            "'net' is no module",
        ),
        (
            {"Framework": "Keras", "ModelConfiguration": "KerasClassifier", "ModelFile": "m.keras"}
            | {"ModelType": "ObjectClassification"},
            {"m__keras": HDF5},
            "weights",
            "not a Keras archive",
        ),
    ],
)
def test_validate_says_what_the_built_in_function_lacks(
    tmp_path: Path, changes: dict[str, Any], files: dict[str, bytes], check: str, said: str
) -> None:
    problems = package_problems(_folder(tmp_path, {**DETECTOR, **changes}, **files))
    assert any(item.check == check and said in item.text and item.remedy for item in problems)


def test_a_mask_rcnn_with_its_modules_is_sound(tmp_path: Path) -> None:
    configuration = {"Name": "MaskRCNN", "Architecture": ".\\net", "Config": "net.py"}
    definition = {**DETECTOR, "Framework": "Keras", "ModelConfiguration": configuration, "ModelFile": "m.h5"}
    assert package_problems(_folder(tmp_path, definition, m__h5=HDF5, net__py=b"")) == []


def test_the_card_says_that_the_function_is_built_in(tmp_path: Path) -> None:
    path = tmp_path / "trees.dlpk"
    write_dlpk(path, read_definition(json.dumps(DETECTOR)), {"model.pb": _graph(TENSORS)})
    card = card_text(examine_package(path))
    assert "built in: TensorFlow ObjectDetectionAPI" in card
