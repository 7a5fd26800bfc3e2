"""Weights that are no state_dict: ONNX, TorchScript and torch.export, loaded by functions in the child."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

from tasks.host import HostLimits, HostProcess
from tasks.package import Package, open_package
from tasks.package.pack import pack_package
from tasks.package.weights_check import code_archives
from tasks.settings import settings

ROOMY = HostLimits(start_timeout_s=90.0, block_timeout_s=90.0, memory_mb=4000)

_FUNCTION = """
import json
import os
import numpy as np


class Runs:
    def initialize(self, **kwargs):
        with open(kwargs["model"]) as file:
            weights = json.load(file)["ModelFile"]
        self.load(os.path.join(os.path.dirname(kwargs["model"]), weights))

    def getParameterInfo(self):
        return [{"name": "raster", "dataType": "raster"}]

    def getConfiguration(self, **scalars):
        return {"tx": 8, "ty": 8, "padding": 0}

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        scores = self.run(pixelBlocks["raster_pixels"][None].astype(np.float32) / 255)
        return {"output_pixels": np.argmax(scores, axis=1).astype("i4")}
"""
_ONNX = """
    def load(self, path):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, batch):
        return self.session.run(None, {"image": batch})[0]
"""
_EXPORT = """
    def load(self, path):
        import torch
        self.module = torch.export.load(path).module()

    def run(self, batch):
        import torch
        with torch.inference_mode():
            return self.module(torch.from_numpy(batch)).numpy()
"""


_TELLS = """
    def initialize(self, **kwargs):
        self.said = ""
        try:
            self.load(os.path.join(os.path.dirname(kwargs["model"]), "net.pt2"))
        except Exception as error:
            self.said = repr(error)

    def getConfiguration(self, **scalars):
        import builtins
        return {"tx": 8, "ty": 8, "attacked": hasattr(builtins, "attacked"), "said": self.said[:500]}
"""


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()


def _expected(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    with torch.inference_mode():
        scores: torch.Tensor = _network()(torch.from_numpy(pixels[None].astype(np.float32) / 255))
    return scores.argmax(1).numpy().astype(np.int32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network as ``net.onnx`` and ``net.pt``."""
    folder = tmp_path_factory.mktemp("weights")
    network, sample = _network(), torch.zeros(1, 3, 8, 8)
    jit: Any = torch.jit  # untyped in torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jit.trace(network, sample).save(folder / "net.pt")
        # The exporter of the kind that needs no tracing compiler, which takes seconds to import.
        torch.onnx.export(
            network,
            (sample,),
            folder / "net.onnx",
            input_names=["image"],
            output_names=["scores"],
            dynamo=False,
        )
    return folder


def _packed(
    folder: Path,
    weights: Path,
    source: str,
    changes: Mapping[str, Any] | None = None,
    extra: Mapping[str, str] | None = None,
) -> Package:
    """The package as ``pack`` makes it, opened again with all checks; without ``source`` no function."""
    emd = {
        "ModelType": "ImageClassification",
        "ModelFile": weights.name,
        "ExtractBands": [0, 1, 2],
        "ImageHeight": 8,
        "ImageWidth": 8,
        "Classes": [{"Value": value, "Name": f"class {value}"} for value in (1, 2)],
        **(changes or {}),
    }
    folder.mkdir(exist_ok=True)
    (folder / "net.emd").write_text(json.dumps(emd))
    function = folder / "Runs.py"
    function.write_text(_FUNCTION + source)
    for name, text in (extra or {}).items():
        (folder / "extra" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "extra" / name).write_text(text)
    pack_package(
        name="net",
        definition=folder / "net.emd",
        weights=weights,
        function=function if source else None,
        extra={name: folder / "extra" / name for name in extra or {}},
        into=folder / "packed",
    )
    return open_package(folder / "packed" / "net.dlpk", folder / "opened")


def test_a_function_runs_its_onnx_model_in_the_child(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings(), "allow_uncontained", False)
    pixels = np.random.default_rng(5).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    with HostProcess(_packed(tmp_path, weights / "net.onnx", _ONNX), limits=ROOMY) as host:
        np.testing.assert_array_equal(host.run("updatePixels", pixels), _expected(pixels))


# -- the generic contract ----------------------------------------------------------------------------------

_SYSTEM = "[Functions]System\\DeepLearning\\ImageAnalysis\\"
# Loads its weights as a program: TorchScript, under the switch that torch.load obeys.
_CHILD_CLASSIFIER = """
import numpy as np
import torch
import helpers

class ChildImageClassifier:
    def load_model(self, path):
        self.module = torch.jit.load(path, map_location="cpu")
        try:
            torch.load(path, weights_only=False)
        except RuntimeError:
            self.switched = True

    def getParameterInfo(self, required_parameters):
        required_parameters.append({"name": "add", "dataType": "numeric", "value": 0})
        return required_parameters

    def inference(self, batch, **scalars):
        assert self.switched and arcpy.env.processorType == "CPU"
        with torch.inference_mode():
            scores = self.module(torch.from_numpy(helpers.scaled(batch)))
        return scores.argmax(1, keepdim=True) + int(scalars["add"])
"""
_HELPERS = "def scaled(batch):\n    return batch.astype('float32') / 255\n"


def test_a_childs_classifier_runs_as_the_built_in_function_calls_it(weights: Path, tmp_path: Path) -> None:
    changes = {
        "Framework": "PyTorch",
        "ModelConfiguration": ".\\nets\\trees",
        "InferenceFunction": _SYSTEM + "ImageClassifier.py",
    }
    extra = {"nets/trees.py": _CHILD_CLASSIFIER, "nets/helpers.py": _HELPERS}
    package = _packed(tmp_path, weights / "net.pt", "", changes, extra)
    with HostProcess(package, "CPU", {"padding": "2", "add": "10"}, limits=ROOMY) as host:
        assert {item.name for item in host.parameters} == {"padding", "batch_size", "add"}
        assert (host.configuration["tx"], host.configuration["ty"]) == (8, 8)  # 2 x 2 chips of 4 + 2 * 2
        block = np.random.default_rng(6).integers(0, 255, (3, 12, 12), dtype=np.uint8)
        mask = np.ones(block.shape, np.uint8)
        mask[:, :, :4] = 0
        result = host.run("updatePixels", block, mask, shape=(8, 8))
    expected = np.zeros((1, 8, 8), np.int32)
    for row, col in ((0, 0), (0, 4), (4, 0), (4, 4)):
        chip = (block * mask)[:, row : row + 8, col : col + 8]
        expected[:, row : row + 4, col : col + 4] = _expected(chip)[:, 2:6, 2:6] + 10
    expected[:, :, :2] = 0  # no imagery there
    np.testing.assert_array_equal(result, expected)


_CHILD_DETECTOR = """
import numpy as np

class ChildObjectDetector:
    def load_model(self):
        self.weight = 2

    def inference(self, batch, **scalars):
        # The bright square of each chip.
        boxes, scores, classes = [], [], []
        for chip in batch.astype("int"):
            rows, cols = np.nonzero(chip[0] * self.weight > 300)
            if len(rows):
                boxes.append([[rows.min(), cols.min(), rows.max() + 1, cols.max() + 1]])
                scores.append([chip.max() / 255]); classes.append([2])
            else:
                boxes.append([]); scores.append([]); classes.append([])
        return boxes, scores, classes
"""


def test_a_childs_detector_reports_each_object_once_whichever_chips_see_it(
    weights: Path, tmp_path: Path
) -> None:
    changes = {
        "Framework": "PyTorch",
        "ModelType": "ObjectDetection",
        "ModelConfiguration": "squares",
        "InferenceFunction": _SYSTEM + "ObjectDetector.py",
        "ImageHeight": 16,
        "ImageWidth": 16,
        "Padding": 4,
    }
    package = _packed(tmp_path, weights / "net.onnx", "", changes, {"squares.py": _CHILD_DETECTOR})
    whole, beyond = np.zeros((2, 3, 24, 24), np.uint8)  # 2 x 2 chips of 16 whose inner parts are 8
    whole[:, 9:11, 9:12] = 204  # seen whole by all four chips
    beyond[:, 20:22, 21:23] = 204  # in the padding: coordinates beyond the inner block
    with HostProcess(package, limits=ROOMY) as host:
        assert host.geometry_type == 4
        for block, expected in (
            (whole, [(5.0, 5.0), (8.0, 5.0), (8.0, 7.0), (5.0, 7.0)]),
            (beyond, [(17.0, 16.0), (19.0, 16.0), (19.0, 18.0), (17.0, 18.0)]),
        ):
            (found,) = host.run("vectorize", block, shape=(16, 16))
            assert found.rings == [expected]
            assert (found.class_name, found.confidence_raw) == ("class 2", pytest.approx(0.8))


# -- ONNX without a function -------------------------------------------------------------------------------


def test_an_onnx_classifier_needs_no_function(weights: Path, tmp_path: Path) -> None:
    # The statistics make of a pixel what the oracle does: x / 255. One score more than classes: background.
    ones, zeros = [1.0] * 3, [0.0] * 3
    stats = {
        "band_min_values": zeros,
        "band_max_values": [255.0] * 3,
        "scaled_mean_values": zeros,
        "scaled_std_values": ones,
    }
    package = _packed(tmp_path, weights / "net.onnx", "", {"NormalizationStats": stats})
    with HostProcess(package, "CPU", {"padding": "0", "batch_size": "5"}, limits=ROOMY) as host:
        assert (host.configuration["tx"], host.configuration["ty"]) == (16, 16)
        block = np.random.default_rng(6).integers(0, 255, (3, 16, 16), dtype=np.uint8)
        result = host.run("updatePixels", block)
    for row in (0, 8):
        for col in (0, 8):
            chip = (slice(None), slice(row, row + 8), slice(col, col + 8))
            np.testing.assert_array_equal(result[chip], _expected(block[chip]))


def _box_model(path: Path) -> None:
    """Two boxes per image, xmin, ymin, xmax, ymax; the second one's score is the image's mean."""
    boxes = np.array([[1, 2, 5, 4], [0, 0, 8, 8]], np.float32)
    nodes = [
        onnx.helper.make_node("Constant", [], ["boxes"], value=onnx.numpy_helper.from_array(boxes)),
        onnx.helper.make_node("Constant", [], ["labels"], value_ints=[2, 1]),
        onnx.helper.make_node("Constant", [], ["sure"], value_floats=[0.9]),
        onnx.helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        onnx.helper.make_node("Constant", [], ["one"], value_ints=[1]),
        onnx.helper.make_node("Reshape", ["mean", "one"], ["unsure"]),
        onnx.helper.make_node("Concat", ["sure", "unsure"], ["scores"], axis=0),
    ]
    kinds = {"boxes": (onnx.TensorProto.FLOAT, [2, 4]), "labels": (onnx.TensorProto.INT64, [2])}
    kinds["scores"] = (onnx.TensorProto.FLOAT, [2])
    graph = onnx.helper.make_graph(
        nodes,
        "boxes",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path
    )


def test_an_onnx_detector_needs_no_function(tmp_path: Path) -> None:
    _box_model(tmp_path / "net.onnx")
    changes = {"Framework": "ONNX", "ModelType": "ObjectDetection", "BatchSize": 1, "Padding": 0}
    package = _packed(tmp_path / "package", tmp_path / "net.onnx", "", changes)
    with HostProcess(package, "CPU", {"score_threshold": "0.5"}, limits=ROOMY) as host:
        for brightness, expected in ((0, ["class 2"]), (1, ["class 2", "class 1"])):
            found = host.run("vectorize", np.full((3, 8, 8), brightness, np.uint8))
            assert [entry.class_name for entry in found] == expected
            assert found[0].rings == [[(1.0, 2.0), (5.0, 2.0), (5.0, 4.0), (1.0, 4.0)]]
            assert found[0].confidence_raw == pytest.approx(0.9)


@pytest.mark.slow
def test_an_exported_program_runs_in_the_child(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(_network(), (torch.zeros(1, 3, 8, 8),)), path)
    package = _packed(tmp_path / "package", path, _EXPORT)
    assert code_archives(package.folder) == [(package.folder / "net.pt2", "torch.export")]
    pixels = np.random.default_rng(5).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    with HostProcess(package, limits=ROOMY) as host:
        np.testing.assert_array_equal(host.run("updatePixels", pixels), _expected(pixels))


class _Attack:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("import builtins; builtins.attacked = True",)


@pytest.mark.slow
def test_pickled_code_in_an_exported_program_does_not_run_even_unchecked(tmp_path: Path) -> None:
    good, hostile = tmp_path / "good.pt2", io.BytesIO()
    torch.export.save(torch.export.export(_network(), (torch.zeros(1, 3, 8, 8),)), good)
    package = _packed(tmp_path / "package", good, _EXPORT + _TELLS)
    torch.save(_Attack(), hostile)
    # The file changes after the checks, as if they had missed it.
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(package.folder / "net.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, hostile.getvalue() if "sample_inputs" in name else old.read(name))
    with HostProcess(package, limits=ROOMY) as host:
        assert host.configuration["attacked"] is False
        assert "Weights only load failed" in host.configuration["said"]
