"""Weights that are no state_dict: ONNX, TorchScript and torch.export, loaded by functions in the child."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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
_SCRIPT = """
    def load(self, path):
        import torch
        self.module = torch.jit.load(path, map_location="cpu")

    def run(self, batch):
        import torch
        with torch.inference_mode():
            return self.module(torch.from_numpy(batch)).numpy()
"""
_EXPORT = _SCRIPT.replace('torch.jit.load(path, map_location="cpu")', "torch.export.load(path).module()")


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


def _packed(folder: Path, weights: Path, source: str, changes: Mapping[str, Any] | None = None) -> Package:
    """The package as ``pack`` makes it, opened again with all checks."""
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
    pack_package(
        name="net",
        definition=folder / "net.emd",
        weights=weights,
        function=function if source else None,
        extra={},
        into=folder / "packed",
    )
    return open_package(folder / "packed" / "net.dlpk", folder / "opened")


@pytest.mark.parametrize(("file", "source"), [("net.onnx", _ONNX), ("net.pt", _SCRIPT)])
def test_a_function_runs_its_weights_in_the_child(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, source: str
) -> None:
    monkeypatch.setattr(settings(), "allow_uncontained", False)
    pixels = np.random.default_rng(5).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    with HostProcess(_packed(tmp_path, weights / file, source), limits=ROOMY) as host:
        np.testing.assert_array_equal(host.run("updatePixels", pixels), _expected(pixels))


@pytest.mark.slow
def test_an_exported_program_runs_in_the_child(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(_network(), (torch.zeros(1, 3, 8, 8),)), path)
    package = _packed(tmp_path / "package", path, _EXPORT)
    assert code_archives(package.folder) == [(package.folder / "net.pt2", "torch.export")]
    pixels = np.random.default_rng(5).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    with HostProcess(package, limits=ROOMY) as host:
        np.testing.assert_array_equal(host.run("updatePixels", pixels), _expected(pixels))
