"""Package against imagery, through planning and the real host."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tasks.errors import BadInputError
from tasks.imagery import Window
from tasks.infer.operators import read_pixels
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.infer.shards import ShardStore
from tasks.package import Package
from tasks.package.fetch import fetch_package
from tasks.package.publish import publish_package
from tasks.settings import settings


def published(store: Any, made: Path, changes: dict[str, Any], *, source: tuple[str, str] = ("", "")) -> str:
    """The test's package with another definition, and with one text of its function replaced."""
    changed = made.with_name("changed.dlpk")
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(changed, "w") as new:
        for item in old.infolist():
            content = old.read(item).decode()
            if item.filename.endswith(".emd"):
                content = json.dumps(json.loads(content) | changes)
            new.writestr(item.filename, content.replace(*source) if source[0] else content)
    return publish_package(store, changed, made_by="test", name="bright")


def test_a_function_gets_the_range_that_it_asks_for(
    store: Any, classifier: Package, write_scene: Any, texture: Any, tmp_path: Path
) -> None:
    uri = published(
        store,
        tmp_path / f"{classifier.name}.dlpk",
        {},
        source=('"inputMask": True', '"dataRange": (0, 2000)'),
    )
    scene = write_scene("scene", texture)
    # The function sums whole numbers; with a level of 0.5 of the new range it sees the same classes.
    parameters = ClassifyPixelsParameters.model_validate(
        {
            "input_raster": [scene],
            "model": uri,
            "output_classified_raster": "classes",
            "model_arguments": [{"name": "level", "value": "1000"}],
        }
    )
    plan = prepare(parameters, store)
    assert plan.rescaling is not None
    assert any("0 to 255 are rescaled" in remark for remark in plan.remarks)
    compute_part(store, plan, 0, package=fetch_package(uri, store))
    found = read_pixels(ShardStore(store, settings().root).get(plan.shards[0]))
    total = (texture.astype(np.float32) * (2000 / 255)).astype(np.int64).sum(axis=0)
    padded = np.pad(total, 3)
    mean = sum(padded[r : r + 300, c : c + 260] for r in range(7) for c in range(7))
    wanted = np.where(mean > 3 * 1000 * 49, 2, 1)
    inner = plan.shards[0].target.slices_in(Window(0, 0, 300, 260))
    assert set(np.unique(wanted)) == {1, 2}
    assert np.mean(found == wanted[inner]) > 0.999


def test_imagery_of_other_cells_is_computed_on_the_training_s(
    store: Any, classifier: Package, write_scene: Any, texture: Any, tmp_path: Path
) -> None:
    size = {"x": 1.0, "y": 1.0, "spatialReference": {"wkid": 32612}}
    uri = published(store, tmp_path / f"{classifier.name}.dlpk", {"MinCellSize": size, "MaxCellSize": size})
    given = {
        "input_raster": [write_scene("scene", texture)],
        "model": uri,
        "output_classified_raster": "classes",
    }
    plan = prepare(ClassifyPixelsParameters.model_validate(given), store)
    assert plan.grids[0].grid.cell_size == (1.0, 1.0)
    assert (plan.grids[0].rows, plan.grids[0].cols) == (150, 130)
    assert any("cells are 0.5 m" in remark and "resampled to 1 m" in remark for remark in plan.remarks)
    kept = prepare(ClassifyPixelsParameters.model_validate({**given, "cell_size": 0.5}), store)
    assert kept.grids[0].grid.cell_size == (0.5, 0.5)


def test_values_on_another_scale_are_refused_before_the_function_starts(
    store: Any,
    classifier: Package,
    write_scene: Any,
    texture: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: Any, **_more: Any) -> None:
        raise AssertionError("the function was started")

    monkeypatch.setattr("tasks.infer.describe.HostProcess", refuse)
    changes = {"IsImageNetNormalization": True, "Chipline": {"PixelType": "uint8"}}
    uri = published(store, tmp_path / f"{classifier.name}.dlpk", changes)
    scene = write_scene("scene", texture.astype(np.uint16) * 40)
    with rasterio.open(scene) as file:
        assert file.dtypes[0] == "uint16"
    given = {"input_raster": [scene], "model": uri, "output_classified_raster": "classes"}
    with pytest.raises(BadInputError, match=r"trained on 0 to 255.*Rescale the imagery"):
        prepare(ClassifyPixelsParameters.model_validate(given), store)
