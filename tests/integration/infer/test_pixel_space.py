"""Detection in raw images: the objects come back to the map by each image's own way there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint

from tasks.errors import BadInputError
from tasks.infer.finish import finish
from tasks.infer.parameters import DetectObjectsParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package.publish import publish_package
from tasks.store import join

TURNED = Affine.translation(500_000, 4_900_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)


@pytest.fixture
def dots(dots: Any) -> Any:
    """A corner of the picture is enough."""
    return np.ascontiguousarray(dots[:, :200, :170])


@pytest.fixture
def detect(store: Any, detector: Any, tmp_path: Path) -> Any:
    uri = publish_package(store, tmp_path / "blobs.dlpk", made_by="test")

    def run(rasters: list[str], **more: Any) -> Any:
        values = {"input_raster": rasters, "model": uri, "output_objects": "blobs", **more}
        plan = prepare(DetectObjectsParameters.model_validate(values), store)
        for part in range(len(plan.parts)):
            compute_part(store, plan, part, package=detector)
        details = finish(store, plan, {}).manifest.details
        return geopandas.read_parquet(join(plan.folder, details["outputs"][0]["path"])), plan

    return run


@pytest.fixture
def turned(dots: Any, tmp_path: Path) -> dict[str, str]:
    """The same picture turned on the map, by its affine and by control points."""
    made = {}
    rows, cols = dots.shape[1:]
    corners = [(0, 0), (0, cols), (rows, 0), (rows, cols), (rows / 2, cols / 3)]
    gcps = [GroundControlPoint(row, col, *(TURNED @ (col, row))) for row, col in corners]
    for name, place in (("affine", {"transform": TURNED}), ("points", {"gcps": gcps})):
        path = tmp_path / f"schräg_{name}.tif"
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=rows,
            width=cols,
            count=1,
            dtype="uint8",
            crs="EPSG:32612",
            **place,
        ) as dataset:
            dataset.write(dots)
        made[name] = str(path)
    return made


def test_a_north_up_raster_gives_the_same_objects_in_both_spaces(
    detect: Any, write_scene: Any, dots: Any
) -> None:
    uri = write_scene("dots", dots)
    on_map, _ = detect([uri])
    raw, plan = detect([uri], use_pixelspace=True)
    assert plan.grids[0].crs_wkt == ""
    assert len(raw) == len(on_map) > 20
    assert raw.crs == on_map.crs
    apart = shapely.hausdorff_distance(raw.geometry.to_numpy(), on_map.geometry.to_numpy())
    assert apart.max() < 1e-6
    assert raw["Confidence"].tolist() == on_map["Confidence"].tolist()


@pytest.mark.parametrize("way", ["affine", pytest.param("points", marks=pytest.mark.slow)])
def test_objects_of_a_turned_image_lie_turned_on_the_map(
    detect: Any, write_scene: Any, dots: Any, turned: dict[str, str], way: str
) -> None:
    straight, _ = detect([write_scene("dots", dots)])
    found, _ = detect([turned[way]], use_pixelspace=True, out_sr=4326)
    assert found.crs.to_epsg() == 4326
    here = Affine(0.5, 0, 500_000, 0, -0.5, 4_900_000)
    change = TURNED @ ~here
    wanted = shapely.transform(
        straight.geometry.to_numpy(), lambda xy: np.column_stack(change @ (xy[:, 0], xy[:, 1]))
    )
    assert len(found) == len(wanted)
    tree = shapely.STRtree(wanted)
    back = found.to_crs("EPSG:32612").geometry.to_numpy()
    nearest = wanted[tree.nearest(shapely.centroid(back))]
    assert shapely.hausdorff_distance(back, nearest).max() < 0.01


@pytest.mark.slow
def test_several_images_each_have_a_space_of_their_own(
    detect: Any, write_scene: Any, dots: Any, turned: dict[str, str]
) -> None:
    rasters = [turned["affine"], write_scene("dots", dots)]
    with pytest.raises(BadInputError, match="cannot share one pixel space"):
        detect(rasters, use_pixelspace=True)
    both, plan = detect(rasters, use_pixelspace=True, processing_mode="PROCESS_ITEMS_SEPARATELY")
    assert [grid.rasters for grid in plan.grids] == [[0], [1]]
    counts = both["source_raster"].value_counts()
    assert counts[rasters[0]] == counts[rasters[1]]
    with pytest.raises(BadInputError, match="cell_size means nothing"):
        detect(rasters[:1], use_pixelspace=True, cell_size=1.0)


def test_an_image_that_lies_nowhere_is_refused(detect: Any, dots: Any, tmp_path: Path) -> None:
    path = tmp_path / "raw.tif"
    with rasterio.open(path, "w", driver="GTiff", height=200, width=170, count=1, dtype="uint8") as dataset:
        dataset.write(dots)
    with pytest.raises(BadInputError, match="no transform from the map"):
        detect([str(path)], use_pixelspace=True)
