"""MASK2FORMER from real chips through its package and the engine: classes of pixels, and objects."""

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

from tasks.assess.chip_results import apply_to_chips
from tasks.export import cut
from tasks.export import finish as export_finish
from tasks.export import plan as export_plan
from tasks.export.inputs import inspect_inputs
from tasks.export.parameters import ExportParameters
from tasks.infer.both import check_tells_both, with_classes
from tasks.infer.parameters import DetectObjectsParameters
from tasks.package.fetch import fetch_package
from tasks.settings import settings
from tasks.store import ObjectStore, current
from tasks.training_data import open_training_data
from tests.integration.train.test_train import EXAMPLES, corner, parameters, trained
from tests.integration.train.test_types import applied

pytestmark = pytest.mark.slow  # a training of an epoch, and both tools


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A corner of the western scene, and chips of it: trees are objects, a half of the ground is a class."""
    folder = tmp_path_factory.mktemp("panoptic")
    path = corner(folder / "scene.tif", 512, 384)
    with rasterio.open(path) as source:
        (left, bottom, right, top), crs = source.bounds, source.crs
    half = shapely.box(left, bottom, (left + right) / 2, top)
    ground = geopandas.GeoDataFrame({"classvalue": [2], "classname": ["Ground"]}, geometry=[half], crs=crs)
    ground.to_file(folder / "ground.gpkg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHIPLINE_ROOT", str(folder / "store"))
        patch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps([str(folder), str(EXAMPLES)]))
        patch.setenv("CHIPLINE_CACHE", str(folder / "cache"))
        settings.cache_clear()
        store = ObjectStore()
        given = ExportParameters.model_validate(
            {
                "input_raster": [str(path)],
                "input_class_data": str(folder / "ground.gpkg"),
                "input_instance_data": str(EXAMPLES / "trees.gpkg"),
                "output_location": "both",
                "tile_size": 128,
                "stride_size": 128,
                "metadata_format": "Panoptic_Segmentation",
                "output_nofeature_tiles": "ALL_TILES",
            }
        )
        made = export_plan.make_plan(store, given, inspect_inputs(given))
        export_plan.save_plan(store, made)
        for part in range(len(made.parts)):
            cut.cut_part(store, made, part)
        export_finish.finish(store, made, {})
        yield path
    settings.cache_clear()


@pytest.fixture(scope="module")
def model(scene: Path) -> str:
    """The address of a package that has learnt for two epochs, from random weights."""
    assert scene.is_file()
    given = parameters(
        model_type="MASK2FORMER",
        in_folder=["both"],
        output_name="one-mask2former",
        learning_rate=0.001,
        max_epochs=2,
        backbone_model="timm:lcnet_035",
        model_arguments=[
            {"name": name, "value": value}
            for name, value in {"pretrained": "False", "width": "32", "layers": "2"}.items()
        ],
    )
    record = trained(given)[2]
    assert record.metrics["panoptic_quality"] is not None
    return record.package


def asked(scene: Path, model: str, **arguments: str) -> DetectObjectsParameters:
    return DetectObjectsParameters.model_validate(
        {
            "input_raster": [str(scene)],
            "model": model,
            "output_objects": "crowns",
            "model_arguments": [{"name": name, "value": value} for name, value in arguments.items()],
        }
    )


def test_one_package_serves_both_tools(scene: Path, model: str) -> None:
    # After two epochs nothing is sure.
    objects, classes = with_classes(asked(scene, model, threshold="0.0", output_classified_raster="cover"))
    assert isinstance(objects, DetectObjectsParameters)
    assert classes is not None
    check_tells_both(classes)
    path, output = applied(classes)
    with rasterio.open(path) as made, rasterio.open(scene) as source:
        assert (made.shape, made.transform, made.crs) == (source.shape, source.transform, source.crs)
        values = made.read(1)
        there = shapely.box(*source.bounds)
    package = fetch_package(model, ObjectStore())
    known = {item.name: item.value for item in package.definition.classes or []}
    assert set(known) == {"Tree", "Ground"}
    assert set(np.unique(values).tolist()) <= {0, *known.values()}
    assert output["pixels_per_class"].get(str(known["Ground"]), 0) == np.count_nonzero(
        values == known["Ground"]
    )

    path, output = applied(objects)
    layer = geopandas.read_parquet(path)
    assert {"Class", "Confidence", "area_m2", "source_raster", "package", "run"} <= set(layer.columns)
    assert output["objects"] == len(layer) > 0
    assert set(layer["Class"]) == {"Tree"}
    assert layer.intersects(there).all()


def test_a_package_is_compared_by_the_classes_of_pixels(model: str) -> None:
    store = ObjectStore()
    folder = current(store, "training-data", "both")
    assert folder is not None
    data = open_training_data(Path(folder))
    found: Any = apply_to_chips(fetch_package(model, store), data, name="both", processor="CPU", arguments={})
    assert found.kind == "pixels"
    assert len(found.chips) == len(data.chips)
