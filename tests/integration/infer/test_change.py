"""Change detection from parameters to the published raster, through the real host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.transform
import rasterio.warp
from scipy import ndimage

from tasks.infer import task
from tasks.infer.finish import finish
from tasks.infer.parameters import DetectChangeParameters
from tasks.infer.parameters_refine import RefineParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.infer.refine import refine
from tasks.package.publish import publish_package
from tasks.store import join


def test_two_dates_become_one_raster_of_changes(
    store: Any, pairs: Any, write_scene: Any, texture: Any, tmp_path: Path
) -> None:
    before = texture[:2]
    after = np.minimum(before.astype(int) + 3, 255).astype(np.uint8)
    after[:, 100:150, 40:90] = 255
    after[:, :30] = 0
    uris = [
        write_scene("early", before),
        # Another coverage, in two files, one of them with nodata.
        write_scene("late_north", after[:, :140, 20:], at=(0, 20), nodata=0),
        write_scene("late_süd", after[:, 140:, 20:], at=(140, 20), nodata=0),
    ]
    parameters = DetectChangeParameters.model_validate(
        {
            "from_raster": uris[:1],
            "to_raster": uris[1:],
            "model": publish_package(store, tmp_path / "pairs.dlpk", made_by="test"),
            "output_classified_raster": "changes",
            "shard_size": 128,
        }
    )
    plan = prepare(parameters, store)
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=pairs)
    result = finish(store, plan, {})
    (output,) = result.manifest.details["outputs"]
    with rasterio.open(join(plan.folder, output["path"])) as dataset:
        made, transform = dataset.read(1), dataset.transform
    difference = after.astype(int).sum(axis=0) - before.astype(int).sum(axis=0)
    expected = np.where((after != 0).any(axis=0), np.where(difference > 20, 2, 1), 0)[:, 20:]
    np.testing.assert_array_equal(made, expected)
    assert transform.c == 500_010
    assert set(np.unique(made)) == {0, 1, 2}
    roles = [(item["role"], Path(item["uri"]).stem) for item in result.manifest.inputs[:3]]
    assert roles == [("before", "early"), ("after", "late_north"), ("after", "late_süd")]


def test_changes_blend_keep_probabilities_and_become_polygons(
    store: Any, pair_scorer: Any, write_scene: Any, texture: Any, tmp_path: Path
) -> None:
    before = texture[:2]
    after = before.copy()
    after[:, 100:150, 40:90] = 255
    after[:, :30] = 0
    uris = [write_scene("early", before), write_scene("late", after, nodata=0)]
    model = publish_package(store, tmp_path / "pair_scorer.dlpk", made_by="test")
    step = (after.astype(np.int64) - before).sum(axis=0)
    step[:30] = 0  # what one date does not show, the function does not see of the other
    for axis in (0, 1):
        step = ndimage.correlate1d(step, np.ones(7, np.int64), axis=axis, mode="constant")
    share = np.clip(0.5 + step / 49 / 1024, 0, 1)
    made = []
    for size in (96, 512):
        parameters = DetectChangeParameters.model_validate(
            {
                "from_raster": uris[:1],
                "to_raster": uris[1:],
                "model": model,
                "output_classified_raster": f"changes{size}",
                "shard_size": size,
                "stitching": "BLEND",
                "keep_probabilities": True,
                "output_polygons": True,
                "minimum_area": 1,
            }
        )
        plan = prepare(parameters, store)
        for part in range(len(plan.parts)):
            compute_part(store, plan, part, package=pair_scorer)
        finish(store, plan, {})
        with rasterio.open(join(plan.folder, f"changes{size}.tif")) as dataset:
            classes = dataset.read(1)
        with rasterio.open(join(plan.folder, f"changes{size}_probability.tif")) as dataset:
            made.append((classes, dataset.read()))
        layer = geopandas.read_parquet(join(plan.folder, f"changes{size}_polygons.parquet"))
        inside = layer[layer["Class"] == "Brighter"].area.sum() * 4
        assert inside == pytest.approx((classes == 2).sum(), abs=0.03 * (classes == 2).sum())
    for one, other in zip(*made, strict=True):
        np.testing.assert_array_equal(one, other)
    classes, probability = made[0]
    inner = slice(40, -8), slice(8, -8)
    second = np.where(classes == 2, probability[0], 255 - probability[0].astype(int))
    assert np.abs(second - np.rint(share * 255))[inner].max() <= 1
    assert not classes[:30].any()

    # Thresholds of the kept probabilities need no model.
    surer = {"input_result": plan.folder, "output_name": "surer", "threshold": 0.55}
    again = refine(store, RefineParameters.model_validate(surer))
    with rasterio.open(join(again.folder, "surer.tif")) as dataset:
        found = dataset.read(1)
    np.testing.assert_array_equal(found != 0, probability[0] + 0.5 >= 0.55 * 255)


def test_collections_by_pattern_and_by_items_in_other_places_are_compared_on_the_first_ones_grid(
    store: Any, pairs: Any, write_scene: Any, tmp_path: Path
) -> None:
    before = np.full((2, 96, 120), 100, np.uint8)
    write_scene("early_west", before[:, :, :70])
    write_scene("early_east", before[:, :, 70:], at=(0, 70))
    write_scene("late_same", before[:, :, :60])
    # Twice as coarse, in degrees, brighter, over the eastern half and beyond.
    (left, right), (top, bottom) = rasterio.warp.transform(
        "EPSG:32612", "EPSG:4326", [500_030, 500_070], [4_900_000, 4_899_952]
    )
    bright = tmp_path / "imagery" / "late_bright.tif"
    place = rasterio.transform.from_bounds(left, bottom, right, top, 40, 48)
    profile = {"driver": "GTiff", "height": 48, "width": 40, "count": 2, "dtype": "uint8"}
    with rasterio.open(bright, "w", crs="EPSG:4326", transform=place, **profile) as dataset:
        dataset.write(np.full((2, 48, 40), 180, np.uint8))
    items = [
        {
            "type": "Feature",
            "id": name,
            "assets": {"data": {"href": name, "type": "image/tiff"}},
            "properties": {},
        }
        for name in ("late_same.tif", "late_bright.tif")
    ]
    document = tmp_path / "imagery" / "late.json"
    document.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    parameters = DetectChangeParameters.model_validate(
        {
            "from_raster": [str(tmp_path / "imagery" / "early_*.tif")],
            "to_raster": [str(document)],
            "model": publish_package(store, tmp_path / "pairs.dlpk", made_by="test"),
            "output_classified_raster": "changes",
        }
    )
    plan = prepare(parameters, store)
    assert [Path(info.uri).stem for info in plan.rasters][2:] == ["late_same", "late_bright"]
    compute_part(store, plan, 0, package=pairs)
    result = finish(store, plan, {})
    (output,) = result.manifest.details["outputs"]
    with rasterio.open(join(plan.folder, output["path"])) as dataset:
        made = dataset.read(1)
        assert dataset.crs.to_epsg() == 32612
    # Along the edge of the coarse raster a pixel may have either.
    assert (made[2:-2, :58] == 1).all()
    assert (made[2:-2, 62:-2] == 2).all()
    areas = output["area_m2_per_class"]
    for value in (1, 2):
        assert areas[str(value)] == pytest.approx((made == value).sum() * 0.25 / 0.9996**2, rel=1e-5)
    assert f"Areas: Same (m²): {areas['1']:,.1f}, Brighter (m²)" in task.summary(plan, result)
