"""Plans of all four tools for rasters that lie in unusual ways: right, or refused with a way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from tasks.errors import BadInputError
from tasks.imagery import RasterInfo
from tasks.infer.describe import FunctionDescription
from tasks.infer.features import FeatureLayer
from tasks.infer.mask import MaskPolygons
from tasks.infer.parameters import (
    ClassifyObjectsParameters,
    ClassifyPixelsParameters,
    DetectChangeParameters,
    DetectObjectsParameters,
)
from tasks.infer.plan import plan_with_features
from tasks.infer.planned import Plan
from tasks.infer.shards import TileGeometry
from tasks.package import ModelDefinition, Package
from tasks.settings import settings

UTM, DEGREES = CRS.from_epsg(32612).to_wkt(), CRS.from_epsg(4326).to_wkt()
TOOLS: dict[str, tuple[Any, str, str]] = {
    "classify_pixels": (ClassifyPixelsParameters, "output_classified_raster", "ImageClassification"),
    "detect_objects": (DetectObjectsParameters, "output_objects", "ObjectDetection"),
    "detect_change": (DetectChangeParameters, "output_classified_raster", "ImageClassification"),
    "classify_objects": (ClassifyObjectsParameters, "out_feature_class", "ObjectClassification"),
}
WIDTH, HEIGHT = 300, 200
NORTH_UP = Affine.translation(500_000, 4_900_000) @ Affine.scale(0.5, -0.5)
ROTATED = NORTH_UP @ Affine.rotation(30)
SOUTH_UP = Affine.translation(500_000, 4_899_900) @ Affine.scale(0.5, 0.5)
CELL = 1e-5
ACROSS = Affine(CELL, 0, 180 - 150 * CELL, 0, -CELL, -17)


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path))
    settings.cache_clear()
    yield
    settings.cache_clear()


def raster(transform: Affine, crs_wkt: str = UTM, name: str = "a", **more: Any) -> RasterInfo:
    a, b, c, d, e, f = tuple(transform)[:6]
    values: dict[str, Any] = {
        "uri": f"s3://imagery/{name}.tif",
        "width": WIDTH,
        "height": HEIGHT,
        "band_count": 1,
        "dtype": "uint8",
        "nodata": None,
        "crs_wkt": crs_wkt,
        "transform": (a, b, c, d, e, f),
        "block_shape": (64, 64),
        "band_names": ("Band_1",),
        "colorinterp": ("gray",),
        "identity": f"identity of {name}",
        **more,
    }
    return RasterInfo(**values)


def around(*middles: tuple[float, float], crs: str = DEGREES, size: float = 2e-4) -> FeatureLayer:
    """Squares around positions on the map, as a layer."""
    squares = [shapely.box(x - size / 2, y - size / 2, x + size / 2, y + size / 2) for x, y in middles]
    return FeatureLayer("s3://features.gpkg", geopandas.GeoDataFrame(geometry=squares, crs=crs))


def planned(
    tool: str,
    *rasters: RasterInfo,
    after: Sequence[RasterInfo] = (),
    layer: FeatureLayer | None = None,
    mask: MaskPolygons | None = None,
    **more: Any,
) -> Plan:
    kind, output, model_type = TOOLS[tool]
    pair = tool == "detect_change"
    values: dict[str, Any] = {"model": "s3://m.dlpk", output: "out", "shard_size": 64, **more}
    values |= {"from_raster": ["a"], "to_raster": ["b"]} if pair else {"input_raster": ["a"]}
    if tool == "classify_objects":
        values["in_features"] = "s3://features.gpkg"
        if layer is None:
            a, b, c, d, e, f = rasters[0].transform
            middle = (a * WIDTH / 2 + b * HEIGHT / 2 + c, d * WIDTH / 2 + e * HEIGHT / 2 + f)
            layer = around(middle, crs=str(rasters[0].crs_wkt), size=4 * math.hypot(a, d))
    bands = [0, 1] if pair else [0]
    definition = {
        "ModelType": model_type,
        "Classes": [{"Value": 1, "Name": "Tree"}],
        "ImageHeight": 64,
        "ImageWidth": 64,
        "ExtractBands": bands,
    }
    description = FunctionDescription(
        scalars={},
        geometry=TileGeometry(rows=32, cols=32, padding=0 if tool == "classify_objects" else 4),
        extract_bands=bands,
        output_dtype="uint8",
        output_nodata=None,
        fields=["Class", "Confidence"],
        crops={"batch_size": 4} if tool == "classify_objects" else {},
    )
    return plan_with_features(
        kind.model_validate(values),
        rasters=rasters,
        after=(after or rasters) if pair else (),
        package=Package(Path("/nowhere"), ModelDefinition.model_validate(definition), "d1", "trees"),
        package_uri="s3://m.dlpk",
        description=description,
        processor="CPU",
        layer=layer if tool == "classify_objects" else None,
        mask=mask,
    )[0]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("lies", "told"), [(ROTATED, "is rotated"), (SOUTH_UP, "is not north-up")])
def test_turned_rasters_are_resampled_where_that_is_asked_for(tool: str, lies: Affine, told: str) -> None:
    with pytest.raises(BadInputError, match=rf"{told}.*give cell_size or out_sr.*pixel space"):
        planned(tool, raster(lies))
    for more in ({"cell_size": 0.5}, {"out_sr": 32612}):
        plan = planned(tool, raster(lies), **more)
        grid, bounds = plan.grids[0].grid, raster(lies).bounds
        assert grid.cell_size == pytest.approx((0.5, 0.5))
        assert np.abs(np.array(grid.bounds) - bounds).max() < 0.5
        assert plan.shards
    # South-up, the cells are the raster's own: its rows come in the other order.
    if lies is SOUTH_UP:
        assert grid == planned(tool, raster(NORTH_UP)).grids[0].grid


@pytest.mark.parametrize("tool", TOOLS)
def test_degrees_are_cells_like_others(tool: str) -> None:
    lies = Affine(4e-6, 0, 24.9, 0, -2e-6, 60.2)
    plan = planned(tool, raster(lies, DEGREES))
    grid = plan.grids[0].grid
    assert (grid.shape, grid.transform) == ((HEIGHT, WIDTH), tuple(lies)[:6])
    there = planned(tool, raster(lies, DEGREES), out_sr=32635).grids[0].grid
    assert there.cell_size[0] == pytest.approx(0.22, abs=0.03)


@pytest.mark.parametrize("tool", TOOLS)
def test_across_the_antimeridian_degrees_go_on(tool: str) -> None:
    plan = planned(tool, raster(ACROSS, DEGREES))
    assert plan.grids[0].grid.shape == (HEIGHT, WIDTH)
    # The same ground with longitudes that start again lies on the same pixels.
    again = planned(tool, raster(Affine.translation(-360, 0) @ ACROSS, DEGREES))
    assert [shard.window for shard in again.shards] == [shard.window for shard in plan.shards]
    there = planned(tool, raster(ACROSS, DEGREES), out_sr=3832).grids[0].grid
    assert there.cols < 2 * WIDTH
    in_metres = raster(Affine(0.5, 0, 180_000, 0, -0.5, 8_118_000), CRS.from_epsg(32701).to_wkt())
    assert planned(tool, in_metres).grids[0].grid.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_grid_in_two_pieces_is_refused(tool: str) -> None:
    # Half of it lies west and half of it east of 180 degrees: UTM zone 1 south, near Fiji.
    middle = (180_530.0, 8_118_000.0)
    lies = Affine(0.5, 0, middle[0] - 75_000, 0, -0.5, middle[1])
    across = raster(lies, CRS.from_epsg(32701).to_wkt(), width=300_000)
    with pytest.raises(BadInputError, match=r"crosses the antimeridian.*UTM zone"):
        planned(tool, across, out_sr=4326)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_mosaic_on_both_sides_of_the_antimeridian_is_refused(tool: str) -> None:
    west = raster(Affine(CELL, 0, 180 - WIDTH * CELL, 0, -CELL, -17), DEGREES, "west")
    east = raster(Affine(CELL, 0, -180, 0, -CELL, -17), DEGREES, "east")
    with pytest.raises(BadInputError, match=r"both sides of the antimeridian.*EPSG:3832"):
        planned(tool, east, west)
    assert planned(tool, east, west, out_sr=3832).grids[0].grid.cols < 4 * WIDTH
    assert planned(tool, west, east, extent=[179.0, -18.0, 180.0, -17.0]).shards
    halves = [raster(Affine(0.6, 0, x, 0, -0.45, 90), DEGREES, str(x), height=400) for x in (-180, 0)]
    assert planned(tool, *halves).grids[0].grid.cols == 2 * WIDTH


@pytest.mark.parametrize("tool", TOOLS)
def test_imagery_around_the_whole_world_needs_no_other_map(tool: str) -> None:
    whole = Affine(1.2, 0, -180, 0, -0.9, 90)
    assert planned(tool, raster(whole, DEGREES)).grids[0].grid.shape == (HEIGHT, WIDTH)
    # Web Mercator ends a hair before 180 degrees, and files of the whole world a hair behind.
    edge = 20_037_508.342789244
    cell = 2 * edge / WIDTH
    mercator = raster(Affine(cell, 0, -edge, 0, -cell, edge / 2), CRS.from_epsg(3857).to_wkt(), height=150)
    there = planned(tool, mercator, out_sr=4326).grids[0].grid
    assert (there.bounds[0], there.bounds[2]) == pytest.approx((-180, 180), abs=2)
    beyond = raster(Affine(1.2001, 0, -180.015, 0, -0.9, 90), DEGREES)
    assert planned(tool, beyond).grids[0].grid.cols == WIDTH
    # A mosaic of the continents, and of two places that an ocean or a hemisphere keeps apart.
    tiles = [raster(Affine(0.3, 0, x, 0, -0.3, 60), DEGREES, str(x)) for x in (-170, -80, 70)]
    assert planned(tool, *tiles).grids[0].grid.bounds == pytest.approx((-170, 0, 160, 60))
    apart = [raster(Affine(0.01, 0, x, 0, -0.01, 38), DEGREES, str(x)) for x in (-123, 139)]
    plan = planned(tool, *apart)
    assert plan.grids[0].grid.bounds == pytest.approx((-123, 36, 142, 38))
    # Work lies where imagery does, not in the 260 degrees between.
    assert sum(shard.target.cols for shard in plan.shards if shard.row == 0) <= 2 * (WIDTH + 64)


def test_features_are_found_on_either_side_of_the_antimeridian() -> None:
    on_both = around((180 - 50 * CELL, -17.0008), (-180 + 50 * CELL, -17.0008), (179.9, -17.0008))
    plan = planned("classify_objects", raster(ACROSS, DEGREES), layer=on_both)
    assert plan.crops is not None
    assert plan.crops.counts["features_beside_the_imagery"] == 1
    assert sum(shard.tile_rows for shard in plan.shards) == 2
    # A globe in longitudes from 0 to 360 takes features of the west.
    globe = raster(Affine(1.2, 0, 0, 0, -0.9, 90), DEGREES)
    plan = planned("classify_objects", globe, layer=around((-100.0, 10.0), (100.0, 10.0), size=5))
    assert sum(shard.tile_rows for shard in plan.shards) == 2
    west = raster(Affine(1.2, 0, -180, 0, -0.9, 90), DEGREES)
    plan = planned("classify_objects", west, layer=around((-179.0, 10.0), (179.0, 10.0), size=5))
    assert sum(shard.tile_rows for shard in plan.shards) == 2


@pytest.mark.parametrize("tool", ["classify_pixels", "detect_objects", "detect_change"])
def test_a_mask_that_was_cut_at_the_antimeridian_is_whole_again(tool: str) -> None:
    cut = shapely.MultiPolygon(
        [
            shapely.box(180 - 50 * CELL, -17 - 80 * CELL, 180, -17 - 20 * CELL),
            shapely.box(-180, -17 - 80 * CELL, -180 + 70 * CELL, -17 - 20 * CELL),
        ]
    )
    mask = MaskPolygons("m", DEGREES, np.array([cut], dtype=object))
    plan = planned(tool, raster(ACROSS, DEGREES), mask=mask)
    assert plan.grids[0].region == (20, 100, 60, 120)


def test_two_dates_in_other_ways_of_lying_share_the_first_ones_grid() -> None:
    before = raster(NORTH_UP)
    for number, lies in enumerate((ROTATED, SOUTH_UP, NORTH_UP @ Affine.scale(2.0))):
        plan = planned("detect_change", before, after=[raster(lies, name=f"b{number}")])
        assert plan.grids[0].grid.transform == before.transform
        xmin, ymin, xmax, ymax = plan.grids[0].output_grid.bounds
        one, two = before.bounds, raster(lies).bounds
        common = (max(one[0], two[0]), max(one[1], two[1]), min(one[2], two[2]), min(one[3], two[3]))
        assert (xmin, ymin, xmax, ymax) == pytest.approx(common, abs=0.51)
    in_degrees = raster(Affine(5e-6, 0, -111, 0, -4e-6, 44.2536), DEGREES, name="b", width=800, height=400)
    assert planned("detect_change", before, after=[in_degrees]).shards


def test_mixed_reference_systems_need_a_map() -> None:
    lon = raster(Affine(5e-6, 0, -111, 0, -4e-6, 44.2536), DEGREES, name="b")
    for tool in ("classify_pixels", "detect_objects", "classify_objects"):
        with pytest.raises(BadInputError, match=r"EPSG:32612 and .* is in EPSG:4326.*out_sr"):
            planned(tool, raster(NORTH_UP), lon)
        assert planned(tool, raster(NORTH_UP), lon, out_sr=32612).shards
