"""From imagery and a package to published outputs, through the real host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rio_cogeo.cogeo import cog_validate
from scipy import ndimage

from tasks.errors import StoreError
from tasks.infer.describe import describe
from tasks.infer.finish import Finished, finish, published
from tasks.infer.parameters import ClassifyPixelsParameters, DetectObjectsParameters
from tasks.infer.part import compute_part
from tasks.infer.plan import inspect_collection, make_plan
from tasks.infer.planned import Plan
from tasks.infer.shards import ShardStore
from tasks.settings import settings
from tasks.store import current, iter_files, join


def planned(store: Any, package: Any, uris: list[str], **more: Any) -> Plan:
    kind: Any = ClassifyPixelsParameters
    values = {"input_raster": uris, "model": "m.dlpk", "shard_size": 100, "shards_per_part": 1000, **more}
    if package.definition.model_type == "ObjectDetection":
        kind = DetectObjectsParameters
        values.setdefault("output_objects", "found")
    else:
        values.setdefault("output_classified_raster", "classes")
    parameters = kind.model_validate(values)
    return make_plan(
        parameters,
        rasters=inspect_collection(uris),
        package=package,
        package_uri="m.dlpk",
        description=describe(package, {}, store, foreign=False),
        processor="CPU",
    )


def applied(store: Any, package: Any, uris: list[str], **more: Any) -> tuple[Plan, Finished]:
    plan = planned(store, package, uris, **more)
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    return plan, finish(store, plan, {"run": "a"})


def expected(array: Any) -> Any:
    total = array.astype(np.int64).sum(axis=0)
    for axis in (0, 1):
        total = ndimage.correlate1d(total, np.ones(7, np.int64), axis=axis, mode="constant")
    return np.where(total > 3 * 128 * 49, 2, 1).astype(np.uint8)


def boxes_of(image: Any) -> set[tuple[float, ...]]:
    """Map bounds of the blobs of an image whose first pixel lies at (500000, 4900000)."""
    labels, _ = ndimage.label(image > 128)
    return {
        (500_000 + c.start / 2, 4_900_000 - r.stop / 2, 500_000 + c.stop / 2, 4_900_000 - r.start / 2)
        for r, c in ndimage.find_objects(labels)
    }


def layer(plan: Plan, suffix: str = "parquet") -> Any:
    path = join(plan.folder, f"found.{suffix}")
    return geopandas.read_parquet(path) if suffix == "parquet" else geopandas.read_file(path)


def test_an_object_comes_from_the_raster_whose_pixels_are_there(
    store: Any, detector: Any, write_scene: Any, dots: Any
) -> None:
    """Both scenes cover the same rectangle; of the first, only the left side and a corner hold data."""
    image = np.where(dots == 0, 1, dots)[:, :200, :200]
    collar = image.copy()
    collar[:, :, 90:] = 0
    collar[:, 160:, 150:] = image[:, 160:, 150:]
    uris = [write_scene("first", collar, nodata=0), write_scene("second", image, nodata=0)]
    plan, _ = applied(store, detector, uris)
    found = layer(plan)
    middle = found.geometry.centroid
    col = np.floor((middle.x.to_numpy() - 500_000) * 2).astype(int)
    row = np.floor((4_900_000 - middle.y.to_numpy()) * 2).astype(int)
    wanted = [uris[0] if held else uris[1] for held in collar[0, row, col] != 0]
    assert found["source_raster"].tolist() == wanted
    assert set(wanted) == set(uris)


def test_a_mosaic_becomes_one_coloured_cog(
    store: Any, classifier: Any, write_scene: Any, texture: Any
) -> None:
    uris = [write_scene("west", texture[:, :, :99]), write_scene("east", texture[:, :, 99:], at=(0, 99))]
    plan, result = applied(store, classifier, uris)
    cog = join(plan.folder, "classes.tif")
    with rasterio.open(cog) as dataset:
        np.testing.assert_array_equal(dataset.read(1), expected(texture))
        assert dataset.nodata == 0
        assert dataset.colormap(1)[2] == (250, 240, 0, 255)
        assert dataset.transform.c == 500_000
        assert dataset.crs.to_epsg() == 32612
    valid, errors, _ = cog_validate(cog)
    assert valid, errors
    assert {record.path for record in iter_files(store, plan.folder)} >= {
        "classes.tif",
        "classes.tif.aux.xml",
    }
    assert current(store, "outputs/classify_pixels", "classes") == plan.folder
    manifest = result.manifest
    assert manifest.provenance["devices"] == ["cpu"]
    assert manifest.run_key == plan.run_key
    assert [item["role"] for item in manifest.inputs] == ["imagery", "imagery", "package"]
    counts = manifest.details["outputs"][0]["pixels_per_class"]
    assert sum(counts.values()) == texture[0].size


def test_separate_items_become_one_cog_each(
    store: Any, classifier: Any, write_scene: Any, texture: Any
) -> None:
    uris = [
        write_scene("one", texture[:, :120]),
        write_scene("two", texture[:, 120:], at=(120, 0), epsg=32617),
    ]
    plan, _ = applied(store, classifier, uris, processing_mode="PROCESS_ITEMS_SEPARATELY")
    for name, part, epsg in (("one", texture[:, :120], 32612), ("two", texture[:, 120:], 32617)):
        with rasterio.open(join(plan.folder, f"{name}.tif")) as dataset:
            np.testing.assert_array_equal(dataset.read(1), expected(part))
            assert dataset.crs.to_epsg() == epsg


def test_an_extent_gives_a_smaller_raster_with_the_same_pixels(
    store: Any, classifier: Any, write_scene: Any, texture: Any
) -> None:
    extent = [500_020, 4_899_900, 500_100, 4_899_960]
    plan, _ = applied(store, classifier, [write_scene("scene", texture)], extent=extent)
    with rasterio.open(join(plan.folder, "classes.tif")) as dataset:
        assert list(dataset.bounds) == extent
        np.testing.assert_array_equal(dataset.read(1), expected(texture)[80:200, 40:200])


def test_running_the_same_again_does_no_work(
    store: Any, classifier: Any, write_scene: Any, texture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_scene("scene", texture)
    _, first = applied(store, classifier, [uri])
    again = planned(store, classifier, [uri])
    assert not first.already_done
    assert published(store, again) == first.manifest

    def refuse(*_args: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr("tasks.infer.finish_rasters.shard_results", refuse)
    second = finish(store, again, {"run": "b"})
    assert second.already_done
    assert second.manifest == first.manifest


def test_nothing_is_visible_while_a_shard_is_missing(
    store: Any, classifier: Any, write_scene: Any, texture: Any
) -> None:
    plan = planned(store, classifier, [write_scene("scene", texture)])
    compute_part(store, plan, 0, package=classifier)
    store.delete(ShardStore(store, settings().root).uri(plan.shards[-1]))
    with pytest.raises(StoreError, match="Start the run again"):
        finish(store, plan, {})
    assert published(store, plan) is None
    assert current(store, "outputs/classify_pixels", "classes") is None


@pytest.mark.parametrize("shard_size", [64, 160, 1000])
@pytest.mark.parametrize("cut", [False, True])
def test_detections_are_each_blob_once_and_whole(
    store: Any, detector: Any, write_scene: Any, dots: Any, shard_size: int, cut: bool
) -> None:
    if cut:
        uris = [write_scene("a", dots[:, :, :171]), write_scene("b", dots[:, :, 171:], at=(0, 171))]
    else:
        uris = [write_scene("a", dots)]
    plan, result = applied(store, detector, uris, shard_size=shard_size, shards_per_part=12)
    table = layer(plan)
    found = [tuple(bounds) for bounds in table.geometry.bounds.to_numpy().tolist()]
    assert len(found) == len(set(found))
    assert set(found) == boxes_of(dots[0])
    assert set(table["Class"]) == {"Blob"}
    assert set(table["Classvalue"]) == {7}
    np.testing.assert_allclose(table["Confidence"], 50 + 2 * (table.bounds.maxx - table.bounds.minx))
    np.testing.assert_allclose(table["Tall"], 2 * (table.bounds.maxy - table.bounds.miny))
    package = layer(plan, "gpkg")
    assert len(package) == len(table)
    assert package.crs.to_epsg() == table.crs.to_epsg() == 32612
    for uri, centre in zip(table["source_raster"], table.geometry.centroid, strict=True):
        expected_uri = uris[0] if not cut or centre.x < 500_000 + 171 / 2 else uris[1]
        assert uri == expected_uri or abs(centre.x - (500_000 + 171 / 2)) < 1e-6
    assert result.manifest.details["outputs"][0]["objects"] == len(found)


def test_items_in_two_zones_share_one_layer_in_degrees(
    store: Any, detector: Any, write_scene: Any, dots: Any
) -> None:
    uris = [write_scene("here", dots), write_scene("there", dots, epsg=32617)]
    plan, _ = applied(store, detector, uris, processing_mode="PROCESS_ITEMS_SEPARATELY")
    table = layer(plan)
    assert table.crs.to_epsg() == 4326
    assert table.groupby("source_raster").size().tolist() == [len(boxes_of(dots[0]))] * 2
    here = table[table.source_raster == uris[0]].to_crs(32612)
    truth = shapely.box(*np.array(sorted(boxes_of(dots[0]))).T)
    tree = shapely.STRtree(truth)
    nearest = tree.nearest(shapely.centroid(here.geometry.to_numpy()))
    assert sorted(nearest.tolist()) == list(range(len(truth)))
    overlap = shapely.area(shapely.intersection(truth[nearest], here.geometry.to_numpy()))
    np.testing.assert_allclose(overlap, shapely.area(truth[nearest]), rtol=1e-3)

    named, _ = applied(store, detector, uris, processing_mode="PROCESS_ITEMS_SEPARATELY", out_sr=3857)
    assert layer(named).crs.to_epsg() == 3857


def test_nms_is_a_matter_of_finishing_alone(store: Any, detector: Any, write_scene: Any, dots: Any) -> None:
    # The scene twice, half a blob apart: as separate items both report, and NMS keeps the surer one.
    uris = [write_scene("a", dots), write_scene("b", dots, at=(2, 2))]
    separately = {"processing_mode": "PROCESS_ITEMS_SEPARATELY"}
    plain, _ = applied(store, detector, uris, **separately)
    suppressed = planned(store, detector, uris, run_nms=True, max_overlap_ratio=0.1, **separately)
    assert [shard.key for shard in suppressed.shards] == [shard.key for shard in plain.shards]
    result = finish(store, suppressed, {})  # no part was computed for it: the shards are there
    output = result.manifest.details["outputs"][0]
    assert output["objects_before_suppression"] == len(layer(plain))
    assert len(layer(suppressed)) == output["objects"] < len(layer(plain))
    kept = layer(suppressed).geometry.to_numpy()
    one, other = shapely.STRtree(kept).query(kept, predicate="overlaps")
    common = shapely.area(shapely.intersection(kept[one], kept[other]))
    union = shapely.area(kept[one]) + shapely.area(kept[other]) - common
    assert (common <= 0.1 * union).all()


def test_objects_larger_than_the_halo_are_counted(store: Any, detector: Any, write_scene: Any) -> None:
    image = np.zeros((1, 300, 300), np.uint8)
    image[0, 100:104, 10:290] = 200
    _, result = applied(store, detector, [write_scene("long", image)])
    output = result.manifest.details["outputs"][0]
    assert output["objects_larger_than_halo"] == output["objects"] > 1
    assert "halo" in " ".join(result.manifest.details["remarks"])


def test_a_raster_without_objects_gives_an_empty_layer(store: Any, detector: Any, write_scene: Any) -> None:
    plan, _ = applied(store, detector, [write_scene("empty", np.full((1, 100, 100), 9, np.uint8))])
    table = layer(plan)
    assert len(table) == 0
    assert {"Class", "Confidence", "source_raster"} <= set(table.columns)
    assert json.loads(store.get(join(plan.folder, "manifest.json")))["files"] >= 2
    assert Path(join(plan.folder, "found.gpkg")).is_file()
