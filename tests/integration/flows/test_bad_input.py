"""Bad input ends a run with one clear message that names the remedy, and leaves nothing visible."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio

if TYPE_CHECKING:
    from tests.conftest import Runs

IMAGERY = "s3://chipline/imagery"
SCENE = f"{IMAGERY}/florida_trees/osbs_029.tif"
LABELS = f"{IMAGERY}/florida_trees/trees.gpkg"
EXPORT: dict[str, Any] = {"input_raster": [SCENE], "input_class_data": LABELS, "output_location": "bad"}
DETECT: dict[str, Any] = {
    "input_raster": [SCENE],
    "model": f"{IMAGERY}/not-a-package.dlpk",
    "output_objects": "bad",
}
NO_CRS = f"{IMAGERY}/bad/no-crs.tif"


@pytest.fixture(scope="module", autouse=True)
def bad_files(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A raster without a coordinate system and a file that is no package, in the store."""
    from infra.local.health import s3_client

    folder = tmp_path_factory.mktemp("bad")
    with rasterio.open(
        folder / "no-crs.tif", "w", driver="GTiff", width=64, height=64, count=3, dtype="uint8"
    ) as made:
        made.write(np.full((3, 64, 64), 7, np.uint8))
    key = stack.secrets.s3_keys["admin"]
    s3 = s3_client(stack.layout, key.access_key, key.secret_key)
    s3.upload_file(str(folder / "no-crs.tif"), "chipline", "imagery/bad/no-crs.tif")
    s3.put_object(Bucket="chipline", Key="imagery/not-a-package.dlpk", Body=b"no zip at all")


@pytest.mark.parametrize(
    ("tool", "parameters", "named", "remedy"),
    [
        pytest.param(
            "export_training_data",
            EXPORT | {"input_raster": [f"{IMAGERY}/nowhere.tif"]},
            "nowhere.tif",
            "heck",
            id="missing object",
        ),
        pytest.param(
            "export_training_data",
            EXPORT | {"input_raster": [NO_CRS]},
            "no-crs.tif",
            "CRS|coordinate",
            id="no CRS",
        ),
        pytest.param(
            "export_training_data",
            EXPORT | {"input_class_data": f"{IMAGERY}/yellowstone_trees/trees.gpkg"},
            "trees.gpkg",
            "touch|overlap|area",
            id="labels elsewhere",
        ),
        pytest.param(
            "export_training_data",
            EXPORT | {"classvalue_field": "kind"},
            "kind",
            "classvalue",
            id="unknown class field",
        ),
        pytest.param("detect_objects", DETECT, "not-a-package.dlpk", "package|dlpk", id="not a package"),
    ],
)
def test_one_message_names_the_thing_and_the_remedy(
    runs: Runs, tool: str, parameters: dict[str, Any], named: str, remedy: str
) -> None:
    finished = runs.wait(runs.start(f"{tool}/{tool}", parameters))
    message = runs.message(finished)
    assert finished["state_type"] == "FAILED", message
    assert named in message
    assert re.search(remedy, message), message
    assert message.rstrip().endswith("."), message
    assert not runs.children(finished["id"]), "no part may start"


def test_nothing_of_the_bad_runs_is_visible(as_role: Callable[[str], None]) -> None:
    as_role("viewer")
    from tasks.store import ObjectStore, current

    store = ObjectStore()
    for kind in ("training-data", "outputs/detect_objects"):
        assert current(store, kind, "bad") is None
        assert not [
            item.uri for item in store.list(f"s3://chipline/{kind}/bad/") if "manifest.json" in item.uri
        ]
