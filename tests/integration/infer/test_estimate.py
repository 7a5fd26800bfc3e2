"""A dry run counts what is left and times a few tiles; it leaves no result behind."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.infer.describe import describe
from tasks.infer.estimate import (
    CALIBRATION_TILES,
    calibrate,
    estimate,
    load_calibration,
    remove_calibration,
    save_calibration,
    why_no_calibration,
)
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part
from tasks.infer.plan import inspect_collection, make_plan
from tasks.infer.planned import Plan
from tasks.infer.shards import ShardStore
from tasks.package import Package
from tasks.settings import settings


def planned(store: Any, package: Package, uri: str, **more: Any) -> Plan:
    values = {
        "input_raster": [uri],
        "model": "m.dlpk",
        "output_classified_raster": "classes",
        "shard_size": 100,
        "shards_per_part": 4,
        **more,
    }
    return make_plan(
        ClassifyPixelsParameters.model_validate(values),
        rasters=inspect_collection([uri]),
        package=package,
        package_uri="m.dlpk",
        description=describe(package, {}, store, foreign=False),
        processor="CPU",
    )


def test_what_is_left_is_counted_and_timed(
    store: Any, scorer: Package, write_scene: Any, texture: Any
) -> None:
    uri = write_scene("scene", texture)
    wishes = {"stitching": "BLEND", "keep_probabilities": True, "top_classes": 2}
    plan = planned(store, scorer, uri, **wishes)
    assert not why_no_calibration(store, plan)
    times = calibrate(store, plan, scorer)
    found = estimate(store, plan, times)
    assert (found.rasters, found.grids, found.parts) == (1, 1, len(plan.parts))
    assert (found.shards, found.shards_found) == (len(plan.shards), 0)
    assert found.tiles == 5 * 5
    assert found.output_mb == round(300 * 260 * (1 + 2 + 1) / 2**20, 1)
    assert found.results_mb is not None
    assert found.memory_mb > 200
    assert found.device == "cpu"
    assert found.seconds_per_tile is not None
    assert found.seconds_starting is not None
    expected = len(plan.parts) * found.seconds_starting + found.tiles * found.seconds_per_tile
    assert found.seconds is not None
    assert abs(found.seconds - expected) < 0.2
    sink = ShardStore(store, settings().root)
    assert not any(sink.exists(shard) for shard in plan.shards)

    compute_part(store, plan, 0, package=scorer)
    after = estimate(store, plan, times)
    assert after.shards_found == plan.parts[0][1]
    assert after.tiles < found.tiles
    for part in range(1, len(plan.parts)):
        compute_part(store, plan, part, package=scorer)
    why_not = why_no_calibration(store, plan)
    done = estimate(store, plan, None, why_not)
    assert (done.tiles, done.seconds, done.seconds_per_tile) == (0, 0.0, None)
    assert "in the store" in done.remark

    uri = f"{plan.folder}/calibrations/x/plan.json"
    save_calibration(store, uri, times)
    assert load_calibration(store, uri) == times
    remove_calibration(store, uri)
    assert not list(store.list(f"{plan.folder}/calibrations/"))


def test_tiles_without_imagery_give_no_time(store: Any, classifier: Package, write_scene: Any) -> None:
    assert CALIBRATION_TILES > 1
    uri = write_scene("empty", np.zeros((3, 200, 200), np.uint8), nodata=0)
    plan = planned(store, classifier, uri)
    found = estimate(store, plan, calibrate(store, plan, classifier))
    assert found.seconds is None
    assert "no imagery" in found.remark
    assert found.tiles > 0
