"""The least that a host must do, with nothing of Chipline: unzip, load, configure, call.

Run as a script in a process of its own: ``minimal_host.py PACKAGE.dlpk BLOCKS.npz OUT.json KEY=VALUE…``.
"""

import importlib.util
import json
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class Blocked:
    """Nothing but torch, torchvision and numpy may be imported by a package."""

    names = (
        "tasks",
        "flows",
        "infra",
        "timm",
        "segmentation_models_pytorch",
        "pytorch_lightning",
        "rasterio",
    )

    def find_spec(self, name: str, *_: Any) -> None:
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is blocked")


def main(package: str, blocks: str, out: str, *arguments: str) -> None:
    sys.meta_path.insert(0, Blocked())
    arcpy: Any = types.ModuleType("arcpy")
    arcpy.env = types.SimpleNamespace(processorType="", gpuId=0)
    sys.modules["arcpy"] = arcpy
    folder = Path(out).parent / "unpacked"
    zipfile.ZipFile(package).extractall(folder)
    emd = next(folder.glob("*.emd"))
    definition = json.loads(emd.read_text())
    path = folder / definition["InferenceFunction"]
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    spec.loader.exec_module(module)
    function = getattr(module, path.stem)()
    function.initialize(model=str(emd), device=-1)
    scalars = {
        entry["name"]: entry["value"]
        for entry in function.getParameterInfo()
        if entry["name"] not in ("raster", "model", "device")
    }
    scalars.update(dict(item.split("=") for item in arguments))
    configuration = function.getConfiguration(model=str(emd), device=-1, **scalars)
    answer: dict[str, Any] = {
        "scalars": scalars,
        "configuration": configuration,
        "env": arcpy.env.processorType,
    }
    results = []
    for pixels, mask in _blocks(np.load(blocks)):
        inner = tuple(length - 2 * configuration["padding"] for length in pixels.shape[1:])
        if hasattr(function, "updatePixels"):
            info = function.updateRasterInfo(raster_info={}, output_info={}, **scalars)["output_info"]
            answer["output_info"] = info
            found = function.updatePixels(
                (0, 0), inner, {"pixelType": info["pixelType"]}, raster_pixels=pixels, raster_mask=mask
            )
            results.append({key: value.tolist() for key, value in found.items()})
        else:
            results.append(function.vectorize(raster_pixels=pixels, raster_mask=mask)["output_vectors"])
            answer.update(fields=function.getFields(), geometry=function.getGeometryType())
    answer["results"] = results
    Path(out).write_text(json.dumps(answer))


def _blocks(arrays: Any) -> Iterator[tuple[Any, Any]]:
    for number in range(len(arrays.files) // 2):
        yield arrays[f"pixels_{number}"].copy(), arrays[f"mask_{number}"].copy()


if __name__ == "__main__":
    main(*sys.argv[1:])
