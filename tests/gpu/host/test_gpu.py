"""On a real GPU: the contained function computes there, and a GPU is never given twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import DeviceError
from tasks.host import HostLimits, HostProcess, visible_gpus
from tasks.package import Package, read_definition

pytestmark = pytest.mark.gpu

FUNCTION = """
import torch

class OnGpu:
    def initialize(self, **kwargs):
        use = arcpy.env.processorType == "GPU" and torch.cuda.is_available()
        self.device = torch.device("cuda", kwargs["device"]) if use else torch.device("cpu")

    def getParameterInfo(self):
        return [{"name": "raster", "dataType": "raster"}]

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        batch = torch.as_tensor(pixelBlocks["raster_pixels"]).to(self.device, torch.float32)[None]
        weights = torch.ones(1, batch.shape[1], 3, 3, device=self.device)
        sums = torch.nn.functional.conv2d(batch, weights, padding=1)
        assert sums.is_cuda
        return {"output_pixels": sums[0].cpu().numpy()}
"""


@pytest.fixture
def package(tmp_path: Path) -> Package:
    if not visible_gpus():
        pytest.skip("no GPU here")
    (tmp_path / "OnGpu.py").write_text(FUNCTION)
    text = json.dumps({"Framework": "PyTorch", "InferenceFunction": "OnGpu.py", "ExtractBands": [0, 1, 2]})
    (tmp_path / "OnGpu.emd").write_text(text)
    return Package(folder=tmp_path, definition=read_definition(text), digest="0" * 64, name="OnGpu")


def test_contained_function_computes_on_the_gpu(package: Package) -> None:
    limits = HostLimits(start_timeout_s=120, block_timeout_s=120, memory_mb=16_000)
    with HostProcess(package, "GPU", limits=limits) as host:
        result = host.run("updatePixels", np.ones((3, 16, 16), np.uint8))
        assert host.device.startswith("cuda:0 ")
        short = HostLimits(start_timeout_s=0.5, block_timeout_s=1, memory_mb=16_000)
        with pytest.raises(DeviceError, match="is taken by process"):
            HostProcess(package, "GPU", limits=short).__enter__()
    assert result[0, 8, 8] == 27
    with HostProcess(package, "GPU", limits=limits) as host:
        assert host.device.startswith("cuda:0 ")
