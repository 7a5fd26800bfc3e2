"""Scores through the real host: blended classes, kept probabilities, and packages that offer none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
import torch
from rio_cogeo.cogeo import cog_validate
from scipy import ndimage

from tasks.errors import BadInputError
from tasks.infer.describe import describe
from tasks.infer.finish import Finished, finish
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part, load_plan, save_plan
from tasks.infer.plan import inspect_collection, make_plan
from tasks.infer.planned import Plan
from tasks.package import Package
from tasks.store import iter_files, join
from tests.unit.package.one_layer import one_layer


def planned(store: Any, package: Package, uris: list[str], **more: Any) -> Plan:
    values = {
        "input_raster": uris,
        "model": "m.dlpk",
        "output_classified_raster": "classes",
        "shard_size": 100,
        **more,
    }
    return make_plan(
        ClassifyPixelsParameters.model_validate(values),
        rasters=inspect_collection(uris),
        package=package,
        package_uri="m.dlpk",
        description=describe(package, {}, store, foreign=False),
        processor="CPU",
    )


def applied(store: Any, package: Package, uris: list[str], **more: Any) -> tuple[Plan, Finished]:
    plan = planned(store, package, uris, **more)
    plan = load_plan(store, save_plan(store, plan))
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    return plan, finish(store, plan, {})


def bright(array: Any) -> Any:
    """255ths of the second score on the whole array."""
    total = array.astype(np.int64).sum(axis=0)
    for axis in (0, 1):
        total = ndimage.correlate1d(total, np.ones(7, np.int64), axis=axis, mode="constant")
    return np.rint(np.clip((total / 147 / 256).astype(np.float32), 0, 1) * 255).astype(int)


@pytest.mark.parametrize("stitching", ["TRIM", "BLEND"])
def test_probabilities_are_published_beside_the_classes(
    store: Any, scorer: Any, write_scene: Any, texture: Any, stitching: str
) -> None:
    uris = [write_scene("west", texture[:, :, :99]), write_scene("east", texture[:, :, 99:], at=(0, 99))]
    plan, result = applied(store, scorer, uris, stitching=stitching, keep_probabilities=True, top_classes=9)
    assert plan.scoring is not None
    assert (plan.scoring.margin > 0) is (stitching == "BLEND")
    assert len(plan.shards) > 4
    second = bright(texture)
    # The filter sees 3 px, and what is mixed in has 4 px of context: nothing depends on the tiles.
    with rasterio.open(join(plan.folder, "classes.tif")) as dataset:
        classes = dataset.read(1)
        clear = np.abs(second - 127.5) > 1  # the rest is a matter of rounding
        np.testing.assert_array_equal(classes[clear], np.where(second > 127.5, 2, 1)[clear])
    with rasterio.open(join(plan.folder, "classes_probability.tif")) as dataset:
        assert dataset.count == 2
        probability = dataset.read()
        assert (dataset.read_masks(1) == 255).all()
    best = np.maximum(second, 255 - second)
    assert np.abs(probability[0] - best).max() <= 1
    assert np.abs(probability.astype(int).sum(axis=0) - 255).max() <= 1
    with rasterio.open(join(plan.folder, "classes_alternatives.tif")) as dataset:
        np.testing.assert_array_equal(dataset.read(1), 3 - classes)
        assert dataset.colormap(1)[2] == (250, 240, 0, 255)
    for name in ("classes", "classes_probability", "classes_alternatives"):
        valid, errors, _ = cog_validate(join(plan.folder, f"{name}.tif"))
        assert valid, errors
    assert [output["name"] for output in result.manifest.details["outputs"]] == [
        "classes",
        "classes_probability",
        "classes_alternatives",
    ]


def test_keeping_probabilities_changes_no_class(
    store: Any, scorer: Any, write_scene: Any, texture: Any
) -> None:
    holed = texture.copy()
    holed[:, 90:180, 70:140] = 0
    uri = write_scene("scene", holed, nodata=0)
    made = []
    for more in ({}, {"keep_probabilities": True, "top_classes": 1}):
        plan, _ = applied(store, scorer, [uri], model_arguments=[], **more)
        with rasterio.open(join(plan.folder, "classes.tif")) as dataset:
            made.append(dataset.read(1))
            empty = dataset.read_masks(1) == 0
    assert set(np.unique(made[0])) == {0, 1, 2}
    np.testing.assert_array_equal(made[0], made[1])
    with rasterio.open(join(plan.folder, "classes_probability.tif")) as dataset:
        np.testing.assert_array_equal(dataset.read_masks(1) == 0, empty)


@pytest.mark.parametrize("wish", [{"stitching": "BLEND"}, {"keep_probabilities": True}])
def test_a_package_without_scores_is_refused_with_the_reason(
    store: Any, classifier: Any, write_scene: Any, texture: Any, wish: dict[str, Any]
) -> None:
    with pytest.raises(BadInputError, match=r"function of bright offers no predict_scores.*TRIM without"):
        planned(store, classifier, [write_scene("scene", texture)], **wish)


def test_a_classification_becomes_polygons_that_no_shard_cuts(
    store: Any, scorer: Any, write_scene: Any, texture: Any
) -> None:
    uri = write_scene("scene", texture)
    plan, result = applied(
        store,
        scorer,
        [uri],
        output_polygons=True,
        output_formats=["FLATGEOBUF"],
        minimum_area=5,
        shard_size=64,
    )
    with rasterio.open(join(plan.folder, "classes.tif")) as dataset:
        found = rasterio.features.shapes(dataset.read(1), transform=dataset.transform)
        expected = [(shapely.geometry.shape(shape), value) for shape, value in found]
    layer = geopandas.read_parquet(join(plan.folder, "classes_polygons.parquet"))
    large = [(outline, value) for outline, value in expected if outline.area >= 5]
    assert len(large) < len(expected)
    assert len(layer) == len(large)
    assert sorted(layer.area) == pytest.approx(sorted(outline.area for outline, _ in large))
    assert layer["area_m2"].tolist() == pytest.approx(layer.area.tolist(), rel=1e-3)
    tree = shapely.STRtree([outline for outline, _ in large])
    for outline, value in zip(layer.geometry, layer["Classvalue"], strict=True):
        nearest = [large[n] for n in tree.query(outline, predicate="intersects").tolist()]
        assert any(other.equals(outline) and kind == value for other, kind in nearest)
    assert set(layer["Class"]) == {"Dark", "Bright"}
    assert set(layer["source_raster"]) == {uri}
    assert set(layer["run"]) == {plan.run_key}
    names = [output["path"] for output in result.manifest.details["outputs"]]
    assert names[0] == "classes.tif", "the result's address is that of its raster"
    assert {"classes_polygons.gpkg", "classes_polygons.fgb"} <= set(names)
    item = json.loads(store.get(join(plan.folder, "classes.stac.json")))
    assert "polygons_flatgeobuf" in item["assets"]
    assert item["properties"]["processing:software"]["numpy"] == np.__version__  # what computed says so
    assert result.manifest.versions["numpy"] == np.__version__
    # Everything that was published can be found from the item.
    found = {asset["href"].removeprefix("./") for asset in item["assets"].values()}
    assert found == {one.path for one in iter_files(store, plan.folder)} - {"classes.stac.json"}


@pytest.mark.slow
def test_our_own_function_gives_the_same_classes_by_its_scores(
    store: Any, tmp_path: Path, write_scene: Any, texture: Any
) -> None:
    torch.manual_seed(1)
    weight, bias = torch.randn(3, 3, 3, 3) * 2, torch.tensor([-2.0, 0.0, 0.5])
    package = one_layer(tmp_path, weight, bias, {5: "Tree", 6: "Roof"})
    uri = write_scene("scene", texture)
    made = {}
    wishes: dict[str, dict[str, Any]] = {
        "plain": {},
        "kept": {"keep_probabilities": True},
        "blended": {"stitching": "BLEND", "keep_probabilities": True, "shard_size": 64},
    }
    for name, more in wishes.items():
        plan, _ = applied(store, package, [uri], output_classified_raster=name, **more)
        with rasterio.open(join(plan.folder, f"{name}.tif")) as dataset:
            made[name] = dataset.read(1)
    assert plan.scoring is not None
    assert (plan.scoring.layout.batch, plan.scoring.layout.chip_rows, plan.scoring.margin) == (4, 64, 8)
    assert len(np.unique(made["plain"])) == 3
    np.testing.assert_array_equal(made["kept"], made["plain"])
    # The network sees one pixel: blending changes only what its 255ths cannot tell.
    with rasterio.open(join(plan.folder, "blended_probability.tif")) as dataset:
        probability = dataset.read().astype(int)
    clear = probability[0] - probability[1] > 2
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(made["blended"][clear], made["plain"][clear])
