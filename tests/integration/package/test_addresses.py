"""A package by each address that a tool takes, with the real registry and the real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pytest
import rasterio

from tasks.package import file_digest, read_definition, write_dlpk
from tasks.settings import settings

if TYPE_CHECKING:
    from infra.local import LocalStack

FUNCTION = """
import numpy as np

class Ones:
    def initialize(self, **kwargs):
        pass

    def getParameterInfo(self):
        return [{"name": "raster", "dataType": "raster", "required": True}]

    def getConfiguration(self, **scalars):
        return {"extractBands": (0,), "padding": 0, "tx": 32, "ty": 32, "fixedTileSize": 1}

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"].update(bandCount=1, pixelType="u1")
        return kwargs

    def updatePixels(self, tlc, shape, props, **pixelBlocks):
        return {"output_pixels": np.ones((1, *shape), "u1")}
"""
DEFINITION = {
    "ModelType": "ImageClassification",
    "InferenceFunction": "Ones.py",
    "ImageHeight": 32,
    "ImageWidth": 32,
    "ExtractBands": [0],
    "Bands": ["Grey"],
    "MinCellSize": {"x": 0.5, "y": 0.5, "spatialReference": {"wkid": 32612}},
    "Classes": [{"Value": 1, "Name": "All", "Color": [10, 20, 30]}],
}


@pytest.fixture
def scene(tmp_path: Path) -> str:
    path = tmp_path / "scene.tif"
    options = {"crs": "EPSG:32612", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 4.9e6)}
    with rasterio.open(
        path, "w", driver="GTiff", width=40, height=40, count=1, dtype="uint8", nodata=0, **options
    ) as file:
        file.write(np.full((1, 40, 40), 9, np.uint8))
    return str(path)


def test_a_tool_takes_a_package_by_every_address(
    stack: LocalStack, as_role: Any, scene: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    from tasks.infer.parameters import ClassifyPixelsParameters
    from tasks.infer.prepare import prepare
    from tasks.package.publish import publish_package
    from tasks.package.tags import lineage_tags, package_tags
    from tasks.store import ObjectStore
    from tasks.tracking import DIGEST_TAG, register_package

    as_role("admin")
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps(["s3://chipline/", str(tmp_path)]))
    monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / "cache"))
    settings.cache_clear()
    assert stack.layout.mlflow_url
    name = f"ones-{uuid4().hex[:8]}"
    dlpk = tmp_path / f"{name}.dlpk"
    write_dlpk(dlpk, read_definition(json.dumps({**DEFINITION, "Run": name})), {"Ones.py": FUNCTION.encode()})
    store = ObjectStore()
    uri = publish_package(store, dlpk, made_by="a test")
    digest = file_digest(dlpk)
    tags = package_tags(dlpk) | lineage_tags([("s3://chipline/training-data/a/k", "k")])
    version = register_package(name, uri, digest, tags=tags, alias="champion")

    for address in (uri, str(dlpk), f"models:/{name}/{version}", f"models:/{name}@champion"):
        parameters = ClassifyPixelsParameters(
            input_raster=[scene], model=address, output_classified_raster=name, processor_type="CPU"
        )
        plan = prepare(parameters, store)
        assert plan.package.digest == digest
        assert plan.package.uri == (str(dlpk) if address == str(dlpk) else uri)
        assert plan.package.trust.startswith("made here by a test")

    registered = MlflowClient().get_model_version(name, version).tags
    assert registered[DIGEST_TAG] == digest
    assert registered["chipline.type"] == "ImageClassification"
    assert registered["chipline.bands"] == "0 (Grey)"
    assert registered["chipline.cell_size"] == "0.5 x 0.5 (EPSG:32612)"
    assert registered["chipline.classes"] == "1 All"
    assert "s3://chipline/training-data/a/k/manifest.json" in registered["chipline.training_data"]
