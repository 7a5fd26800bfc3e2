"""Classes of raw images come onto the map by each image's own way there; oracle: GDAL's warp of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
import rasterio.warp
from affine import Affine

from tasks.errors import BadInputError
from tasks.infer.finish import finish
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package.publish import publish_package
from tasks.store import join

TURNED = Affine.translation(500_000, 4_900_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def classify(store: Any, scorer: Any, tmp_path: Path) -> Any:
    uri = publish_package(store, tmp_path / "scorer.dlpk", made_by="test")

    def run(rasters: list[str], **more: Any) -> Any:
        values = {"input_raster": rasters, "model": uri, "output_classified_raster": "classes", **more}
        plan = prepare(ClassifyPixelsParameters.model_validate(values), store)
        for part in range(len(plan.parts)):
            compute_part(store, plan, part, package=scorer)
        return plan, finish(store, plan, {}).manifest.details["outputs"]

    return run


@pytest.fixture
def picture(texture: Any) -> Any:
    """A corner of it, (3, 150, 130), with a hole."""
    part = np.ascontiguousarray(texture[:, :150, :130])
    part[:, 30:50, 60:90] = 0
    return part


def write_raw(path: Path, array: Any, **place: Any) -> str:
    bands, rows, cols = array.shape
    profile = {"driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": array.dtype}
    with rasterio.open(path, "w", **profile, nodata=0, **place) as dataset:
        dataset.write(array)
    return str(path)


def bands_of(plan: Any, name: str) -> Any:
    with rasterio.open(join(plan.folder, name)) as dataset:
        return dataset.read(), dataset.dataset_mask() != 0, dataset.profile


def test_classes_of_a_turned_image_lie_turned_on_the_map(
    classify: Any, write_scene: Any, picture: Any, tmp_path: Path
) -> None:
    kept = {"keep_probabilities": True, "top_classes": 2}
    straight, _ = classify([write_scene("scene", picture, nodata=0)], **kept)
    uri = write_raw(tmp_path / "schräg.tif", picture, crs="EPSG:32612", transform=TURNED)
    plan, described = classify([uri], use_pixelspace=True, output_polygons=True, **kept)
    assert plan.grids[0].crs_wkt == ""
    for name in ("classes.tif", "classes_probability.tif", "classes_alternatives.tif"):
        values, mask, _ = bands_of(straight, name)
        found, found_mask, profile = bands_of(plan, name)
        assert profile["crs"].to_epsg() == 32612
        place = {
            "src_transform": TURNED,
            "src_crs": profile["crs"],
            "dst_transform": profile["transform"],
            "dst_crs": profile["crs"],
            "tolerance": 1e-9,
        }
        for source, here in ((values, found), (mask[None].astype(np.uint8), found_mask[None])):
            expected = np.zeros(here.shape, source.dtype)
            rasterio.warp.reproject(source, expected, **place)
            np.testing.assert_array_equal(here, expected)
        assert 0.3 < found_mask.mean() < 0.9
    counts = described[0]["pixels_per_class"]
    assert sum(counts.values()) == bands_of(plan, "classes.tif")[1].sum()
    item = pystac.Item.from_file(join(plan.folder, "classes.stac.json"))
    with rasterio.open(join(plan.folder, "classes.tif")) as dataset:
        bounds = rasterio.warp.transform_bounds(dataset.crs, 4326, *dataset.bounds)
    assert item.bbox == pytest.approx(bounds, abs=1e-6)
    # The polygons are those of the published raster.
    layer = geopandas.read_parquet(join(plan.folder, "classes_polygons.parquet"))
    assert layer.area.sum() == pytest.approx(sum(counts.values()) * 0.25)
    assert set(layer["source_raster"]) == {uri}


def test_classes_of_an_image_that_lies_nowhere_lie_on_it(
    classify: Any, write_scene: Any, picture: Any, tmp_path: Path
) -> None:
    straight, _ = classify([write_scene("scene", picture, nodata=0)])
    uri = write_raw(tmp_path / "raw.tif", picture)
    with pytest.raises(BadInputError, match=r"does not say where it lies.*polygons|polygons need a map"):
        classify([uri], use_pixelspace=True, output_polygons=True)
    with pytest.raises(BadInputError, match="Leave out_sr out"):
        classify([uri], use_pixelspace=True, out_sr=4326)
    plan, described = classify([uri], use_pixelspace=True)
    values, mask, profile = bands_of(plan, "classes.tif")
    expected, expected_mask, _ = bands_of(straight, "classes.tif")
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(mask, expected_mask)
    assert profile["crs"] is None
    assert described[0]["crs_wkt"] is None
    item = pystac.Item.from_file(join(plan.folder, "classes.stac.json"))
    assert item.geometry is None
