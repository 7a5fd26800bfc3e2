"""Results with other thresholds equal those of a run with these thresholds, and no model runs for them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from tasks.errors import BadInputError
from tasks.infer import task
from tasks.infer.finish import finish
from tasks.infer.parameters import ClassifyPixelsParameters, DetectObjectsParameters
from tasks.infer.parameters_refine import RefineParameters
from tasks.infer.part import compute_part, load_plan, save_plan
from tasks.infer.planned import Plan
from tasks.infer.prepare import prepare
from tasks.infer.refine import Refined, refine
from tasks.infer.refine_pixels import reclassified
from tasks.package import ModelDefinition, Package, open_package, write_dlpk
from tasks.store import iter_files, join

SURE = '''

class SureDetector(BlobDetector):
    """The wider a blob, the surer; blobs below the threshold are left out."""

    def getParameterInfo(self):
        return [*super().getParameterInfo(), {"name": "threshold", "dataType": "numeric", "value": 0.6}]

    def getConfiguration(self, **scalars):
        self.threshold = float(scalars["threshold"])
        return super().getConfiguration(**scalars)

    def vectorize(self, **blocks):
        features = json.loads(super().vectorize(**blocks)["output_vectors"])["features"]
        sure = [one for one in features if one["attributes"]["Confidence"] >= 100 * self.threshold]
        return {"output_vectors": json.dumps({"features": sure})}
'''


@pytest.fixture
def sure(tmp_path: Path, detector: Package, monkeypatch: pytest.MonkeyPatch) -> Package:
    """The detector of this folder with a threshold; ``models`` name it without a store."""
    definition = ModelDefinition.model_validate(
        {
            "ModelType": "ObjectDetection",
            "InferenceFunction": "SureDetector.py",
            "ImageHeight": 128,
            "ImageWidth": 128,
            "ExtractBands": [0],
            "Classes": [{"Value": 7, "Name": "Blob", "Color": [200, 0, 200]}],
        }
    )
    path = tmp_path / "sure.dlpk"
    text = (detector.folder / "BlobDetector.py").read_text() + SURE
    write_dlpk(path, definition, {"SureDetector.py": text.encode()})
    package = open_package(path, tmp_path / "unpacked")
    monkeypatch.setattr("tasks.infer.prepare.fetch_package", lambda *_args: package)
    return package


def applied(store: Any, package: Package, parameters: Any) -> Plan:
    plan = load_plan(store, save_plan(store, prepare(parameters, store)))
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    finish(store, plan, {})
    return plan


def detected(store: Any, package: Package, uri: str, name: str, **more: Any) -> Plan:
    values = {
        "input_raster": [uri],
        "model": f"{uri}.dlpk",
        "output_objects": name,
        "processor_type": "CPU",
    }
    return applied(store, package, DetectObjectsParameters.model_validate({**values, **more}))


def refined(store: Any, folder: str, **more: Any) -> Refined:
    values = {"input_result": folder, "output_name": "again", **more}
    return refine(store, RefineParameters.model_validate(values))


def content(folder: str, name: str) -> set[tuple[Any, ...]]:
    layer = geopandas.read_parquet(join(folder, f"{name}.parquet"))
    rows = zip(layer["Class"], layer["Confidence"], layer["Tall"], layer.geometry.to_wkb(), strict=True)
    return set(rows)


def threshold(value: float) -> list[dict[str, str]]:
    return [{"name": "threshold", "value": str(value)}]


def test_candidates_at_another_threshold_equal_a_run_with_it(
    store: Any, sure: Package, write_scene: Any, dots: Any
) -> None:
    uri = write_scene("dots", dots[:, :200, :200])
    plain = detected(store, sure, uri, "plain")
    kept = detected(store, sure, uri, "kept", keep_candidates=True, candidate_threshold=0.1)
    assert content(kept.folder, "kept") == content(plain.folder, "plain")
    lower = detected(store, sure, uri, "lower", model_arguments=threshold(0.58))
    assert len(content(lower.folder, "lower")) > len(content(plain.folder, "plain"))
    made = refined(store, kept.folder, threshold=0.58)
    assert content(made.folder, "again") == content(lower.folder, "lower")
    # Without a threshold it is that of the layer; the same again does no work.
    same = refined(store, kept.folder)
    assert content(same.folder, "again") == content(plain.folder, "plain")
    assert refined(store, kept.folder).already_done
    none = refined(store, kept.folder, class_thresholds=[{"name": "Blob", "threshold": 1}])
    assert content(none.folder, "again") == set()
    with pytest.raises(BadInputError, match=r"down to a confidence of 0\.1, and 0\.05"):
        refined(store, kept.folder, threshold=0.05)
    with pytest.raises(BadInputError, match=r"down to a confidence of 0\.6, and 0\.5 is"):
        refined(store, plain.folder, threshold=0.5)
    with pytest.raises(BadInputError, match="no class 'Tree'"):
        refined(store, kept.folder, class_thresholds=[{"name": "Tree", "threshold": 1}])


def test_a_layer_whose_own_name_ends_like_that_of_candidates(
    store: Any, sure: Package, write_scene: Any, dots: Any
) -> None:
    uri = write_scene("dots", dots[:, :200, :200])
    plain = detected(store, sure, uri, "blob_candidates")
    assert content(refined(store, plain.folder).folder, "again") == content(plain.folder, "blob_candidates")
    kept = detected(store, sure, uri, "blob_candidates", keep_candidates=True)
    assert content(refined(store, kept.folder).folder, "again") == content(plain.folder, "blob_candidates")


def test_a_function_without_a_threshold_keeps_no_candidates(
    store: Any, detector: Package, write_scene: Any, dots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.infer.prepare.fetch_package", lambda *_args: detector)
    with pytest.raises(BadInputError, match="takes none"):
        detected(store, detector, write_scene("dots", dots), "kept", keep_candidates=True)


def test_pixels_are_reclassified_and_vectorised(
    store: Any, scorer: Package, write_scene: Any, texture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.infer.prepare.fetch_package", lambda *_args: scorer)
    uri = write_scene("scene", texture)
    with rasterio.open(uri, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2024:07:01 10:20:30")
    values: dict[str, Any] = {
        "input_raster": [uri],
        "model": f"{uri}.dlpk",
        "output_classified_raster": "classes",
        "keep_probabilities": True,
        "processor_type": "CPU",
    }
    plan = applied(store, scorer, ClassifyPixelsParameters.model_validate(values))
    wishes = {
        "class_thresholds": [{"name": "Bright", "threshold": 0.6}, {"name": "Dark", "threshold": 0.45}],
        "output_polygons": True,
    }
    made = refined(store, plan.folder, **wishes)
    with rasterio.open(join(plan.folder, "classes_probability.tif")) as dataset:
        probability = dataset.read().astype(float)
    with rasterio.open(join(plan.folder, "classes.tif")) as dataset:
        classes = dataset.read(1)
    bright = np.where(classes == 2, probability[0], probability[1]) + 0.5 >= 0.6 * 255
    dark = np.where(classes == 1, probability[0], probability[1]) + 0.5 >= 0.45 * 255
    path = join(made.folder, "again.tif")
    assert made.details["outputs"][0]["path"] == "again.tif"
    with rasterio.open(path) as dataset:
        again = dataset.read(1)
        assert dataset.colormap(1)[2] == (250, 240, 0, 255)
    np.testing.assert_array_equal(again, np.where(bright, 2, np.where(dark, 1, 0)))
    assert len(np.unique(again)) == 3
    assert cog_validate(path)[0]
    layer = geopandas.read_parquet(join(made.folder, "again_polygons.parquet"))
    for name, value in (("Dark", 1), ("Bright", 2)):
        assert layer[layer["Class"] == name].area.sum() == pytest.approx((again == value).sum() / 4)
    assert layer["package"].unique().tolist() == [f"scorer {scorer.digest[:12]}"]
    assert set(layer["source_raster"]) == {uri}
    assert set(layer["source_date"]) == {"2024-07-01T10:20:30"}
    assert made.details["remarks"] == []
    item = json.loads(store.get(join(made.folder, "again.stac.json")))
    assert item["assets"]["again"]["proj:shape"] == list(again.shape)
    assert [one["value"] for one in item["assets"]["again"]["classification:classes"]] == [1, 2]
    found = {asset["href"].removeprefix("./") for asset in item["assets"].values()}
    assert found == {one.path for one in iter_files(store, made.folder)} - {"again.stac.json"}

    # Without the imagery the result can still be refined, and says what it cannot say.
    Path(uri).rename(f"{uri}.away")
    later = refined(store, plan.folder, **{**wishes, "minimum_area": 1})
    assert "source_raster of the polygons of classes is empty" in later.details["remarks"][0]
    Path(f"{uri}.away").rename(uri)

    bare = applied(
        store, scorer, ClassifyPixelsParameters.model_validate({**values, "keep_probabilities": False})
    )
    with pytest.raises(BadInputError, match="kept no probabilities"):
        refined(store, bare.folder, threshold=0.5)


def test_the_first_class_by_rank_that_reaches_its_threshold_is_taken() -> None:
    classes = np.array([[[1, 1, 2, 2]], [[2, 2, 1, 1]]], np.uint8)
    probability = np.array([[[200, 140, 128, 0]], [[55, 115, 127, 0]]], np.uint8)
    made = reclassified(classes, probability, {None: 0.52, 2: 0.4}, nodata=9)
    assert made.tolist() == [[1, 1, 2, 9]]
    assert reclassified(classes, probability, {None: 0.6}, nodata=9).tolist() == [[1, 9, 9, 9]]
    assert reclassified(classes, probability, {1: 0.6, 2: 0.45}, nodata=9).tolist() == [[1, 2, 2, 9]]


def test_runs_leave_tables_of_what_they_would_take_and_of_what_they_made(
    store: Any, sure: Package, write_scene: Any, dots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: dict[str, list[dict[str, str]]] = {}
    monkeypatch.setattr(task, "get_run_logger", lambda: logging.getLogger("test"))

    def note(*, key: str, table: list[dict[str, str]], description: str) -> None:
        assert "found" in description or "again" in description
        tables[key] = table

    monkeypatch.setattr(task, "create_table_artifact", note)
    monkeypatch.setattr("tasks.package.fetch.fetch_package", lambda *_args: sure)
    uri = write_scene("dots", dots[:, :150, :150])
    values = {"input_raster": [uri], "model": f"{uri}.dlpk", "output_objects": "found", "dry_run": True}
    asked = DetectObjectsParameters.model_validate({**values, "processor_type": "CPU"})
    dry = task.plan_calibration.fn(asked, "token", 2)
    task.run_calibration.fn(dry["plan_uri"])
    known = task.estimate_inference.fn(dry["plan_uri"], dry["why_not"])
    assert (known["tiles"], known["shards"], known["device"]) == ("4", "1", "cpu")
    assert [row["what"] for row in tables["detect-objects-estimate"]][:2] == ["rasters", "grids"]

    plan = detected(store, sure, uri, "found")
    given = {"input_result": plan.folder, "output_name": "again", "minimum_area": 10}
    made = task.refine_result.fn(RefineParameters.model_validate(given))
    assert made["uri"].endswith("again.parquet")
    assert made["already_done"] == "false"
    assert [row["output"] for row in tables["refine-results-outputs"]] == ["again.parquet", "again.gpkg"]
    assert geopandas.read_parquet(made["uri"]).area.min() >= 10
