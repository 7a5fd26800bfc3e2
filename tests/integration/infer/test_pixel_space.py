"""Detection in raw images: the objects come back to the map by each image's own way there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from tasks.errors import BadInputError
from tasks.infer.finish import finish
from tasks.infer.parameters import DetectObjectsParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package import write_dlpk
from tasks.package.fetch import fetch_package
from tasks.package.publish import publish_package
from tasks.settings import settings
from tasks.store import join

TURNED = Affine.translation(500_000, 4_900_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)


@pytest.fixture
def dots(dots: Any) -> Any:
    """A corner of the picture is enough."""
    return np.ascontiguousarray(dots[:, :200, :170])


@pytest.fixture
def detect(store: Any, detector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    uri = publish_package(store, tmp_path / "blobs.dlpk", made_by="test")
    # The same from elsewhere: nobody here made it, the operator has approved it.
    elsewhere = tmp_path / "elsewhere.dlpk"
    source = (detector.folder / "BlobDetector.py").read_bytes() + b"\n# from elsewhere\n"
    write_dlpk(elsewhere, detector.definition, {"BlobDetector.py": source})
    digest = hashlib.sha256(elsewhere.read_bytes()).hexdigest()
    monkeypatch.setenv("CHIPLINE_APPROVED_PACKAGES", f'["{digest}"]')
    monkeypatch.setenv("CHIPLINE_ALLOW_UNCONTAINED", "true")  # on a kernel that contains less
    settings.cache_clear()

    def run(rasters: list[str], foreign: bool = False, **more: Any) -> Any:
        model = str(elsewhere) if foreign else uri
        values = {"input_raster": rasters, "model": model, "output_objects": "blobs", **more}
        plan = prepare(DetectObjectsParameters.model_validate(values), store)
        for part in range(len(plan.parts)):
            compute_part(store, plan, part, package=fetch_package(plan.package.uri, store))
        details = finish(store, plan, {}).manifest.details
        return geopandas.read_parquet(join(plan.folder, details["outputs"][0]["path"])), plan

    return run


def rpcs(rows: int, cols: int) -> RPC:
    """Rational polynomials, of longitude and latitude, that put the picture where ``TURNED`` does.

    Over a hundred metres a map projection is a plane to a millionth of its size: the linear terms are fitted
    to a grid of places.
    """
    col, row = (axis.ravel() for axis in np.meshgrid(np.linspace(0, cols, 9), np.linspace(0, rows, 9)))
    x = TURNED.a * col + TURNED.b * row + TURNED.c
    y = TURNED.d * col + TURNED.e * row + TURNED.f
    lon, lat = pyproj.Transformer.from_crs(32612, 4326, always_xy=True).transform(x, y)
    middle, scale = (lon.mean(), lat.mean()), (np.ptp(lon), np.ptp(lat))
    # Terms in the order of the format: 1, longitude, latitude, height …
    terms = np.column_stack([np.ones(len(lon)), (lon - middle[0]) / scale[0], (lat - middle[1]) / scale[1]])
    fitted = []
    for along, half in ((row, rows / 2), (col, cols / 2)):
        # Lines and samples of RPCs count from the middle of the first pixel.
        solved = np.linalg.lstsq(terms, (along - half) / half, rcond=None)[0]
        fitted.append([*solved.tolist(), *[0.0] * 17])
    one = [1.0] + [0.0] * 19
    return RPC(
        height_off=0.0, height_scale=100.0,
        long_off=middle[0], long_scale=scale[0], lat_off=middle[1], lat_scale=scale[1],
        line_off=rows / 2 - 0.5, line_scale=rows / 2, samp_off=cols / 2 - 0.5, samp_scale=cols / 2,
        line_num_coeff=fitted[0], line_den_coeff=one, samp_num_coeff=fitted[1], samp_den_coeff=one,
    )  # fmt: skip


@pytest.fixture
def turned(dots: Any, tmp_path: Path) -> dict[str, str]:
    """The same picture turned on the map, by its affine and by control points."""
    made = {}
    rows, cols = dots.shape[1:]
    corners = [(0, 0), (0, cols), (rows, 0), (rows, cols), (rows / 2, cols / 3)]
    gcps = [GroundControlPoint(row, col, *(TURNED @ (col, row))) for row, col in corners]
    places: dict[str, dict[str, Any]] = {
        "affine": {"transform": TURNED, "crs": "EPSG:32612"},
        "points": {"gcps": gcps, "crs": "EPSG:32612"},
        "polynomials": {"rpcs": rpcs(rows, cols)},
    }
    for name, place in places.items():
        path = tmp_path / f"schräg_{name}.tif"
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=rows,
            width=cols,
            count=1,
            dtype="uint8",
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


@pytest.mark.parametrize(
    ("way", "foreign"),
    [("affine", False), pytest.param("points", False, marks=pytest.mark.slow), ("polynomials", True)],
)
def test_objects_of_a_turned_image_lie_turned_on_the_map(
    detect: Any, write_scene: Any, dots: Any, turned: dict[str, str], way: str, foreign: bool
) -> None:
    straight, _ = detect([write_scene("dots", dots)])
    found, plan = detect([turned[way]], foreign=foreign, use_pixelspace=True, out_sr=4326)
    assert plan.package.foreign is foreign
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
