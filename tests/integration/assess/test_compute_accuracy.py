"""The tool as people start it: a deployment run on the real stack."""

from __future__ import annotations

import io
import uuid
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely

from tasks.store import ObjectStore, current, join, read_manifest

TREES = "s3://chipline/imagery/yellowstone_trees"


def jittered(store: ObjectStore) -> geopandas.GeoDataFrame:
    """Detections that a good detector might make: most of the truth, moved a little, and some inventions."""
    truth = geopandas.read_file(io.BytesIO(store.get(f"{TREES}/trees.gpkg")))
    random = np.random.default_rng(0)
    kept = shapely.bounds(truth.geometry.array)[random.random(len(truth)) < 0.7]
    corners = random.uniform((528100, 4978752), (528226, 4978996), (60, 2))
    boxes = np.vstack([kept + random.normal(0, 0.3, kept.shape), np.hstack([corners, corners + 3])])
    scores = np.concatenate([random.beta(5, 2, len(kept)), random.beta(2, 5, 60)])
    fields = {"Class": ["Tree"] * len(boxes), "Confidence": scores}
    return geopandas.GeoDataFrame(fields, geometry=shapely.box(*boxes.T), crs=truth.crs)


def test_a_run_leaves_tables_a_report_and_a_picture(runs: Any, as_role: Any, tmp_path: Path) -> None:
    as_role("admin")
    store = ObjectStore()
    name = f"test-{uuid.uuid4().hex[:12]}"
    frame = jittered(store)
    frame.to_parquet(tmp_path / "trees.parquet")
    found = f"s3://chipline/outputs/detect_objects/{name}/key/trees.parquet"
    store.upload(tmp_path / "trees.parquet", found)
    parameters = {
        "detected_features": [found],
        "ground_truth_features": f"{TREES}/trees.gpkg",
        "extent_rasters": [f"{TREES}/northeast.tif", f"{TREES}/southeast.tif"],
        "out_accuracy_table": name,
        "min_iou": 0.4,
        "bootstrap_replicates": 200,
    }
    first, again = (runs.wait(runs.start("compute_accuracy/compute_accuracy", parameters)) for _ in range(2))
    assert first["state_type"] == again["state_type"] == "COMPLETED", runs.log(first["id"])

    folder = current(store, "outputs/compute_accuracy", name)
    assert folder is not None
    manifest = read_manifest(store, folder)
    assert manifest is not None
    assert manifest.provenance["flow_run"] == first["id"]
    assert manifest.files == 3
    assert b"<svg" in store.get(join(folder, "report.html"))

    artifacts = {artifact["key"]: artifact for artifact in runs.artifacts(first["id"])}
    assert set(artifacts) == {"accuracy-objects", "accuracy-outputs", "accuracy-picture"}
    assert "report.html" in artifacts["accuracy-outputs"]["data"]
    assert artifacts["accuracy-picture"]["data"].startswith("data:image/jpeg;base64,")
    repeated = {artifact["key"]: artifact for artifact in runs.artifacts(again["id"])}
    assert "Already done" in repeated["accuracy-outputs"]["data"]
    assert repeated["accuracy-objects"]["data"] == artifacts["accuracy-objects"]["data"]


def test_a_missing_truth_ends_the_run_with_its_name(runs: Any) -> None:
    run = runs.wait(
        runs.start(
            "compute_accuracy/compute_accuracy",
            {
                "detected_features": [f"{TREES}/trees.gpkg"],
                "ground_truth_features": f"{TREES}/no-such.gpkg",
                "out_accuracy_table": "missing",
            },
        )
    )
    assert run["state_type"] == "FAILED"
    assert f"There is no object at {TREES}/no-such.gpkg" in runs.message(run)
