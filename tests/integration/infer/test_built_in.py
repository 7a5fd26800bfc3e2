"""Packages that bring no function, through the one loop: an ONNX classifier and a generic detector."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import torch
from scipy import ndimage
from torch import nn

from tasks.infer.finish import finish
from tasks.infer.parameters import ClassifyPixelsParameters, DetectObjectsParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package import ModelDefinition, open_package, write_dlpk
from tasks.package.publish import publish_package
from tasks.store import join


def _run(store: Any, parameters: Any, path: Path) -> tuple[Any, Any]:
    package = open_package(path, path.parent / "unpacked")
    plan = prepare(parameters, store)
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    return plan, finish(store, plan, {})


def test_an_onnx_classifier_gives_what_its_network_gives_on_the_whole_array(
    store: Any, write_scene: Any, texture: Any, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.inference_mode():
        scores = network(torch.from_numpy(texture[None].astype(np.float32)))[0].numpy()
        # Each class gets half of the pixels.
        middle = float(np.median(scores[0] - scores[1]))
        network[2].bias[0] -= middle  # type: ignore[index, operator]
        scores[0] -= middle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, 64, 64),),
            tmp_path / "net.onnx",
            dynamo=False,
            dynamic_axes={"input": {0: "n"}},
            input_names=["input"],
        )
    definition = ModelDefinition.model_validate(
        {
            "Framework": "ONNX",
            "ModelType": "ImageClassification",
            "ModelFile": "net.onnx",
            "ImageHeight": 64,
            "ImageWidth": 64,
            "ExtractBands": [0, 1, 2],
            "Classes": [{"Value": 4, "Name": "a"}, {"Value": 9, "Name": "b"}],
        }
    )
    path = tmp_path / "net.dlpk"
    write_dlpk(path, definition, {"net.onnx": tmp_path / "net.onnx"})
    parameters = ClassifyPixelsParameters.model_validate(
        {
            "input_raster": [write_scene("scene", texture)],
            "model": publish_package(store, path, made_by="test"),
            "output_classified_raster": "classes",
            "shard_size": 128,
        }
    )
    plan, result = _run(store, parameters, path)
    (output,) = result.manifest.details["outputs"]
    with rasterio.open(join(plan.folder, output["path"])) as dataset:
        made = dataset.read(1)
    clear = np.abs(scores[0] - scores[1]) > 1e-3  # of equal scores either class is right
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(made[clear], np.where(scores[0] > scores[1], 4, 9)[clear])
    assert set(np.unique(made)) == {4, 9}


_DETECTOR = """
import torch
from scipy import ndimage

class ChildObjectDetector:
    def load_model(self, path):
        self.network = torch.nn.Conv2d(1, 1, 1)
        self.network.load_state_dict(torch.load(path))

    def getParameterInfo(self, required_parameters):
        return [*required_parameters, {"name": "least", "dataType": "numeric", "value": 0}]

    def inference(self, batch, **scalars):
        with torch.inference_mode():
            bright = self.network(torch.from_numpy(batch.astype("float32")))[:, 0] > float(scalars["least"])
        boxes = []
        for chip in bright.numpy():
            found = ndimage.find_objects(ndimage.label(chip)[0])
            boxes.append([[r.start, c.start, r.stop, c.stop] for r, c in found])
        return boxes, [[0.5] * len(item) for item in boxes], [[1] * len(item) for item in boxes]
"""


def test_a_generic_detector_finds_each_object_once_and_whole(
    store: Any, write_scene: Any, dots: Any, tmp_path: Path
) -> None:
    network = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        network.weight.fill_(1.0)
        network.bias.fill_(-128.0)  # type: ignore[union-attr]
    torch.save(network.state_dict(), tmp_path / "net.pth")
    definition = ModelDefinition.model_validate(
        {
            "Framework": "PyTorch",
            "ModelConfiguration": "blobs",
            "ModelType": "ObjectDetection",
            "ModelFile": "net.pth",
            "ImageHeight": 128,
            "ImageWidth": 128,
            "ExtractBands": [0],
            "Classes": [{"Value": 7, "Name": "Blob"}],
        }
    )
    path = tmp_path / "net.dlpk"
    write_dlpk(path, definition, {"net.pth": tmp_path / "net.pth", "blobs.py": _DETECTOR.encode()})
    parameters = DetectObjectsParameters.model_validate(
        {
            "input_raster": [write_scene("scene", dots)],
            "model": publish_package(store, path, made_by="test"),
            "output_objects": "found",
            "shard_size": 200,
        }
    )
    plan, _ = _run(store, parameters, path)
    found = geopandas.read_parquet(join(plan.folder, "found.parquet"))
    expected = sorted(
        (500_000 + c.start / 2, 4_900_000 - r.stop / 2, 500_000 + c.stop / 2, 4_900_000 - r.start / 2)
        for r, c in ndimage.find_objects(ndimage.label(dots[0] > 128)[0])
    )
    assert sorted(map(tuple, found.bounds.to_numpy())) == expected
    assert set(found["Class"]) == {"Blob"}
    assert set(found["Confidence"]) == {0.5}
