"""Lines through the real host: thinned as if the whole raster were one tile, with whatever threshold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from tasks.errors import BadInputError, ChiplineError
from tasks.infer.describe import describe
from tasks.infer.finish import finish
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part
from tasks.infer.plan import inspect_collection, make_plan
from tasks.package import Package
from tasks.package.functions.chipline_lines import thinned
from tasks.store import join
from tests.unit.package.one_layer import one_layer

PADDING, ROUNDS = 16, 4
ROAD = 7


@pytest.fixture
def liner(tmp_path: Path) -> Package:
    """A pixel is of a line as far as its red is above the middle: what a tile says of it is what all say."""
    weight = torch.zeros(2, 3, 1, 1)
    weight[1, 0] = 8.0
    return one_layer(tmp_path, weight, torch.tensor([0.0, -4.0]), {ROAD: "Road"}, lines=True, padding=PADDING)


def lines_of(
    store: Any,
    package: Package,
    uri: str,
    *,
    shard_size: int = 100,
    stitching: str = "TRIM",
    **arguments: str,
) -> Any:
    """The classified raster."""
    values = {
        "input_raster": [uri],
        "model": "m.dlpk",
        "output_classified_raster": "_".join(["lines", str(shard_size), *arguments.values()]),
        "shard_size": shard_size,
        "stitching": stitching,
        "model_arguments": [{"name": name, "value": value} for name, value in arguments.items()],
    }
    plan = make_plan(
        ClassifyPixelsParameters.model_validate(values),
        rasters=inspect_collection([uri]),
        package=package,
        package_uri="m.dlpk",
        description=describe(package, arguments, store, foreign=False),
        processor="CPU",
    )
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    finish(store, plan, {})
    with rasterio.open(join(plan.folder, f"{values['output_classified_raster']}.tif")) as dataset:
        return dataset.read(1)


@pytest.fixture
def contours(texture: Any) -> Any:
    """Lines of some pixels' width, with a hole in the imagery; (3, 300, 260)."""
    scene = np.where(texture // 16 % 2, 220, 30).astype(np.uint8)
    scene[:, 90:140, 70:140] = 0
    return scene


def test_lines_are_thinned_as_if_there_were_one_tile(
    store: Any, liner: Package, write_scene: Any, contours: Any
) -> None:
    uri = write_scene("scene", contours, nodata=0)
    thin = lines_of(store, liner, uri, thinning="True")
    wide = contours[0] > 127
    expected = thinned(torch.from_numpy(wide)[None], ROUNDS)[0].numpy()
    np.testing.assert_array_equal(thin == ROAD, expected)
    assert 0 < np.count_nonzero(expected) < 0.6 * np.count_nonzero(wide)
    # Shards of other sizes are other blocks, and other places where results are put together.
    np.testing.assert_array_equal(lines_of(store, liner, uri, shard_size=200, thinning="True"), thin)


@pytest.mark.slow
def test_a_threshold_decides_what_is_a_line(
    store: Any, liner: Package, write_scene: Any, texture: Any
) -> None:
    uri = write_scene("scene", texture)
    probability = 1 / (1 + np.exp(4.0 - 8.0 * texture[0] / 255))
    for threshold in ("0.5", "0.7"):
        found = lines_of(store, liner, uri, threshold=threshold)
        np.testing.assert_array_equal(found == ROAD, probability >= float(threshold))


@pytest.mark.slow
def test_thinned_lines_have_no_scores(store: Any, liner: Package, write_scene: Any, texture: Any) -> None:
    uri = write_scene("scene", texture)
    message = "gives lines, not scores, with threshold 0.5 and thinning True"
    with pytest.raises(BadInputError, match=re.escape(message)):
        lines_of(store, liner, uri, stitching="BLEND", thinning="True")
    with pytest.raises(ChiplineError, match="give a padding of 4 pixels or more"):
        describe(liner, {"thinning": "True", "padding": "3"}, store, foreign=False)
