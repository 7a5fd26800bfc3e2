"""Rasters that lie in unusual places and ways: right, or refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pystac
import pytest
import rasterio
import shapely
import shapely.affinity
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage

from tasks.errors import BadInputError
from tasks.infer.describe import describe
from tasks.infer.finish import finish
from tasks.infer.parameters import ClassifyPixelsParameters, DetectObjectsParameters
from tasks.infer.part import compute_part
from tasks.infer.plan import inspect_collection, make_plan
from tasks.infer.planned import Plan
from tasks.package import Package
from tasks.store import join

NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 4_900_000)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """``write(array, transform, epsg)``: a GeoTIFF; its path."""
    made = 0

    def write(array: NDArray[Any], transform: Affine, epsg: int = 32612) -> str:
        nonlocal made
        made += 1
        path = tmp_path / "imagery" / f"scene_{made}.tif"
        path.parent.mkdir(exist_ok=True)
        bands, rows, cols = array.shape
        profile = {"driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": array.dtype}
        with rasterio.open(path, "w", **profile, crs=f"EPSG:{epsg}", transform=transform) as dataset:
            dataset.write(array)
        return str(path)

    return write


@pytest.fixture
def dots(dots: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A corner of it."""
    part = dots[:, :200, :160].copy()
    part[:, -1], part[:, :, -1] = 0, 0
    return part


def applied(store: Any, package: Package, uri: str, **more: Any) -> Plan:
    kind: Any = ClassifyPixelsParameters
    values = {"input_raster": [uri], "model": "m.dlpk", **more}
    if package.definition.model_type == "ObjectDetection":
        kind = DetectObjectsParameters
        values["output_objects"] = "found"
    else:
        values["output_classified_raster"] = "classes"
    plan = make_plan(
        kind.model_validate(values),
        rasters=inspect_collection([uri]),
        package=package,
        package_uri="m.dlpk",
        description=describe(package, {}, store, foreign=False),
        processor="CPU",
    )
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    finish(store, plan, {})
    return plan


def layer(plan: Plan) -> Any:
    return geopandas.read_parquet(join(plan.folder, "found.parquet"))


def blobs(dots: NDArray[Any]) -> list[tuple[slice, slice]]:
    labels, _ = ndimage.label(dots[0] > 128)
    found: list[tuple[slice, slice]] = ndimage.find_objects(labels)
    return found


@pytest.mark.slow
def test_a_south_up_raster_is_turned_or_refused(
    store: Any, classifier: Package, write: Any, texture: NDArray[np.uint8]
) -> None:
    straight = applied(store, classifier, write(texture, NORTH_UP))
    south_up = Affine(0.5, 0, 500_000, 0, 0.5, 4_900_000 - 0.5 * texture.shape[1])
    uri = write(np.ascontiguousarray(texture[:, ::-1]), south_up)
    with pytest.raises(BadInputError, match=r"not north-up.*or give cell_size or out_sr"):
        applied(store, classifier, uri)
    turned = applied(store, classifier, uri, cell_size=0.5)
    with (
        rasterio.open(join(straight.folder, "classes.tif")) as one,
        rasterio.open(join(turned.folder, "classes.tif")) as other,
    ):
        assert other.transform == one.transform
        np.testing.assert_array_equal(other.read(1), one.read(1))


@pytest.mark.slow
def test_objects_of_a_rotated_raster_lie_where_they_are(
    store: Any, detector: Package, write: Any, dots: NDArray[np.uint8]
) -> None:
    rotated = NORTH_UP @ Affine.rotation(30)
    uri = write(dots, rotated)
    with pytest.raises(BadInputError, match="rotated"):
        applied(store, detector, uri)
    found = layer(applied(store, detector, uri, cell_size=0.25))
    matrix = rotated.to_shapely()
    truth = [
        shapely.affinity.affine_transform(shapely.box(c.start, r.start, c.stop, r.stop), matrix)
        for r, c in blobs(dots)
    ]
    tree = shapely.STRtree(truth)
    nearest = tree.nearest(shapely.centroid(found.geometry.to_numpy()))
    assert sorted(nearest.tolist()) == list(range(len(truth)))
    apart = shapely.distance(
        shapely.centroid(found.geometry.to_numpy()), shapely.centroid(np.array(truth, object)[nearest])
    )
    assert apart.max() < 0.5


@pytest.mark.slow
def test_areas_in_degrees_are_square_metres(
    store: Any, detector: Package, write: Any, dots: NDArray[np.uint8]
) -> None:
    found = layer(applied(store, detector, write(dots, Affine(4e-6, 0, 24.9, 0, -2e-6, 60.2), 4326)))
    assert len(found) == len(blobs(dots))
    geod = pyproj.Geod(ellps="WGS84")
    areas = [abs(geod.geometry_area_perimeter(outline)[0]) for outline in found.geometry]
    assert found["area_m2"].tolist() == pytest.approx(areas, rel=1e-4)


def test_a_raster_across_the_antimeridian_keeps_its_coordinates(
    store: Any, detector: Package, write: Any, dots: NDArray[np.uint8]
) -> None:
    cell = 1e-5
    plan = applied(store, detector, write(dots, Affine(cell, 0, 180 - 80 * cell, 0, -cell, -17), 4326))
    found = layer(plan)
    assert len(found) == len(blobs(dots))
    assert found.total_bounds[0] < 180 < found.total_bounds[2]
    geod = pyproj.Geod(ellps="WGS84")
    areas = [abs(geod.geometry_area_perimeter(outline)[0]) for outline in found.geometry]
    assert found["area_m2"].tolist() == pytest.approx(areas, rel=1e-4)
    item = json.loads(store.get(join(plan.folder, "found.stac.json")))
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["bbox"][0] > 179 > -179 > item["bbox"][2]


def test_what_crosses_the_antimeridian_is_not_stretched_around_the_world(
    store: Any, detector: Package, write: Any, dots: NDArray[np.uint8]
) -> None:
    to_utm = pyproj.Transformer.from_crs(4326, 32701, always_xy=True)
    x, y = to_utm.transform(180, -17)
    uri = write(dots, Affine(0.5, 0, x - 40, 0, -0.5, y + 50), 32701)
    own = layer(applied(store, detector, uri))
    assert len(own) == len(blobs(dots))
    with pytest.raises(BadInputError, match="antimeridian"):
        applied(store, detector, uri, out_sr=4326)
    # Of separate items only the features are reprojected: those in the middle go on beyond 180.
    named = layer(
        applied(store, detector, uri, out_sr=4326, processing_mode="PROCESS_ITEMS_SEPARATELY", shard_size=400)
    )
    assert named["area_m2"].sum() == pytest.approx(own["area_m2"].sum(), rel=1e-3)
    bounds = named.bounds
    assert (bounds["maxx"] - bounds["minx"]).max() < 0.001
    assert {int(x // 180) for x in bounds["minx"]} == {-1, 0}


def test_the_item_of_a_result_is_complete(
    store: Any, detector: Package, write: Any, dots: NDArray[np.uint8]
) -> None:
    uri = write(dots, NORTH_UP)
    plan = applied(store, detector, uri, output_formats=["GEOJSON"])
    item = pystac.Item.from_dict(json.loads(store.get(join(plan.folder, "found.stac.json"))))
    item.set_self_href(join(plan.folder, "found.stac.json"))
    for asset in item.assets.values():
        assert store.exists(str(asset.get_absolute_href())), asset.href
    assert {link.target for link in item.get_links("derived_from")} == {uri, "m.dlpk"}
    assert item.properties["chipline:package_digest"] == detector.digest
    assert set(item.properties["processing:software"]) == {"chipline", "gdal", "python", "numpy"}
    assert {"geoparquet", "geopackage", "geojson", "preview"} <= set(item.assets)
