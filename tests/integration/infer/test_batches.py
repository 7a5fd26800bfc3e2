"""Where memory runs out, a part goes on with smaller batches; results stand under the batch they had."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from scipy import ndimage

from tasks.host import FunctionFailure
from tasks.infer.batches import found_shards, note_batch, noted_batches
from tasks.infer.finish import finish
from tasks.infer.parameters import (
    ClassifyObjectsParameters,
    ClassifyPixelsParameters,
    DetectObjectsParameters,
)
from tasks.infer.part import compute_part, is_done
from tasks.infer.prepare import prepare
from tasks.infer.results import shard_results
from tasks.infer.shards import ShardStore
from tasks.package import ModelDefinition, open_package, write_dlpk
from tasks.package.publish import publish_package
from tasks.settings import settings
from tasks.store import join

_spec = importlib.util.spec_from_file_location("functions", Path(__file__).with_name("functions.py"))
assert _spec is not None
assert _spec.loader is not None
functions = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(functions)

# Says that memory ran out, as torch does on a GPU, for more than so many tiles at a time and from some row
# on; or takes so much that the host ends it.
GREEDY = """
import math
import time


class OutOfMemoryError(RuntimeError):
    pass


def fill(count, most, hog_mb):
    if count <= most:
        return
    if hog_mb:
        held = np.ones((hog_mb * count, 1 << 20), np.uint8)
        time.sleep(20)
        raise AssertionError("nobody ended this: " + str(held.shape))
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


LIMITS = [{"name": name, "dataType": "numeric", "value": value} for name, value in
          (("batch_size", 4), ("most", 1), ("from_row", 0), ("hog_mb", 0))]


class Limits:
    def getParameterInfo(self):
        return super().getParameterInfo() + LIMITS

    def getConfiguration(self, **scalars):
        found = super().getConfiguration(**scalars)
        self.batch, self.most = int(scalars["batch_size"]), int(scalars["most"])
        self.from_row, self.hog_mb = int(scalars["from_row"]), int(scalars["hog_mb"])
        if "tile" in scalars:
            side = math.isqrt(self.batch) * int(scalars["tile"])
            found.update(tx=side, ty=side)
        return found
"""

PIXELS = (
    functions.CLASSIFIER
    + GREEDY
    + """

class GreedyPixels(Limits, BrightClassifier):
    def updatePixels(self, tlc, shape, props, **blocks):
        if tlc[1] >= self.from_row:
            fill(self.batch, self.most, self.hog_mb)
        xmin, ymin, xmax, ymax = props["extent"]
        assert (xmax - xmin, ymax - ymin) == (shape[1] * 0.5, shape[0] * 0.5), (props, shape)
        assert (xmin - 500_000, 4_900_000 - ymax) == (tlc[0] * 0.5, tlc[1] * 0.5), (props, tlc)
        return super().updatePixels(tlc, shape, props, **blocks)
"""
)
TOLD = (
    PIXELS
    + '''

class GreedyTold(GreedyPixels):
    """Blocks stay as they are: it splits them itself."""

    def limit_batch(self, batch):
        self.batch = batch
'''
)
SCORES = (
    functions.CLASSIFIER
    + functions.SCORER
    + GREEDY
    + """

class GreedyScores(Limits, ScoreClassifier):
    def getConfiguration(self, **scalars):
        return {**super().getConfiguration(**scalars), "tile_size": int(scalars["tile"]) + 16}

    def predict_scores(self, batch):
        fill(len(batch), self.most, self.hog_mb)
        return super().predict_scores(batch)
"""
)
OBJECTS = (
    functions.OBJECTS
    + GREEDY
    + """

class GreedyObjects(Limits, MeanClassifier):
    def getParameterInfo(self):
        return MeanClassifier.getParameterInfo(self) + LIMITS[1:]

    def vectorize(self, **blocks):
        fill(len(blocks["rasters_pixels"]), self.most, self.hog_mb)
        return super().vectorize(**blocks)
"""
)
BOXES = (
    functions.DETECTOR
    + GREEDY
    + """

class GreedyBoxes(Limits, BlobDetector):
    def vectorize(self, tlc, **blocks):
        if tlc[1] >= self.from_row:
            fill(self.batch, self.most, self.hog_mb)
        return super().vectorize(**blocks)
"""
)
KINDS = {
    "GreedyPixels": (PIXELS, "ImageClassification", [0, 1, 2]),
    "GreedyTold": (TOLD, "ImageClassification", [0, 1, 2]),
    "GreedyScores": (SCORES, "ImageClassification", [0, 1, 2]),
    "GreedyObjects": (OBJECTS, "ObjectClassification", [0]),
    "GreedyBoxes": (BOXES, "ObjectDetection", [0]),
}


@pytest.fixture
def plan_with(store: Any, tmp_path: Path) -> Any:
    """``plan_with(name, tool, values, **arguments)``: a published package of ``KINDS``, and the plan."""

    def plan(name: str, tool: Any, values: dict[str, Any], **arguments: int) -> Any:
        text, kind, bands = KINDS[name]
        definition = {
            "ModelType": kind,
            "InferenceFunction": f"{name}.py",
            "ImageHeight": 48 if kind == "ImageClassification" else 24,
            "ImageWidth": 48 if kind == "ImageClassification" else 24,
            "ExtractBands": bands,
            "Classes": [{"Value": 1, "Name": "Dark"}, {"Value": 2, "Name": "Bright"}],
        }
        path = tmp_path / f"{name}.dlpk"
        write_dlpk(path, ModelDefinition.model_validate(definition), {f"{name}.py": text.encode()})
        given = [{"name": key, "value": str(value)} for key, value in arguments.items()]
        uri = publish_package(store, path, made_by="test")
        made = prepare(tool.model_validate({"model": uri, "model_arguments": given, **values}), store)
        return made, open_package(path, tmp_path / "unpacked" / name)

    return plan


def bright(array: Any) -> Any:
    total = array.astype(np.int64).sum(axis=0)
    for axis in (0, 1):
        total = ndimage.correlate1d(total, np.ones(7, np.int64), axis=axis, mode="constant")
    return np.where(total > 3 * 128 * 49, 2, 1).astype(np.uint8)


def read(uri: str) -> Any:
    with rasterio.open(uri) as dataset:
        return dataset.read(1)


def test_the_rest_of_a_part_is_computed_with_half_the_batch_and_other_parts_start_with_it(
    store: Any, plan_with: Any, write_scene: Any, texture: Any
) -> None:
    uri = write_scene("scene", texture)
    values = {
        "input_raster": [uri], "output_classified_raster": "out", "shard_size": 64, "shards_per_part": 13,
    }  # fmt: skip
    plan, package = plan_with("GreedyPixels", ClassifyPixelsParameters, values, tile=32, from_row=128)
    assert (plan.geometry.rows, len(plan.parts)) == (64, 2)
    first = compute_part(store, plan, 0, package=package)
    # 4 and then 2 tiles are too many.
    assert first.batch["planned"] == 4
    assert first.batch["used"] == 1
    assert first.counters["batch_reductions"] == 2
    assert ["of 4" in reason or "of 2" in reason for reason in first.batch["reasons"]] == [True, True]
    assert "CUDA out of memory" in first.batch["reasons"][0]
    assert noted_batches(store, plan) == [2, 1]
    assert is_done(store, plan, 0)
    assert not is_done(store, plan, 1)
    second = compute_part(store, plan, 1, package=package)
    assert (second.batch["used"], second.counters["batch_reductions"]) == (1, 0)
    assert "another part" in second.batch["reasons"][0]
    # What was done before memory ran out stands under the planned key, the rest under that of its batch.
    sink = ShardStore(store, settings().root)
    as_planned = [shard for shard in plan.shards if sink.exists(shard)]
    assert 0 < len(as_planned) < len(plan.shards)
    assert all(shard.target.row_stop <= 128 for shard in as_planned)
    found = found_shards(store, plan, plan.shards)
    assert {shard.key for shard in found} - {shard.key for shard in as_planned} == {
        f"{shard.key}-batch-1" for shard in plan.shards if shard not in as_planned
    }
    again = compute_part(store, plan, 0, package=package)
    assert (again.counters["shards"], again.counters["tiles"]) == (0, 0)
    details = finish(store, plan, {}).manifest.details
    np.testing.assert_array_equal(read(join(plan.folder, "out.tif")), bright(texture))
    count = len(plan.shards) - len(as_planned)
    assert details["shards_by_smaller_batches"] == {"1": count}
    assert any(f"{count} of {len(plan.shards)} shards" in remark for remark in details["remarks"])


def test_a_process_that_is_ended_for_its_memory_is_started_again_with_less(
    store: Any, plan_with: Any, write_scene: Any, texture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIPLINE_HOST_MEMORY_MB", "400")
    settings.cache_clear()
    uri = write_scene("scene", texture[:, :100, :100])
    values = {"input_raster": [uri], "output_classified_raster": "out"}
    plan, package = plan_with("GreedyTold", ClassifyPixelsParameters, values, tile=32, most=2, hog_mb=200)
    report = compute_part(store, plan, 0, package=package)
    assert report.batch["used"] == 2
    assert "over its limit of 400 MiB" in report.batch["reasons"][0]
    finish(store, plan, {})
    # Blocks are those that were planned: it was told the batch, and splits them itself.
    np.testing.assert_array_equal(read(join(plan.folder, "out.tif")), bright(texture[:, :100, :100]))


def test_without_a_smaller_batch_the_remedy_is_named(
    store: Any, plan_with: Any, write_scene: Any, texture: Any
) -> None:
    uri = write_scene("scene", texture[:, :100, :100])
    values = {"input_raster": [uri], "output_classified_raster": "out"}
    plan, package = plan_with("GreedyTold", ClassifyPixelsParameters, values, tile=32, most=0)
    with pytest.raises(FunctionFailure, match="one tile at a time") as caught:
        compute_part(store, plan, 0, package=package)
    assert all(word in str(caught.value) for word in ("CUDA out of memory", "tile_size", "another device"))


def test_a_detector_from_elsewhere_takes_smaller_blocks(
    store: Any, plan_with: Any, write_scene: Any, dots: Any
) -> None:
    values = {"input_raster": [write_scene("dots", dots)], "shard_size": 64}

    def found(output: str, from_row: int, *, again: bool = False) -> tuple[list[str], int]:
        made = {**values, "output_objects": output}
        plan, package = plan_with("GreedyBoxes", DetectObjectsParameters, made, tile=40, from_row=from_row)
        assert plan.geometry.rows == 80
        if again:
            # What stands at the west was computed by a part that ran out of memory.
            for shard in plan.shards:
                if shard.col == 0:
                    store.delete(ShardStore(store, settings().root).uri(shard))
            note_batch(store, plan, 1, 4, "as another part")
        report = compute_part(store, plan, 0, package=package)
        assert report.batch["used"] == (4 if from_row > 1000 and not again else 1), report.batch
        counts = finish(store, plan, {}).manifest.details.get("shards_by_smaller_batches", {})
        frame = geopandas.read_parquet(join(plan.folder, f"{output}.parquet"))
        return sorted(shapely.to_wkb(frame.geometry.normalize(), hex=True)), sum(counts.values())

    planned, none = found("boxes", 10**6)
    halved, some = found("boxes", 100)
    mixed, west = found("more", 10**6, again=True)
    assert planned == halved == mixed
    assert len(planned) > 20
    assert none == 0 < west < some


def test_a_batch_whose_blocks_do_not_divide_is_passed_over(
    store: Any, plan_with: Any, write_scene: Any, dots: Any
) -> None:
    values = {"input_raster": [write_scene("dots", dots)], "output_objects": "boxes"}
    # Nine tiles to a block, then four, which do not fill nine, then one for a batch of two.
    plan, package = plan_with("GreedyBoxes", DetectObjectsParameters, values, tile=40, batch_size=9, most=2)
    assert plan.geometry.rows == 120
    report = compute_part(store, plan, 0, package=package)
    assert (report.batch["used"], report.counters["batch_reductions"]) == (2, 1)


def test_scores_are_asked_for_in_smaller_batches(
    store: Any, plan_with: Any, write_scene: Any, texture: Any
) -> None:
    uri = write_scene("scene", texture[:, :130, :130])
    values = {"input_raster": [uri], "output_classified_raster": "out", "stitching": "BLEND"}
    outputs = []
    for most in (9, 1):
        plan, package = plan_with("GreedyScores", ClassifyPixelsParameters, values, tile=32, most=most)
        assert plan.scoring is not None
        report = compute_part(store, plan, 0, package=package)
        assert report.batch["used"] == min(most, 4)
        outputs.append([data for _, data in shard_results(store, found_shards(store, plan, plan.shards))])
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_crops_are_handed_over_in_smaller_batches(
    store: Any, plan_with: Any, write_scene: Any, texture: Any, tmp_path: Path
) -> None:
    uri = write_scene("scene", texture[:, :130, :130])
    places = [(500_005 + 6 * n, 4_899_990 - 4 * n) for n in range(7)]
    squares = geopandas.GeoDataFrame(
        geometry=[shapely.box(x - 4, y - 4, x + 4, y + 4) for x, y in places], crs="EPSG:32612"
    )
    squares.to_file(tmp_path / "squares.gpkg")
    values = {
        "input_raster": [uri], "in_features": str(tmp_path / "squares.gpkg"), "out_feature_class": "out",
    }  # fmt: skip
    tables = []
    for most in (9, 1):
        plan, package = plan_with("GreedyObjects", ClassifyObjectsParameters, values, most=most)
        report = compute_part(store, plan, 0, package=package)
        assert report.batch["used"] == min(most, 4)
        tables.append([data for _, data in shard_results(store, found_shards(store, plan, plan.shards))])
    assert tables[0] == tables[1]
