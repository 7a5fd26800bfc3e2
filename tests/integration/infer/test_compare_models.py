"""Champion and challenger on the real stack: both through the engine, the alias where the interval says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import geopandas
import numpy as np
import pytest
import shapely
from scipy import ndimage

if TYPE_CHECKING:
    from tests.conftest import Runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def name() -> str:
    return f"blobs_{uuid4().hex[:8]}"


def evaluation_set(as_role: Any, folder: Path, name: str, scene: str, dots: Any) -> dict[str, Any]:
    """A scene of bright squares and its truth, in the store."""
    labels, _ = ndimage.label(dots[0] > 128)
    boxes = []
    for rows, cols in ndimage.find_objects(labels):
        left, right = (500_000 + 0.5 * edge for edge in (cols.start, cols.stop))
        top, bottom = (4_900_000 - 0.5 * edge for edge in (rows.start, rows.stop))
        boxes.append(shapely.box(left, bottom, right, top))
    frame = geopandas.GeoDataFrame(
        {"classvalue": [7] * len(boxes), "classname": ["Blob"] * len(boxes)}, geometry=boxes, crs="EPSG:32612"
    )
    frame.to_file(folder / "truth.gpkg")
    as_role("admin")
    from tasks.store import ObjectStore

    store = ObjectStore()
    store.upload(Path(scene), f"s3://chipline/incoming/{name}.tif")
    store.upload(folder / "truth.gpkg", f"s3://chipline/incoming/{name}.gpkg")
    return {
        "input_raster": [f"s3://chipline/incoming/{name}.tif"],
        "ground_truth_features": f"s3://chipline/incoming/{name}.gpkg",
        "bootstrap_replicates": 200,
        "threshold": None,  # the function takes none
    }


def chips_of(as_role: Any, folder: Path, name: str, dots: Any) -> dict[str, Any]:
    """The same blobs as chips of training data that nobody exported here, in the store."""
    from tasks.labels import ClassSchema
    from tasks.training_data.sample import Sample
    from tests.unit.training_data.exports import export
    from tests.unit.training_data.samples import labels

    samples: list[Sample] = []
    for row in range(0, dots.shape[1] - 63, 64):
        for col in range(0, dots.shape[2] - 63, 64):
            image = np.asarray(dots)[:, row : row + 64, col : col + 64]
            found, _ = ndimage.label(image[0] > 128)
            boxes = [(7, c.start, r.start, c.stop, r.stop) for r, c in ndimage.find_objects(found)]
            place = (0.5, 0.0, 500_000 + 0.5 * col, 0.0, -0.5, 4_900_000 - 0.5 * row)
            samples.append(Sample(len(samples), image, np.ones((64, 64), bool), place, objects=labels(boxes)))
    export(folder / "chips", "PASCAL_VOC_rectangles", samples, ClassSchema.from_values({7: "Blob"}))
    as_role("admin")
    from tasks.store import ObjectStore

    store = ObjectStore()
    for path in (folder / "chips").rglob("*"):
        if path.is_file():
            store.upload(path, f"s3://chipline/incoming/{name}/{path.relative_to(folder / 'chips')}")
    return {
        "evaluation_data": f"s3://chipline/incoming/{name}",
        "bootstrap_replicates": 200,
        "threshold": None,
    }


def register(as_role: Any, folder: Path, name: str, *, missing: int) -> str:
    """The newest version: finds every blob, or leaves out each ``missing``-th."""
    from tasks.package import ModelDefinition, write_dlpk
    from tests.integration.infer import functions

    source = functions.DETECTOR
    if missing:
        every = "ndimage.find_objects(labels)"
        source = source.replace(every, f"[o for i, o in enumerate({every}) if i % {missing}]")
    definition = ModelDefinition.model_validate(
        {
            "ModelType": "ObjectDetection",
            "InferenceFunction": "BlobDetector.py",
            "ImageHeight": 128,
            "ImageWidth": 128,
            "ExtractBands": [0],
            "Classes": [{"Value": 7, "Name": "Blob", "Color": [200, 0, 200]}],
        }
    )
    path = folder / f"{name}.dlpk"
    write_dlpk(path, definition, {"BlobDetector.py": source.encode()})
    as_role("gpu")
    from tasks.package import file_digest
    from tasks.package.publish import publish_package
    from tasks.package.tags import package_tags
    from tasks.store import ObjectStore
    from tasks.tracking import register_package

    uri = publish_package(ObjectStore(), path, made_by="test")
    return register_package(name, uri, file_digest(path), tags=package_tags(path), alias="current")


def test_the_alias_goes_to_who_is_better(
    runs: Runs, as_role: Any, tmp_path: Path, name: str, dots: Any, write_scene: Any
) -> None:
    given = evaluation_set(as_role, tmp_path, name, write_scene("dots", np.asarray(dots)), dots)

    def compare(**values: Any) -> tuple[str | None, str, dict[str, Any]]:
        tool = "compare_models/compare_models"
        run = runs.wait(runs.start(tool, {**given, "model_name": name, **values}), timeout_s=400)
        assert run["state_type"] == "COMPLETED", f"{runs.message(run)}\n{runs.log(run['id'])}"
        as_role("gpu")
        from tasks.tracking import find_version

        champion = find_version(name, "champion")
        return champion.number if champion else None, run["id"], run

    from tasks.tracking import find_run, find_version

    # Nobody is champion: the first version becomes it, though it misses every second blob.
    register(as_role, tmp_path, name, missing=2)
    champion, first, _ = compare()
    assert champion == "1"
    assert runs.says(first, "There was no champion yet")
    # The champion against itself.
    champion, run, _ = compare()
    assert champion == "1"
    assert runs.says(run, "there is nothing to compare")
    assert runs.children(run) == []
    # A better one; asked only to say so, then in earnest.
    register(as_role, tmp_path, name, missing=0)
    champion, run, _ = compare(move_alias=False)
    assert champion == "1"
    assert runs.says(run, "would move")
    champion, run, _ = compare()
    assert champion == "2"
    artifacts = {item["key"]: item["data"] for item in runs.artifacts(run)}
    assert "the alias champion moves" in artifacts["comparison-decision"]
    assert "models:/" in artifacts["comparison-decision"]
    # A worse one, again: the champion stays, and was not applied a second time.
    register(as_role, tmp_path, name, missing=3)
    champion, run, _ = compare()
    assert champion == "2"
    assert any(runs.says(child["id"], "Already done", patience_s=20) for child in runs.children(run))
    version = find_version(name, "3")
    assert version is not None
    assert "not all of it above 0" in version.tags["chipline.comparison"]
    assert find_run(name, "chipline.champion", f"models:/{name}/2") is not None


def test_versions_meet_on_chips(runs: Runs, as_role: Any, tmp_path: Path, name: str, dots: Any) -> None:
    given = chips_of(as_role, tmp_path, name, dots)
    results = []
    for missing in (2, 0):
        register(as_role, tmp_path, name, missing=missing)
        tool = "compare_models/compare_models"
        run = runs.wait(runs.start(tool, {**given, "model_name": name}), timeout_s=400)
        assert run["state_type"] == "COMPLETED", f"{runs.message(run)}\n{runs.log(run['id'])}"
        results.append(run)
    as_role("gpu")
    from tasks.tracking import find_version

    champion = find_version(name, "champion")
    assert champion is not None
    assert champion.number == "2"
    assert "all of it above 0" in champion.tags["chipline.comparison"]
    # The first version was applied to the chips once, in the run that made it the champion.
    assert [len(runs.children(run["id"])) for run in results] == [1, 1]
    artifacts = {item["key"]: item["data"] for item in runs.artifacts(results[-1]["id"])}
    assert "the alias champion moves" in artifacts["comparison-decision"]
