"""RTDETRV2 and DFINE from chips to the layer of Detect Objects, through the real host and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from tasks.infer.finish import finish
from tasks.infer.parameters import DetectObjectsParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package import open_package
from tasks.package.publish import publish_package
from tasks.store import join
from tasks.tracking import Tracker
from tasks.train.packaging import build
from tasks.train.train import fit
from tasks.training_data import read_chip_image
from tests.unit.train.conftest import make_training_data
from tests.unit.train.test_queries import SMALL
from tests.unit.train.test_zoo import parameters

SIZE, WEST, NORTH = 64, 500_000.0, 5_000_000.0
THRESHOLD = 0.06


@pytest.mark.parametrize("kind", ["RTDETRV2", pytest.param("DFINE", marks=pytest.mark.slow)])
def test_the_engine_finds_what_the_network_finds(kind: str, store: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = make_training_data(tmp_path)(size=SIZE, count=12)
    given = parameters(kind, {**SMALL, "preset": "light"}, max_epochs=4, learning_rate=0.003)
    result = fit(given, [data], tmp_path, tracker=Tracker.disabled(), progress=lambda *_: None)
    package = build(given, data, result, page="", pictures={}, into=tmp_path)

    # Every chip is a tile of its own: a scene of one row, tiles without padding.
    pixels = np.concatenate([read_chip_image(chip) for chip in data.chips], axis=2)
    scene = tmp_path / "scene.tif"
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
    arguments = {"padding": 0, "batch_size": 4, "threshold": THRESHOLD}
    asked = DetectObjectsParameters.model_validate(
        {
            "input_raster": [str(scene)],
            "model": publish_package(store, package, made_by="test"),
            "output_objects": "squares",
            "model_arguments": [{"name": name, "value": str(value)} for name, value in arguments.items()],
        }
    )
    plan = prepare(asked, store)
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=open_package(package, tmp_path / "unpacked"))
    details = finish(store, plan, {}).manifest.details
    made = geopandas.read_parquet(join(plan.folder, details["outputs"][0]["path"]))

    wanted = []
    for number, chip in enumerate(data.chips):
        image = torch.from_numpy(result.normalisation.apply(read_chip_image(chip)))
        with torch.inference_mode():
            found = result.module.network([image])[0]
        for box, label, score in zip(
            *(found[key].tolist() for key in ("boxes", "labels", "scores")), strict=True
        ):
            left, top, right, bottom = box
            centre = (left + right) / 2, (top + bottom) / 2
            if score >= THRESHOLD and max(centre) < SIZE and left < right and top < bottom:
                west, north = WEST + SIZE * number, NORTH
                place = (west + left, north - bottom, west + right, north - top)
                wanted.append((*place, data.classes.names[label - 1], 100 * score))
    order = sorted(wanted, key=lambda row: row[5])
    made = made.sort_values("Confidence")
    assert len(made) == len(wanted) > 12
    assert made["Class"].tolist() == [row[4] for row in order]
    np.testing.assert_allclose(made["Confidence"], [row[5] for row in order], atol=1e-3)
    np.testing.assert_allclose(made.geometry.bounds, [row[:4] for row in order], atol=1e-3)
