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
    # With weights that tell pictures apart from the start.
    arguments = {"mixup": "True", "label_smoothing": "0", "dropout": "0", "pretrained": "True"}
    sizes = {"chip_size": 64, "resize_to": 96, "max_epochs": 2}
    given = parameters("FEATURE_CLASSIFIER", arguments, backbone_model="EFFICIENTNET_LITE0", **sizes)
    result = fit(given, [data], tmp_path, tracker=Tracker.disabled(), progress=lambda *_: None)
    module = result.module
    assert isinstance(module, LabelModule)
    assert module.several
    package = build(given, data, result, page="", pictures={}, into=tmp_path)

    images = torch.from_numpy(np.stack([result.normalisation.apply(read_chip_image(c)) for c in data.chips]))
    large = torch.nn.functional.interpolate(images, size=(96, 96), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        scores = module.probabilities(module.network(large)).numpy()
    threshold, wanted = told_apart(scores)

    scene = tmp_path / "scene.tif"
    assert data.cell_size is not None
    cell = data.cell_size[0]
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
        transform=Affine(cell, 0.0, WEST, 0.0, -cell, NORTH),
    ) as target:
        target.write(pixels)
    west, top, bottom = (SIZE * i + 8 for i in range(12)), NORTH - 8 * cell, NORTH - 56 * cell
    places = [shapely.box(WEST + cell * left, bottom, WEST + cell * (left + 48), top) for left in west]
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

    assert [label or "" for label in made["ClassLabel"]] == wanted


def told_apart(scores: np.ndarray) -> tuple[float, list[str]]:
    """The threshold farthest from any score at which not all chips have the same labels, and the labels."""
    steps = np.sort(scores.ravel())
    for gap in np.argsort(-np.diff(steps)):
        threshold = float(steps[gap : gap + 2].mean())
        chosen = [[i for i in np.argsort(-row).tolist() if row[i] >= threshold] for row in scores]
        wanted = [";".join(SCHEMA.names[index] for index in row) for row in chosen]
        if len(set(wanted)) > 1:
            assert steps[gap + 1] - steps[gap] > 1e-3
            return threshold, wanted
    raise AssertionError("the network gives all chips the same scores")
