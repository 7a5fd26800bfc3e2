"""Two chains at once on the real stack, every worker limited to one run; then the same again, for nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import geopandas
import pytest
import rasterio
import yaml

if TYPE_CHECKING:
    from tests.conftest import Runs

CHAIN = "build_and_apply/build_and_apply"
IMAGERY = "s3://chipline/imagery"
TIMEOUT_S = 480


def _chain(name: str, model_type: str) -> dict[str, Any]:
    """A chain so small that it proves the way, not the model: one epoch on chips of the smallest scene."""
    return {
        "output_name": name,
        "input_raster": [f"{IMAGERY}/florida_trees/osbs_029.tif"],
        "input_class_data": f"{IMAGERY}/florida_trees/trees.gpkg",
        "apply_raster": [f"{IMAGERY}/florida_trees/osbs_029.tif"],
        "test_class_data": f"{IMAGERY}/florida_trees/trees.gpkg",
        "tile_size": 128,
        "stride_size": 128,
        "model_type": model_type,
        "model_arguments": [{"name": "preset", "value": "light"}],
        "max_epochs": 1,
        "batch_size": 4,
        "validation_percent": 30,
        "processing_mode": "PROCESS_ITEMS_SEPARATELY",
    }


@pytest.fixture(scope="module")
def chains(runs: Runs) -> dict[str, dict[str, Any]]:
    """One chain per kind of task, started together; their parameters by kind."""
    suffix = uuid4().hex[:8]
    chains = {"objects": _chain(f"crowns_{suffix}", "FCOS"), "pixels": _chain(f"cover_{suffix}", "UNET")}
    started = {kind: runs.start(CHAIN, parameters) for kind, parameters in chains.items()}
    for run in started.values():
        finished = runs.wait(run, timeout_s=TIMEOUT_S)
        assert finished["state_type"] == "COMPLETED", f"{runs.message(finished)}\n{runs.log(run)}"
    return chains


def test_every_worker_takes_one_run_at_a_time(stack: Any) -> None:
    from infra.local.services import workers

    for worker in workers(stack.layout, stack.secrets):
        at = worker.command.index("--limit")
        assert worker.command[at + 1] == "1", worker.name
    pools = yaml.safe_load((Path(__file__).parents[3] / "deployments" / "pools.yaml").read_text())["pools"]
    assert {pool["name"] for pool in pools} == {"control", "cpu", "gpu", "gpu-node"}


def test_the_detector_ends_with_one_layer_in_map_coordinates(
    chains: dict[str, dict[str, Any]], as_role: Callable[[str], None], tmp_path: Path
) -> None:
    as_role("viewer")
    from tasks.store import ObjectStore, current, iter_files, join

    store = ObjectStore()
    folder = current(store, "outputs/detect_objects", chains["objects"]["output_name"])
    assert folder is not None
    files = {Path(record.path).suffix: record.path for record in iter_files(store, folder)}
    layers = []
    for suffix in (".parquet", ".gpkg"):
        local = tmp_path / f"layer{suffix}"
        store.download(join(folder, files[suffix]), local)
        read = geopandas.read_parquet if suffix == ".parquet" else geopandas.read_file
        layers.append(read(local))
    for layer in layers:
        assert {"Class", "Confidence"} <= set(layer.columns)
        assert layer.crs is not None
        assert layer.crs.to_epsg() == 32617
    assert len(layers[0]) == len(layers[1])


def test_the_classifier_ends_with_a_coloured_raster_on_the_scenes_grid(
    chains: dict[str, dict[str, Any]], as_role: Callable[[str], None], tmp_path: Path
) -> None:
    as_role("viewer")
    from tasks.store import ObjectStore, current, iter_files, join

    store = ObjectStore()
    folder = current(store, "outputs/classify_pixels", chains["pixels"]["output_name"])
    assert folder is not None
    name = next(record.path for record in iter_files(store, folder) if record.path.endswith(".tif"))
    local = tmp_path / "classified.tif"
    store.download(join(folder, name), local)
    scene = Path(__file__).parents[3] / "examples" / "florida_trees" / "osbs_029.tif"
    with rasterio.open(local) as result, rasterio.open(scene) as source:
        assert result.crs == source.crs
        assert result.transform == source.transform
        assert result.shape == source.shape
        assert result.nodata is not None
        assert result.colormap(1)[1][3] == 255
        assert result.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_the_chain_ends_with_accuracy(
    chains: dict[str, dict[str, Any]], as_role: Callable[[str], None]
) -> None:
    as_role("viewer")
    from tasks.store import ObjectStore, current, join

    store = ObjectStore()
    for kind, parameters in chains.items():
        folder = current(store, "outputs/compute_accuracy", parameters["output_name"])
        assert folder is not None
        rows = json.loads(store.get(join(folder, "accuracy.json")))["rows"]
        assert {row["Kind"] for row in rows} == {kind}


def test_the_package_is_a_version_in_the_registry(
    chains: dict[str, dict[str, Any]], as_role: Callable[[str], None]
) -> None:
    as_role("control")
    from mlflow.tracking import MlflowClient

    from tasks.store import ObjectStore
    from tasks.tracking import resolve_model

    for parameters in chains.values():
        uri = resolve_model(f"models:/{parameters['output_name']}/1")
        assert uri.endswith(".dlpk")
        assert ObjectStore().exists(uri)
        tags = MlflowClient().get_model_version(parameters["output_name"], "1").tags
        assert tags["chipline.type"] in ("ImageClassification", "ObjectDetection")
        assert tags["chipline.sha256"] in uri
        assert tags["chipline.classes"]
        assert "/manifest.json" in tags["chipline.training_data"]


def test_the_same_chain_again_does_no_work_and_says_so(chains: dict[str, dict[str, Any]], runs: Runs) -> None:
    before = {leaf: len(runs.latest_of(f"{leaf}/{leaf}")) for leaf in ("export_part", "train_model")}
    again = runs.wait(runs.start(CHAIN, chains["objects"]), timeout_s=TIMEOUT_S)
    assert again["state_type"] == "COMPLETED", runs.message(again)
    assert before == {leaf: len(runs.latest_of(f"{leaf}/{leaf}")) for leaf in before}
    children = runs.children(again["id"])
    assert len(children) == 4
    assert all(runs.says(child["id"], "Already done") for child in children)
