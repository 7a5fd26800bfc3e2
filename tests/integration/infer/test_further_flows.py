"""The tools beside the first two as deployments on the real stack, each once, from a form's values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import geopandas
import numpy as np
import pandas
import pytest
import rasterio

if TYPE_CHECKING:
    from tests.conftest import Runs

pytestmark = pytest.mark.slow

FLORIDA = "s3://chipline/imagery/florida_trees"
SCENE, TREES = f"{FLORIDA}/osbs_029.tif", f"{FLORIDA}/trees.gpkg"


class Further:
    """Runs of deployments with outputs of one name, and what they published."""

    def __init__(self, runs: Runs, as_role: Any, folder: Path) -> None:
        self.runs, self.as_role, self.folder = runs, as_role, folder
        self.name = f"further-{uuid4().hex[:8]}"

    def completed(self, started: dict[str, str]) -> None:
        """Wait for runs by tool."""
        for tool, identifier in started.items():
            run = self.runs.wait(identifier)
            message = f"{tool}: {self.runs.message(run)}\n{self.runs.log(identifier)}"
            assert run["state_type"] == "COMPLETED", message

    def start(self, tool: str, parameters: dict[str, Any]) -> str:
        """A run's identifier."""
        return self.runs.start(f"{tool}/{tool}", parameters)

    def published(self, tool: str) -> str | None:
        """The newest folder of this name."""
        self.as_role("viewer")
        from tasks.store import ObjectStore, current

        return current(ObjectStore(), f"outputs/{tool}", self.name)

    def file(self, tool: str, suffix: str) -> Path:
        """A published file, fetched."""
        from tasks.store import ObjectStore, join

        folder = self.published(tool)
        assert folder is not None, tool
        local = self.folder / f"{tool}{suffix}"
        ObjectStore().download(join(folder, f"{self.name}{suffix}"), local)
        return local

    def raster(self, tool: str, suffix: str = ".tif") -> Any:
        """All bands of a published raster, and its nodata."""
        with rasterio.open(self.file(tool, suffix)) as dataset:
            return dataset.read(), dataset.nodata

    def layer(self, tool: str) -> geopandas.GeoDataFrame:
        """A published layer."""
        return geopandas.read_parquet(self.file(tool, ".parquet"))


@pytest.fixture
def further(runs: Runs, as_role: Any, tmp_path: Path) -> Further:
    return Further(runs, as_role, tmp_path)


def published(as_role: Any, folder: Path, package: Any) -> str:
    """A package of the fixtures in the stack's store."""
    as_role("gpu")
    from tasks.package.publish import publish_package
    from tasks.store import ObjectStore

    return publish_package(ObjectStore(), folder / f"{package.name}.dlpk", made_by="test")


def test_change_and_classes_of_objects(
    further: Further, as_role: Any, pairs: Any, objects: Any, tmp_path: Path
) -> None:
    change, labels = (published(as_role, tmp_path, package) for package in (pairs, objects))
    further.completed(
        {
            "detect_change": further.start(
                "detect_change",
                {
                    "from_raster": [SCENE],
                    "to_raster": [SCENE],
                    "model": change,
                    "output_classified_raster": further.name,
                    "model_arguments": [{"name": "step", "value": "-1"}],
                    "extent": [404211.9, 3285122.9, 404241.9, 3285142.9],
                },
            ),
            "classify_objects": further.start(
                "classify_objects",
                {
                    "input_raster": [SCENE],
                    "in_features": TREES,
                    "model": labels,
                    "out_feature_class": further.name,
                    "class_label_field": "Brightness",
                },
            ),
        }
    )
    made, nodata = further.raster("detect_change")
    assert made.shape == (1, 200, 300)
    assert nodata == 0
    assert (made == 2).all()  # no change at all is more than -1

    layer = further.layer("classify_objects")
    assert set(layer["Brightness"]) <= {"Dark", "Bright"}
    assert len(layer) > 0
    assert layer.crs is not None


def test_kept_probabilities_and_objects_are_refined_and_suppressed(
    further: Further, as_role: Any, scorer: Any, detector: Any, tmp_path: Path
) -> None:
    pixels, boxes = (published(as_role, tmp_path, package) for package in (scorer, detector))
    classify = {
        "input_raster": [SCENE],
        "model": pixels,
        "output_classified_raster": further.name,
        "stitching": "BLEND",
        "keep_probabilities": True,
        "output_polygons": True,
        "minimum_area": 1.0,
    }
    dry = further.start("classify_pixels", classify | {"dry_run": True})
    further.completed({"dry run": dry})
    assert further.published("classify_pixels") is None
    further.completed(
        {
            "classify_pixels": further.start("classify_pixels", classify),
            "detect_objects": further.start(
                "detect_objects",
                {
                    "input_raster": [SCENE],
                    "model": boxes,
                    "output_objects": further.name,
                    "output_formats": ["GEOJSON"],
                },
            ),
        }
    )
    # Every object again and less sure: what two runs over one place would give.
    found = further.layer("detect_objects")
    both = tmp_path / "both.parquet"
    pandas.concat([found, found.assign(Confidence=found["Confidence"] * 0.9)]).to_parquet(both)
    twice = f"s3://chipline/incoming/{further.name}.parquet"
    as_role("admin")
    from tasks.store import ObjectStore

    ObjectStore().upload(both, twice)
    outputs = "s3://chipline/outputs"
    further.completed(
        {
            "refine_results": further.start(
                "refine_results",
                {
                    "input_result": f"{outputs}/classify_pixels/{further.name}",
                    "threshold": 0.6,
                    "output_name": further.name,
                },
            ),
            "non_maximum_suppression": further.start(
                "non_maximum_suppression",
                {
                    "in_features": twice,
                    "class_value_field": "Class",
                    "max_overlap_ratio": 0.3,
                    "out_features": further.name,
                },
            ),
        }
    )
    classified, _ = further.raster("classify_pixels")
    sure, nodata = further.raster("refine_results")
    assert nodata == 0
    assert set(np.unique(sure - np.where(sure, classified, 0))) == {0}
    assert 0 < (sure == 0).mean() < 1

    left = further.layer("non_maximum_suppression")
    assert len(left) == len(found) > 0
    assert sorted(left["Confidence"]) == sorted(found["Confidence"])  # the surer one of each pair


def test_garbage_is_counted_and_collected(further: Further) -> None:
    started = {
        f"collect_shards, dry_run {dry}": further.start(
            "collect_shards", {"dry_run": dry, "older_than_days": 1000}
        )
        for dry in (True, False)
    }
    further.completed(started)
    for run in started.values():
        table = next(one for one in further.runs.artifacts(run) if one["type"] == "table")
        assert "HALF_UPLOADS" in str(table["data"])
