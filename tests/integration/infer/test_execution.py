"""Execution engines through plan, host and parts: chosen once, compared once, followed by all parts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from tasks.errors import BadInputError
from tasks.host import FunctionFailure, HostProcess
from tasks.infer import execution
from tasks.infer.describe import describe
from tasks.infer.engine_cache import EngineCache
from tasks.infer.execution import decided_engine, engine_arguments, tiles_to_compare
from tasks.infer.operators import read_pixels
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part, read_window
from tasks.infer.plan import inspect_collection, make_plan
from tasks.infer.prepare import prepare
from tasks.infer.shards import ShardStore
from tasks.package import ModelDefinition, Package, open_package, write_dlpk
from tasks.package.fetch import fetch_package
from tasks.package.publish import publish_package
from tasks.settings import settings
from tests.unit.package.one_layer import one_layer

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
    assert first.execution["pixels"] == execution.FEWEST_TILES
    assert decided_engine(store, plan) == first.execution
    sink = ShardStore(store, settings().root)
    values = [np.unique(read_pixels(sink.get(shard))).tolist() for shard in plan.shards[:6]]
    assert values == [[1]] * 3 + [[2]] * 3, "the first part compares, the second follows"
    # Torch in float32 needs no comparison, and leaves no decision.
    assert compute_part(store, plain, 0, package=settling).execution["pixels"] == 0
    assert decided_engine(store, plain) is None


# The same, with something to keep; it says in its report what it was given.
KEEPING = (
    FUNCTION.replace("Settling", "Plain")
    + """

class Keeping(Plain):
    def engine_identity(self):
        return {"identity": "one"}

    def settle_engine(self, blocks, decided=None, kept=None):
        report = {**Plain.settle_engine(self, blocks, decided), "fell_back": [], "refused": []}
        return {**report, "compared": len(blocks), "kept": kept is not None, "given": (kept or b"").decode()}

    def engine_kept(self):
        return b"kept by SALT"
"""
)


@pytest.fixture
def part_of(store: Any, tmp_path: Path, write_scene: Any, texture: Any) -> Any:
    """``part_of(salt, output)``: what the first part of a run of a package of its own says of its engine."""

    def part(salt: str, output: str, *, trusted: bool = True, **more: Any) -> dict[str, Any]:
        path, name = tmp_path / f"{salt}.dlpk", "Keeping.py"
        definition = ModelDefinition.model_validate(
            {
                "ModelType": "ImageClassification",
                "InferenceFunction": name,
                "ImageHeight": 80,
                "ImageWidth": 80,
                "ExtractBands": [0, 1, 2],
                "Classes": [{"Value": 1, "Name": "One"}, {"Value": 2, "Name": "Two"}],
                "Chipline": {"ExecutionEngines": True},
            }
        )
        if not path.exists():
            write_dlpk(path, definition, {name: KEEPING.replace("SALT", salt).encode()})
            write_scene(salt, texture)
        uri = publish_package(store, path, made_by="test")
        package = fetch_package(uri, store)
        values: dict[str, Any] = {
            "input_raster": [str(tmp_path / "imagery" / f"{salt}.tif")], "model": uri, "shard_size": 100,
            "execution_engine": "ONNXRUNTIME", "precision": "FLOAT32", "output_classified_raster": output,
            **more,
        }  # fmt: skip
        plan = prepare(ClassifyPixelsParameters.model_validate(values), store)
        if not trusted:
            plan = plan.model_copy(update={"package": plan.package.model_copy(update={"foreign": True})})
        return compute_part(store, plan, 0, package=package).execution

    return part


def cached(tmp_path: Path, ending: str) -> list[Path]:
    return sorted((tmp_path / "cache" / "engines").glob(f"*/*.{ending}"))


def test_a_start_leaves_its_engine_and_its_verdict_to_the_next(part_of: Any, tmp_path: Path) -> None:
    first = part_of("one", "a")
    assert (first["given"], first["compared"]) == ("", execution.FEWEST_TILES)
    (engine,), (verdict,) = cached(tmp_path, "engine"), cached(tmp_path, "json")
    digest, content = engine.read_bytes()[:32], engine.read_bytes()[32:]
    assert content == b"kept by one"
    assert digest == hashlib.sha256(content).digest()
    # Another run over the same imagery: what was kept is given, and nothing is compared again.
    second = part_of("one", "b", shards_per_part=1)
    assert (second["given"], second["compared"]) == ("kept by one", 0)
    # Other arguments are another comparison, by the same engine.
    third = part_of("one", "c", extent=[500_000, 4_899_900, 500_100, 4_900_000])
    assert (third["given"], third["compared"] > 0) == ("kept by one", True)
    # Another package gets nothing of it.
    other = part_of("two", "a")
    assert (other["given"], other["compared"]) == ("", execution.FEWEST_TILES)
    assert len({path.parent for path in cached(tmp_path, "engine")}) == 2
    # What was damaged is not given, and made again.
    engine.write_bytes(digest + b"kept by two")
    verdict.write_bytes(verdict.read_bytes()[:-1])
    again = part_of("one", "d")
    assert (again["given"], again["compared"]) == ("", execution.FEWEST_TILES)
    assert engine.read_bytes() == digest + content


def test_of_a_package_from_elsewhere_nothing_is_kept(
    part_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIPLINE_ALLOW_UNCONTAINED", "true")
    settings.cache_clear()
    assert part_of("one", "a", trusted=False)["given"] == ""
    assert not cached(tmp_path, "*")
    assert part_of("one", "a")["given"] == ""
    monkeypatch.setenv("CHIPLINE_ENGINE_CACHE_MB", "0")
    settings.cache_clear()
    assert part_of("one", "b")["given"] == ""


def test_the_cache_of_engines_is_bounded(store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHIPLINE_ENGINE_CACHE_MB", "1")
    settings.cache_clear()

    def cache(digest: str) -> EngineCache:
        host = SimpleNamespace(engine_identity={"of": digest}, package_digest=digest, scalars={})
        return EngineCache(store, cast("HostProcess", host), foreign=False)

    large = bytes(400_000)
    for age, digest in enumerate(("a", "b", "c"), 1):
        cache(digest).keep_engine(large)
        if digest != "c":
            assert cache("a").engine() == large  # used again
        for path in cached(tmp_path, "engine"):
            if path.parent.name == "a":
                os.utime(path, (1000 * age, 1000 * age))
            elif path.parent.name == "b":
                os.utime(path, (500, 500))
    assert [path.parent.name for path in cached(tmp_path, "engine")] == ["a", "c"]
    cache("d").keep_engine(bytes(2**21))
    assert [path.parent.name for path in cached(tmp_path, "engine")] == ["a", "c"]


def test_tiles_to_compare_are_spread_over_the_work_and_hold_imagery(
    store: Any, settling: Package, write_scene: Any, texture: Any
) -> None:
    holes = np.tile(texture, (1, 4, 5))
    holes[:, 300:900, 300:1000] = 0
    uri = write_scene("scene", holes, nodata=0)
    parameters = ClassifyPixelsParameters(
        input_raster=[uri], model="m.dlpk", output_classified_raster="out", shard_size=200
    )
    plan = make_plan(
        parameters,
        rasters=inspect_collection([uri]),
        package=settling,
        package_uri="m.dlpk",
        description=describe(settling, {}, store, foreign=False),
        processor="CPU",
    )
    places: list[Any] = []

    def read(shard: Any, window: Any) -> Any:
        places.append((window.row + window.rows // 2, window.col + window.cols // 2))
        return read_window(plan, shard, window)

    host = SimpleNamespace(configuration={"tile_size": 48}, engine_identity={})
    found = tiles_to_compare(plan, cast("HostProcess", host), read)
    # Blocks of 64 px are four tiles of 32 px, with 8 px around each.
    assert {tile.shape for tile in found} == {(3, 48, 48)}
    assert execution.FEWEST_TILES < len(found) <= execution.MOST_TILES
    assert sum(bool((tile == 0).all(axis=0).mean() > 0.5) for tile in found) <= 4
    rows, cols = np.array(places).T
    counts = np.histogram2d(rows, cols, bins=(3, 3), range=((0, 1200), (0, 1300)))[0]
    assert (counts > 0).all()
    host.configuration, host.engine_identity = {}, None  # packaged before there was a clear verdict
    whole = tiles_to_compare(plan, cast("HostProcess", host), read)
    assert {tile.shape for tile in whole} == {(3, 80, 80)}
    assert execution.FEWEST_TILES - 4 < len(whole) <= execution.FEWEST_TILES


def test_a_contained_openvino_gives_torchs_classes_narrow_numbers_give_way_and_it_is_kept(
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
        assert (report["tiles"], report["kept"]) == (1, False)
        np.testing.assert_array_equal(host.run("updatePixels", block, shape=(32, 32)), wanted)
        kept, identity = host.engine_kept(), host.engine_identity
        assert kept
        with pytest.raises(FunctionFailure, match="ONNX Runtime computes in float32"):
            host.settle_engine([], {"execution_engine": "ONNXRUNTIME", "precision": "BFLOAT16"})
    with HostProcess(package, arguments=asked, foreign=False) as host:
        assert host.engine_identity == identity
        assert host.settle_engine([], report, kept)["kept"] is True
        np.testing.assert_array_equal(host.run("updatePixels", block, shape=(32, 32)), wanted)
    assert len(np.unique(wanted)) == 2


def _package(folder: Path) -> Package:
    torch.manual_seed(0)
    # Scores near 100 that differ by little: classes vary in float32, and are all the same in bfloat16.
    weight, bias = torch.randn(2, 3, 3, 3) * 1e-2, torch.full((2,), 100.0)
    return one_layer(folder, weight, bias, {5: "Tree"}, batch_size=1, cell_size=1.0)


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
