"""The export as a deployment on the real stack: what a person finds on the run's page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.conftest import Runs

EXPORT = "export_training_data/export_training_data"
IMAGERY = "s3://chipline/imagery/florida_trees"


@pytest.mark.parametrize("metadata_format", ["RCNN_Masks"])
def test_a_run_leaves_its_pictures_and_tables(
    runs: Runs, as_role: Callable[[str], None], tmp_path: Path, metadata_format: str
) -> None:
    name = f"crowns_{uuid4().hex[:8]}"
    parameters = {
        "input_raster": [f"{IMAGERY}/osbs_029.tif"],
        "input_class_data": f"{IMAGERY}/trees.gpkg",
        "output_location": name,
        "metadata_format": metadata_format,
        "tile_size": 96,
        "stride_size": 96,
        "rotation_angle": 90,
        "chips_per_part": 20,
    }
    run = runs.wait(runs.start(EXPORT, parameters))
    assert run["state_type"] == "COMPLETED", f"{runs.message(run)}\n{runs.log(run['id'])}"
    artifacts = {artifact["key"]: artifact for artifact in runs.artifacts(run["id"]) if artifact["key"]}
    assert {"export-outputs", "export-classes", "export-chips", "export-footprint"} <= artifacts.keys()

    as_role("viewer")
    from tasks.store import ObjectStore, current, read_manifest, sync_folder
    from tasks.training_data import open_training_data, read_instances

    store = ObjectStore()
    folder = current(store, "training-data", name)
    assert folder is not None
    manifest = read_manifest(store, folder)
    assert manifest is not None
    data = open_training_data(sync_folder(store, folder, tmp_path / "chips"))
    assert len(data.chips) == manifest.details["chips"] > 20

    classes = _rows(artifacts["export-classes"])
    found = [int(mask.max()) for chip in data.chips for mask in read_instances(chip).values()]
    assert sum(row["features"] for row in classes) == sum(found) > 20
    outputs = _rows(artifacts["export-outputs"])
    assert outputs[0]["link"] == folder
    assert {"map.txt", "stats.txt"} <= {row["output"] for row in outputs}

    sheet = _picture(artifacts["export-chips"])
    # Twelve chips in four columns, with labels in their class's colour.
    assert sheet.size == (4 * 196 - 4, 3 * 196 - 4)
    footprint = np.asarray(_picture(artifacts["export-footprint"])).astype(int)
    yellow = (footprint[..., 0] > 180) & (footprint[..., 1] > 150) & (footprint[..., 2] < 110)
    assert 0.001 < yellow.mean() < 0.5

    again = runs.wait(runs.start(EXPORT, parameters))
    assert again["state_type"] == "COMPLETED"
    assert runs.says(again["id"], "Already done")
    assert read_manifest(store, folder) == manifest


def _rows(artifact: dict[str, Any]) -> list[dict[str, Any]]:
    rows = artifact["data"]
    found: list[dict[str, Any]] = json.loads(rows) if isinstance(rows, str) else rows
    return found


def _picture(artifact: dict[str, Any]) -> Image.Image:
    """Pictures travel in the artifact, for whoever reads the page has no key to the store."""
    head, _, data = str(artifact["data"]).partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
