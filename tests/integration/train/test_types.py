"""Every model type from real chips through its package and the engine to a result on the map.

Those that learn from pairs, pictures or lines are in ``tests/integration/infer/test_pictures.py`` and
``test_lines.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

from tasks.infer.finish import finish
from tasks.infer.parameters import (
    ClassifyObjectsParameters,
    ClassifyPixelsParameters,
    DetectObjectsParameters,
    InferenceTool,
)
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package.fetch import fetch_package
from tasks.settings import settings
from tasks.store import ObjectStore, join
from tasks.train.parameters import PIXEL_MODELS
from tests.integration.train.test_train import EXAMPLES, corner, export, parameters, trained

DETECTORS = ["FCOS", "RETINANET", "SSD", "FASTERRCNN", "RTDETRV2", "DFINE", "MASKRCNN"]
FORMATS = {
    "cover": "Classified_Tiles",
    "crowns": "PASCAL_VOC_rectangles",
    "outlines": "RCNN_Masks",
    "single": "Labeled_Tiles",
}

pytestmark = pytest.mark.slow  # twenty trainings of an epoch


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A corner of the western scene, and chips of it in every format that polygons give."""
    folder = tmp_path_factory.mktemp("types")
    path = corner(folder / "scene.tif", 512, 384)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHIPLINE_ROOT", str(folder / "store"))
        patch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps([str(folder), str(EXAMPLES)]))
        patch.setenv("CHIPLINE_CACHE", str(folder / "cache"))
        settings.cache_clear()
        for name, metadata_format in FORMATS.items():
            export(path, name, metadata_format)
        yield path
    settings.cache_clear()


def model_of(model_type: str, folder: str) -> str:
    """The address of a package that has learnt for one epoch, from random weights."""
    name = f"one-{model_type.lower()}"
    arguments = [{"name": "pretrained", "value": "False"}]
    given = parameters(
        model_type=model_type,
        in_folder=[folder],
        output_name=name,
        learning_rate=0.001,
        backbone_model="timm:lcnet_035",
        model_arguments=arguments,
    )
    return trained(given)[2].package


def applied(asked: InferenceTool) -> tuple[str, dict[str, Any]]:
    store = ObjectStore()
    plan = prepare(asked, store)
    package = fetch_package(plan.package.uri, store)
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    details = finish(store, plan, {}).manifest.details
    return join(plan.folder, details["outputs"][0]["path"]), details["outputs"][0]


@pytest.mark.parametrize("model_type", sorted(PIXEL_MODELS))
def test_pixels(model_type: str, scene: Path) -> None:
    asked = ClassifyPixelsParameters.model_validate(
        {
            "input_raster": [str(scene)],
            "model": model_of(model_type, "cover"),
            "output_classified_raster": f"cover-{model_type.lower()}",
            "model_arguments": [{"name": "predict_background", "value": "True"}],
        }
    )
    path, output = applied(asked)
    with rasterio.open(path) as made, rasterio.open(scene) as source:
        assert (made.shape, made.transform, made.crs) == (source.shape, source.transform, source.crs)
        values = made.read(1)
        np.testing.assert_array_equal(made.read_masks(1) != 0, values != 0)  # background is nodata
    assert set(np.unique(values).tolist()) <= {0, 1}
    assert output["pixels_per_class"].get("1", 0) == np.count_nonzero(values)


@pytest.mark.parametrize("model_type", DETECTORS)
def test_objects(model_type: str, scene: Path) -> None:
    # After one epoch, of a single step, nothing is sure; a RetinaNet's scores are still its prior, 0.01.
    threshold = 0.005 if model_type == "RETINANET" else 0.02
    asked = DetectObjectsParameters.model_validate(
        {
            "input_raster": [str(scene)],
            "model": model_of(model_type, "outlines" if model_type == "MASKRCNN" else "crowns"),
            "output_objects": f"crowns-{model_type.lower()}",
            "model_arguments": [{"name": "threshold", "value": str(threshold)}],
        }
    )
    path, output = applied(asked)
    layer = geopandas.read_parquet(path)
    assert {"Class", "Confidence", "area_m2", "source_raster", "package", "run"} <= set(layer.columns)
    assert output["objects"] == len(layer) > 0
    assert set(layer["Class"]) == {"Tree"}
    assert layer["Confidence"].between(100 * threshold, 100).all()
    with rasterio.open(scene) as source:
        # Outlines reach beyond the scene, their centroids at most onto its edge, which a coordinate of
        # seven digits before the point is rounded by less than a micrometre from.
        west, south, east, north = shapely.box(*source.bounds).buffer(1e-6).bounds
    middle = layer.geometry.centroid
    assert (middle.x.between(west, east) & middle.y.between(south, north)).all()


def test_labels(scene: Path) -> None:
    asked = ClassifyObjectsParameters.model_validate(
        {
            "input_raster": [str(scene)],
            "in_features": str(EXAMPLES / "trees.gpkg"),
            "model": model_of("FEATURE_CLASSIFIER", "single"),
            "out_feature_class": "labelled",
        }
    )
    path, _ = applied(asked)
    layer = geopandas.read_parquet(path)
    named = layer["ClassLabel"].dropna()
    assert len(named) > 10
    assert set(named) == {"Tree"}
