"""Change detection from parameters to the published raster, through the real host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from tasks.infer.finish import finish
from tasks.infer.parameters import DetectChangeParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package.publish import publish_package
from tasks.store import join


def test_two_dates_become_one_raster_of_changes(
    store: Any, pairs: Any, write_scene: Any, texture: Any, tmp_path: Path
) -> None:
    before = texture[:2]
    after = np.minimum(before.astype(int) + 3, 255).astype(np.uint8)
    after[:, 100:150, 40:90] = 255
    after[:, :30] = 0
    uris = [
        write_scene("early", before),
        # Another coverage, in two files, one of them with nodata.
        write_scene("late_north", after[:, :140, 20:], at=(0, 20), nodata=0),
        write_scene("late_süd", after[:, 140:, 20:], at=(140, 20), nodata=0),
    ]
    parameters = DetectChangeParameters.model_validate(
        {
            "from_raster": uris[:1],
            "to_raster": uris[1:],
            "model": publish_package(store, tmp_path / "pairs.dlpk", made_by="test"),
            "output_classified_raster": "changes",
            "shard_size": 128,
        }
    )
    plan = prepare(parameters, store)
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=pairs)
    result = finish(store, plan, {})
    (output,) = result.manifest.details["outputs"]
    with rasterio.open(join(plan.folder, output["path"])) as dataset:
        made, transform = dataset.read(1), dataset.transform
    difference = after.astype(int).sum(axis=0) - before.astype(int).sum(axis=0)
    expected = np.where((after != 0).any(axis=0), np.where(difference > 20, 2, 1), 0)[:, 20:]
    np.testing.assert_array_equal(made, expected)
    assert transform.c == 500_010
    assert set(np.unique(made)) == {0, 1, 2}
    roles = [(item["role"], Path(item["uri"]).stem) for item in result.manifest.inputs[:3]]
    assert roles == [("before", "early"), ("after", "late_north"), ("after", "late_süd")]
