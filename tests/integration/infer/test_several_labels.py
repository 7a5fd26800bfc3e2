"""FEATURE_CLASSIFIER with several labels, from MultiLabeled_Tiles to the layer of Classify Objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
import torch
from affine import Affine

from tasks.infer.finish import finish
from tasks.infer.parameters import ClassifyObjectsParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package import open_package
from tasks.package.publish import publish_package
from tasks.store import join
from tasks.tracking import Tracker
from tasks.train.modules import LabelModule
from tasks.train.packaging import build
from tasks.train.train import fit
from tasks.training_data import open_training_data, read_chip_image
from tests.unit.train.test_zoo import SCHEMA, parameters, squares
from tests.unit.training_data.exports import export
from tests.unit.training_data.samples import labels

SIZE, WEST, NORTH = 64, 500_000.0, 5_000_000.0


def test_objects_are_given_the_labels_that_the_network_gives_their_chips(store: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    samples = []
    for sample in squares(12, SIZE):
        shown = ({3}, {7}, {3, 7}, set[int]())[sample.number % 4]
        image = sample.image.copy()
        for value in {3, 7} - shown:
            image[0 if value == 3 else 2] = 40
        found = labels([(value, 4.0, 4.0, 60.0, 60.0) for value in sorted(shown)])
        samples.append(replace(sample, image=image, instances=None, objects=found))
    export(tmp_path / "data", "MultiLabeled_Tiles", samples, SCHEMA)
    data = open_training_data(tmp_path / "data")
    assert {chip.values for chip in data.chips} == {(3,), (7,), (3, 7), ()}
    arguments = {"mixup": "True", "label_smoothing": "0", "dropout": "0"}
    given = parameters("FEATURE_CLASSIFIER", arguments, chip_size=64, resize_to=96, max_epochs=3)
    result = fit(given, [data], tmp_path, tracker=Tracker.disabled(), progress=lambda *_: None)
    module = result.module
    assert isinstance(module, LabelModule)
    assert module.several
    package = build(given, data, result, page="", pictures={}, into=tmp_path)

    images = torch.from_numpy(np.stack([result.normalisation.apply(read_chip_image(c)) for c in data.chips]))
    large = torch.nn.functional.interpolate(images, size=(96, 96), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        scores = module.probabilities(module.network(large)).numpy()
    # In the middle of a class's scores: half of the objects have it.
    threshold = float(np.sort(scores[:, 0])[5:7].mean())

    scene = tmp_path / "scene.tif"
    pixels = np.concatenate([read_chip_image(chip) for chip in data.chips], axis=2)
    with rasterio.open(
        scene,
        "w",
        driver="GTiff",
        count=3,
        dtype="uint8",
        height=SIZE,
        width=SIZE * len(data.chips),
        crs="EPSG:32612",
        transform=Affine(1.0, 0.0, WEST, 0.0, -1.0, NORTH),
    ) as target:
        target.write(pixels)
    places = [
        shapely.box(WEST + SIZE * i + 8, NORTH - 56, WEST + SIZE * i + 56, NORTH - 8) for i in range(12)
    ]
    geopandas.GeoDataFrame(geometry=places, crs="EPSG:32612").to_parquet(tmp_path / "places.parquet")
    asked = ClassifyObjectsParameters.model_validate(
        {
            "input_raster": [str(scene)],
            "in_features": str(tmp_path / "places.parquet"),
            "model": publish_package(store, package, made_by="test"),
            "out_feature_class": "labelled",
            "model_arguments": [{"name": "score_threshold", "value": str(threshold)}],
        }
    )
    plan = prepare(asked, store)
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=open_package(package, tmp_path / "unpacked"))
    details = finish(store, plan, {}).manifest.details
    made = geopandas.read_parquet(join(plan.folder, details["outputs"][0]["path"]))

    chosen = [[i for i in np.argsort(-row).tolist() if row[i] >= threshold] for row in scores]
    wanted = [";".join(SCHEMA.names[index] for index in row) for row in chosen]
    assert [label or "" for label in made["ClassLabel"]] == wanted
    assert len(set(wanted)) > 1
