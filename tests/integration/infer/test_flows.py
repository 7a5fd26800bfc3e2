"""Both tools as deployments on the real stack: run, and run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from tests.conftest import Runs

IMAGERY = "s3://chipline/imagery/yellowstone_trees"
SCENES = [f"{IMAGERY}/northeast.tif", f"{IMAGERY}/southeast.tif"]


@pytest.fixture
def published(as_role: Any, tmp_path: Path, classifier: Any, detector: Any) -> dict[str, str]:
    """URIs of the two small packages in the stack's store."""
    from tasks.package.publish import publish_package
    from tasks.store import ObjectStore

    as_role("gpu")
    store = ObjectStore()
    assert classifier.name == "bright"
    assert detector.name == "blobs"
    return {
        name: publish_package(store, tmp_path / f"{name}.dlpk", made_by="test")
        for name in ("bright", "blobs")
    }


def completed(runs: Runs, name: str, parameters: dict[str, Any]) -> str:
    run = runs.wait(runs.start(f"{name}/{name}", parameters))
    assert run["state_type"] == "COMPLETED", f"{runs.message(run)}\n{runs.log(run['id'])}"
    return str(run["id"])


def test_detect_objects_runs_and_a_second_run_does_no_work(
    runs: Runs, published: dict[str, str], as_role: Any
) -> None:
    name = f"blobs-{uuid4().hex[:8]}"
    parameters = {
        "input_raster": [SCENES[1], "s3://chipline/imagery/florida_trees/osbs_029.tif"],
        "model": published["blobs"],
        "output_objects": name,
        "processing_mode": "PROCESS_ITEMS_SEPARATELY",
        "cell_size": 0.4,  # a quarter of the imagery's: small, and resampled
        "shard_size": 200,
        "shards_per_part": 2,
    }
    first = completed(runs, "detect_objects", parameters)
    kinds = [artifact["type"] for artifact in runs.artifacts(first)]
    assert {"table", "image", "markdown"} <= set(kinds)

    as_role("viewer")
    from tasks.store import ObjectStore, current, read_manifest

    store = ObjectStore()
    folder = current(store, "outputs/detect_objects", name)
    assert folder is not None
    manifest = read_manifest(store, folder)
    assert manifest is not None
    assert manifest.details["outputs"][0]["objects"] > 0
    assert manifest.provenance["devices"] == ["cpu"]
    assert len(manifest.provenance["parts"]) >= 2

    second = completed(runs, "detect_objects", parameters)
    assert runs.says(second, "Already done")
    assert read_manifest(store, folder) == manifest


def test_classify_pixels_gives_one_cog_for_a_mosaic(
    runs: Runs, published: dict[str, str], as_role: Any
) -> None:
    name = f"bright-{uuid4().hex[:8]}"
    parameters = {
        "input_raster": SCENES,
        "model": published["bright"],
        "output_classified_raster": name,
        "cell_size": 0.4,
    }
    completed(runs, "classify_pixels", parameters)

    as_role("viewer")
    from tasks.imagery import inspect_raster
    from tasks.store import ObjectStore, current, join

    folder = current(ObjectStore(), "outputs/classify_pixels", name)
    assert folder is not None
    made = inspect_raster(join(folder, f"{name}.tif"))
    assert (made.dtype, made.nodata) == ("uint8", 0)
