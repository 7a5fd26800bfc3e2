"""ONNX files: data outside the package is refused, and the file says what goes in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tasks.errors import PackageError
from tasks.package import package_problems
from tasks.package.examine import card_rows, examine_package
from tasks.package.onnx_check import onnx_problems, onnx_summary
from tasks.package.pack import pack_package


def _external(location: str, name: str = "w") -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def _model(*initializers: Any, nodes: tuple[Any, ...] = ()) -> Any:
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, None])
    y = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2, 8, 8])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["scores"]), *nodes], "g", [x], [y], initializers
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("x.y", 2)]
    )


def _written(folder: Path, model: Any) -> Path:
    path = folder / "models" / "net.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def test_data_in_the_file_or_beside_it_passes(tmp_path: Path) -> None:
    path = _written(tmp_path, _model(numpy_helper.from_array(np.ones(2, np.float32), "w")))
    assert onnx_problems(path, tmp_path) == []
    path = _written(tmp_path, _model(_external("net.data")))
    assert "which is not in the package" in onnx_problems(path, tmp_path)[0]
    (path.parent / "net.data").write_bytes(bytes(8))
    assert onnx_problems(path, tmp_path) == []


@pytest.mark.parametrize(
    "location",
    ["../../secret", "..", "/etc/passwd", "C:/windows/x", "..\\..\\secret", "sub/../../../secret", "", "a\0b",
     "link/secret", "x" * 2000],
)  # fmt: skip
def test_data_outside_the_package_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(8))
    path = _written(folder, _model(_external(location)))
    (path.parent / "link").symlink_to(tmp_path)
    assert "lies outside the package" in onnx_problems(path, folder)[0]


def test_a_second_location_and_tensors_in_odd_places_are_seen(tmp_path: Path) -> None:
    twice = _external("../../secret")
    twice.external_data.add(key="location", value="net.data")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=_external("/a"))], "inner", [], []
    )
    branch = helper.make_node("If", ["image"], ["z"], then_branch=inner, else_branch=inner)
    model = _model(twice, nodes=(branch,))
    model.functions.append(
        helper.make_function(
            "d", "f", [], [], [helper.make_node("Constant", [], ["c"], value=_external("/b"))], []
        )
    )
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.data").write_bytes(bytes(8))
    problems = onnx_problems(_written(tmp_path, model), tmp_path)
    assert [text.split("'")[1] for text in problems] == ["../../secret", "/a", "/b"]


def test_summary_names_opset_inputs_and_outputs(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones(2, np.float32), "w")
    model = _model(weights)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    found = onnx_summary(_written(tmp_path, model))
    assert found.opset == {"ai.onnx": 17, "x.y": 2}
    assert found.inputs == ("image float32 (n, 3, 8, ?)",)
    assert found.outputs == ("scores float32 (n, 2, 8, 8)",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"Classes": [{"Value": 5, "Name": "a"}]}, []),  # one score more than classes: background
        ({"ImageHeight": 16}, ["and the definition's bands and image size are (n, 3, 16, 8)"]),
        ({"ExtractBands": [0, 1]}, ["image size are (n, 2, 8, 8)"]),
        (
            {"Classes": [{"Value": value, "Name": "a"} for value in range(4)]},
            ["it scores 2 classes", "names 4"],
        ),
        ({"ModelType": "ObjectDetection"}, ["its outputs are scores, without boxes, labels"]),
    ],
)
def test_what_the_built_in_functions_cannot_run_is_told_first(
    tmp_path: Path, changes: dict[str, Any], said: list[str]
) -> None:
    emd = {
        "ModelType": "ImageClassification",
        "ModelFile": "models/net.onnx",
        "ExtractBands": [0, 1, 2],
        "ImageHeight": 8,
        "ImageWidth": 8,
        "Classes": [{"Value": 1, "Name": "a"}, {"Value": 2, "Name": "b"}],
        **changes,
    }
    _written(tmp_path, _model())
    (tmp_path / "net.emd").write_text(json.dumps(emd))
    problems = [item.text for item in package_problems(tmp_path)]
    assert len(problems) == bool(said)
    assert all(part in problems[0] for part in said)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6), st.booleans())
def test_damaged_files_are_refused_or_read(tmp_path: Path, place: int, data: bytes, cut: bool) -> None:
    good = _model(_external("net.data")).SerializeToString()
    path = tmp_path / "net.onnx"
    path.write_bytes(good[:place] + data + (b"" if cut else good[place + len(data) :]))
    assert isinstance(onnx_problems(path, tmp_path), list)


def test_garbage_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    for data in (b"", b"hello", onnx.ModelProto().SerializeToString(), bytes(100)):
        path.write_bytes(data)
        assert "no ONNX model" in onnx_problems(path, tmp_path)[0]


def test_a_packed_onnx_model_shows_opset_inputs_and_outputs(tmp_path: Path) -> None:
    model = _written(tmp_path, _model(_external("net.data")))
    (tmp_path / "net.data").write_bytes(bytes(8))
    (tmp_path / "Runs.py").write_text("class Runs: pass\n")
    emd = {"ModelType": "ObjectClassification", "ModelFile": "net.onnx"}
    (tmp_path / "net.emd").write_text(json.dumps(emd))

    def pack(extra: dict[str, Path]) -> Path:
        return pack_package(
            name="net",
            definition=tmp_path / "net.emd",
            weights=model,
            function=tmp_path / "Runs.py",
            extra=extra,
            into=tmp_path / "out",
        )[0]

    with pytest.raises(PackageError, match=r"'net.data', which is not in the package"):
        pack({})
    rows = dict(card_rows(examine_package(pack({"net.data": tmp_path / "net.data"}))))
    assert rows["format"] == "ONNX, operators ai.onnx 17, x.y 2"
    assert rows["inputs"] == "image float32 (n, 3, 8, ?)"
    assert rows["outputs"] == "scores float32 (n, 2, 8, 8)"
