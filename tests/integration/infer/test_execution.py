"""Execution engines through plan, host and parts: chosen once, compared once, followed by all parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.errors import BadInputError
from tasks.host import FunctionFailure, HostProcess
from tasks.infer import execution
from tasks.infer.describe import describe
from tasks.infer.execution import decided_engine, engine_arguments
from tasks.infer.operators import read_pixels
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part
from tasks.infer.plan import inspect_collection, make_plan
from tasks.infer.shards import ShardStore
from tasks.labels import ClassSchema
from tasks.package import ModelDefinition, Package, open_package, write_dlpk
from tasks.package.build import build_package
from tasks.settings import settings

# A function that settles: it notes what it is told in its answers, since it can write nowhere else.
FUNCTION = """
import numpy as np


class Settling:
    def initialize(self, **kwargs):
        self.decided, self.blocks = None, None

    def getParameterInfo(self):
        return [
            {"name": "raster", "dataType": "raster", "required": True},
            {"name": "execution_engine", "dataType": "string", "value": "TORCH"},
            {"name": "precision", "dataType": "string", "value": "FLOAT32"},
        ]

    def getConfiguration(self, **scalars):
        return {"extractBands": (0, 1, 2), "padding": 8, "tx": 64, "ty": 64}

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"].update(bandCount=1, pixelType="u1")
        return kwargs

    def settle_engine(self, blocks, decided=None):
        self.decided, self.blocks = decided, len(blocks)
        if decided is not None:
            return decided
        assert all(block.shape == (3, 80, 80) and block.any() for block in blocks), [b.shape for b in blocks]
        used = {"execution_engine": "TORCH", "precision": "FLOAT32"}
        return {**used, "fell_back": ["planted"], "pixels": len(blocks)}

    def updatePixels(self, tlc, shape, props, **blocks):
        value = 2 if self.decided else 1
        assert self.blocks is not None, "asked for pixels before it was settled"
        return {"output_pixels": np.full((1, *shape), value, np.uint8)}
"""


@pytest.fixture
def settling(tmp_path: Path) -> Package:
    definition = ModelDefinition.model_validate(
        {
            "ModelType": "ImageClassification",
            "InferenceFunction": "Settling.py",
            "ImageHeight": 80,
            "ImageWidth": 80,
            "ExtractBands": [0, 1, 2],
            "Classes": [{"Value": 1, "Name": "Compared"}, {"Value": 2, "Name": "Followed"}],
            "Chipline": {"ExecutionEngines": True},
        }
    )
    write_dlpk(tmp_path / "settling.dlpk", definition, {"Settling.py": FUNCTION.encode()})
    return open_package(tmp_path / "settling.dlpk", tmp_path / "unpacked")


def test_the_first_part_compares_and_the_others_follow(
    store: Any, settling: Package, write_scene: Any, texture: Any
) -> None:
    uri = write_scene("scene", texture)
    parameters = ClassifyPixelsParameters(
        input_raster=[uri], model="m.dlpk", output_classified_raster="out", shard_size=100, shards_per_part=4
    )
    rasters = inspect_collection([uri])

    def planned(arguments: dict[str, str]) -> Any:
        return make_plan(
            parameters,
            rasters=rasters,
            package=settling,
            package_uri="m.dlpk",
            description=describe(settling, arguments, store, foreign=False),
            processor="CPU",
        )

    plain, plan = planned({}), planned({"execution_engine": "OPENVINO", "precision": "BFLOAT16"})
    assert not {shard.key for shard in plain.shards} & {shard.key for shard in plan.shards}
    assert plan.arguments == {"execution_engine": "OPENVINO", "precision": "BFLOAT16"}

    first, second = (compute_part(store, plan, part, package=settling) for part in (0, 1))
    for report in (first, second):
        assert report.execution["fell_back"] == ["planted"]
        assert report.counters["engine_fallbacks"] == 1
    assert first.execution["pixels"] == execution.COMPARED_TILES
    assert decided_engine(store, plan) == first.execution
    sink = ShardStore(store, settings().root)
    values = [np.unique(read_pixels(sink.get(shard))).tolist() for shard in plan.shards[:6]]
    assert values == [[1]] * 3 + [[2]] * 3, "the first part compares, the second follows"
    # Torch in float32 needs no comparison, and leaves no decision.
    assert compute_part(store, plain, 0, package=settling).execution["pixels"] == 0
    assert decided_engine(store, plain) is None


def test_a_contained_openvino_gives_torchs_classes_and_narrow_numbers_give_way(
    tmp_path: Path,
) -> None:
    package = _package(tmp_path)
    block = np.random.default_rng(2).integers(0, 255, (3, 64, 64)).astype(np.uint8)
    with HostProcess(package, foreign=False) as host:
        wanted = host.run("updatePixels", block, shape=(32, 32))
    asked = {"execution_engine": "OPENVINO", "precision": "BFLOAT16"}
    with HostProcess(package, arguments=asked, foreign=False) as host:
        report = host.settle_engine([block])
        assert (report["execution_engine"], report["precision"]) == ("OPENVINO", "FLOAT32"), report
        assert "OPENVINO in BFLOAT16 agrees" in report["fell_back"][0]
        np.testing.assert_array_equal(host.run("updatePixels", block, shape=(32, 32)), wanted)
        with pytest.raises(FunctionFailure, match="ONNX Runtime computes in float32"):
            host.settle_engine([], {"execution_engine": "ONNXRUNTIME", "precision": "BFLOAT16"})
    assert len(np.unique(wanted)) == 2


SOURCE = """
import torch


class Near(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        return self.head(x)


def build():
    return Near()
"""


def _package(folder: Path) -> Package:
    class Plain:
        minimum, maximum, mean, std, imagenet = (0.0,) * 3, (255.0,) * 3, (0.0,) * 3, (1.0,) * 3, False

    torch.manual_seed(0)
    # Scores near 100 that differ by little: classes vary in float32, and are all the same in bfloat16.
    weights = {"head.weight": torch.randn(2, 3, 3, 3) * 1e-2, "head.bias": torch.full((2,), 100.0)}
    path = build_package(
        kind="pixels",
        name="near",
        network_source=SOURCE,
        state_dict=weights,
        classes=ClassSchema.from_values({5: "Tree"}),
        normalisation=Plain(),
        tile_size=64,
        padding=16,
        batch_size=1,
        cell_size=1.0,
        wkid=32612,
        band_names=("Red", "Green", "Blue"),
        metrics={},
        metrics_html="<html></html>",
        characteristics={},
        extra_definition={},
        into=folder,
    )
    return open_package(path, folder / "near")


def test_auto_takes_the_fastest_there_is_for_work_that_is_large_enough(
    settling: Package, classifier: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: tuple[str, ...] = ("OPENVINO", "ONNXRUNTIME")
    native = True
    monkeypatch.setattr(execution, "engines_there", lambda _: there)
    monkeypatch.setattr(execution, "has_native_bfloat16", lambda: native)

    def chosen(
        engine: Any, precision: Any = "AUTO", processor: Any = "CPU", pixels: int = 10**8, **given: str
    ) -> Any:
        found = engine_arguments(
            settling, given, engine=engine, precision=precision, processor=processor, pixels=pixels
        )
        return tuple(found.values())

    assert chosen("AUTO") == ("OPENVINO", "BFLOAT16")
    assert chosen("AUTO", pixels=10**6) == ()
    assert chosen("OPENVINO", pixels=10**6) == ("OPENVINO", "BFLOAT16")
    assert chosen("AUTO", processor="GPU") == ()
    assert chosen("AUTO", "BFLOAT16", "GPU") == ("TORCH", "BFLOAT16")
    assert chosen("TORCH", "FLOAT32") == ()
    assert chosen("AUTO", precision="FLOAT32", execution_engine="ONNXRUNTIME") == ("ONNXRUNTIME", "FLOAT32")
    assert chosen("ONNXRUNTIME") == ("ONNXRUNTIME", "FLOAT32")
    assert chosen("COMPILED", processor="GPU") == ("COMPILED", "FLOAT32")
    native = False
    assert chosen("AUTO") == ("OPENVINO", "FLOAT32")
    there = ()
    assert chosen("AUTO") == ()
    with pytest.raises(BadInputError, match="no openvino"):
        chosen("OPENVINO")
    with pytest.raises(BadInputError, match="planned for GPUs"):
        chosen("ONNXRUNTIME", "BFLOAT16", "GPU")
    there = ("ONNXRUNTIME",)
    with pytest.raises(BadInputError, match="FLOAT32 on a CPU"):
        chosen("ONNXRUNTIME", "BFLOAT16")
    # A function that is not ours decides for itself.
    plain: Any = {"precision": "AUTO", "processor": "CPU", "pixels": 10**8}
    assert engine_arguments(classifier, {}, engine="AUTO", **plain) == {}
    with pytest.raises(BadInputError, match="no choice of execution engines"):
        engine_arguments(classifier, {}, engine="OPENVINO", **plain)


def test_what_a_python_and_a_processor_have(tmp_path: Path) -> None:
    import sys

    assert execution.engines_there(Path(sys.executable)) == ("OPENVINO", "ONNXRUNTIME")
    for text, native in (
        ("processor : 0\nflags\t\t: fpu avx512_bf16 sse\n", True),
        ("flags : avx2\nbf16 : x", False),
    ):
        (tmp_path / text[:5]).write_text(text)
        assert execution.has_native_bfloat16(tmp_path / text[:5]) is native
