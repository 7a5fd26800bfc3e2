"""Models of pairs and of pictures, trained on chips of the real scene and run through host and engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from tasks.infer.finish import finish
from tasks.infer.parameters import ClassifyPixelsParameters, DetectChangeParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package.fetch import fetch_package
from tasks.package.publish import publish_package
from tasks.store import join
from tasks.tracking import Tracker
from tasks.train.packaging import build
from tasks.train.parameters import LINE_KINDS, TrainParameters, kind_of
from tasks.train.train import fit
from tasks.training_data import TrainingData
from tests.unit.train.pictures import (
    CELL,
    change_data,
    changed,
    paired_data,
    scene_chips,
    sharp_data,
    two_sides,
    write,
)


def packaged(
    store: Any, model_type: str, data: TrainingData, folder: Path, epochs: int = 1, **arguments: str
) -> str:
    """The address of a package that has learnt for some epochs."""
    torch.set_num_threads(1)
    given = {"pretrained": "False", **arguments}
    if kind_of(model_type) not in LINE_KINDS:  # whose networks have no such decoder
        given["decoder"] = "16,16,16,16,16"
    parameters = TrainParameters.model_validate(
        {
            "in_folder": ["x"],
            "output_name": "m",
            "model_type": model_type,
            "backbone_model": "timm:lcnet_035",
            "max_epochs": epochs,
            "batch_size": 4,
            "learning_rate": 0.004,
            "validation_percent": 30,
            "processor_type": "CPU",
            "model_arguments": [{"name": name, "value": value} for name, value in given.items()],
        }
    )
    folder.mkdir()
    result = fit(parameters, [data], folder, tracker=Tracker.disabled(), progress=lambda *_: None)
    path = build(parameters, data, result, page="", pictures={}, into=folder)
    return publish_package(store, path, made_by="test")


def scene(path: Path, values: np.ndarray, cell: float = CELL) -> str:
    """A GeoTIFF whose cells have ``cell`` metres."""
    bands, rows, cols = values.shape
    place = Affine(cell, 0, 500_000, 0, -cell, 5_000_000)
    form = {"driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": values.dtype}
    with rasterio.open(path, "w", **form, crs="EPSG:32612", transform=place) as target:
        target.write(values)
    return str(path)


def output_of(store: Any, parameters: Any) -> tuple[np.ndarray, np.ndarray, Any, dict[str, Any]]:
    """Values (bands, rows, cols), mask, transform and description of what a run publishes."""
    plan = prepare(parameters, store)
    package = fetch_package(plan.package.uri, store)
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    result = finish(store, plan, {})
    (output,) = result.manifest.details["outputs"]
    with rasterio.open(join(plan.folder, output["path"])) as dataset:
        return dataset.read(), dataset.dataset_mask() > 0, dataset.transform, output


def classified(uri: str, model: str, **more: Any) -> ClassifyPixelsParameters:
    return ClassifyPixelsParameters.model_validate(
        {"input_raster": [uri], "model": model, "output_classified_raster": "made", **more}
    )


def test_two_dates_are_compared_by_a_trained_network(store: Any, tmp_path: Path) -> None:
    model = packaged(store, "CHANGEDETECTOR", change_data(tmp_path / "data"), tmp_path / "work")
    before = scene_chips(1, size=160)
    after, _ = changed(before)
    parameters = DetectChangeParameters.model_validate(
        {
            "from_raster": [scene(tmp_path / "before.tif", before[0])],
            "to_raster": [scene(tmp_path / "after.tif", after[0])],
            "model": model,
            "output_classified_raster": "changes",
        }
    )
    values, mask, _, output = output_of(store, parameters)
    assert values.shape == (1, 160, 160)
    assert set(np.unique(values)) <= {0, 4, 255}
    assert mask.any()
    assert output["dtype"] == "uint8"


def test_a_coarse_raster_becomes_a_finer_one(store: Any, tmp_path: Path) -> None:
    data = sharp_data(tmp_path / "data")
    model = packaged(store, "SUPERRESOLUTION", data, tmp_path / "work", downsample_factor="2")
    sharp = scene_chips(1, size=160)[0]
    coarse = np.rint(sharp.reshape(3, 80, 2, 80, 2).mean(axis=(2, 4))).astype(np.uint8)
    coarse[:, :, :10] = 0
    path = scene(tmp_path / "coarse.tif", coarse, cell=2 * CELL)
    with rasterio.open(path, "r+") as dataset:
        dataset.nodata = 0
    arguments = [{"name": "padding", "value": "16"}]
    first = output_of(store, classified(path, model, shard_size=64, model_arguments=arguments))
    values, mask, transform, output = first
    assert (output["bands"], output["dtype"], values.shape) == (3, "uint8", (3, 160, 160))
    assert transform.a == pytest.approx(CELL)
    assert not mask[:, :19].any()
    assert mask[:, 24:].all()
    error = np.abs(values.astype(int) - sharp)[:, :, 24:].mean()
    assert (
        error < 1.2 * np.abs(np.repeat(np.repeat(coarse, 2, 1), 2, 2).astype(int) - sharp)[:, :, 24:].mean()
    )


@pytest.mark.slow
def test_how_the_work_is_cut_changes_no_picture(store: Any, tmp_path: Path) -> None:
    model = packaged(store, "SUPERRESOLUTION", sharp_data(tmp_path / "data"), tmp_path / "work")
    path = scene(tmp_path / "scene.tif", scene_chips(1, size=160)[0])
    arguments = [{"name": "padding", "value": "16"}]
    one, other = (
        output_of(store, classified(path, model, shard_size=size, model_arguments=arguments))[0]
        for size in (64, 256)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "arguments"),
    [
        ("PIX2PIX", {}),
        ("PIX2PIXHD", {"discriminators": "2", "global_blocks": "1", "local_blocks": "1", "width": "8"}),
    ],
)
def test_a_picture_becomes_one_of_another_kind(
    model_type: str, arguments: dict[str, str], store: Any, tmp_path: Path
) -> None:
    data = paired_data(tmp_path / "data")
    model = packaged(store, model_type, data, tmp_path / "work", 1, discriminator="8", **arguments)
    path = scene(tmp_path / "scene.tif", scene_chips(1, size=160)[0])
    values, mask, transform, _ = output_of(store, classified(path, model))
    assert values.shape == (1, 160, 160)
    assert transform.a == CELL
    assert mask.all()
    assert np.ptp(values) > 10


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["BDCN_EDGEDETECTOR", "CONNECTNET"])
def test_lines_are_the_same_for_shards_of_any_size(model_type: str, store: Any, tmp_path: Path) -> None:
    after, masks = changed(scene_chips(12))
    data = write(tmp_path / "data", "Classified_Tiles", after, masks=masks)
    model = packaged(store, model_type, data, tmp_path / "work", 6, width="32")
    path = scene(tmp_path / "scene.tif", changed(scene_chips(1, size=160))[0][0])
    arguments = {"padding": "16", "batch_size": "4", "thinning": "True", "threshold": "0.4"}
    given = [{"name": name, "value": value} for name, value in arguments.items()]
    one, other = (
        output_of(store, classified(path, model, shard_size=size, model_arguments=given))[0]
        for size in (64, 256)
    )
    np.testing.assert_array_equal(one, other)
    assert set(np.unique(one)) == {0, 4}


@pytest.mark.slow
def test_the_direction_decides(store: Any, tmp_path: Path) -> None:
    model = packaged(store, "CYCLEGAN", two_sides(tmp_path / "data"), tmp_path / "work", 8, discriminator="8")
    path = scene(tmp_path / "scene.tif", scene_chips(1, size=96)[0])
    made = {
        way: output_of(store, classified(path, model, model_arguments=[{"name": "direction", "value": way}]))[
            0
        ]
        for way in ("AtoB", "BtoA")
    }
    assert made["AtoB"].shape == made["BtoA"].shape == (3, 96, 96)
    assert (made["AtoB"] != made["BtoA"]).any()
