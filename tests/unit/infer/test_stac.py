import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pyproj
import pystac
import pytest
import shapely
from pystac.validation.local_validator import LocalValidator

from tasks.imagery import Grid
from tasks.infer.stac import COG_TYPE, GEOPARQUET_TYPE, Lineage, ResultAsset, footprint, stac_item
from tasks.labels import LabelClass

UTM = pyproj.CRS.from_epsg(32612).to_wkt()
GRID = Grid(UTM, (0.1, 0, 528000.0, 0, -0.1, 4979000.0), 2472, 2299)
MADE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))


def item(crs_wkt: str | None = UTM, **how: Any) -> dict[str, Any]:
    return stac_item(
        "trees-1",
        crs_wkt=crs_wkt,
        footprints=[GRID.bounds],
        created=MADE,
        assets={
            "classes": ResultAsset(
                "classes.tif", COG_TYPE, "Classes", grid=GRID, dtype="uint8", nodata=0,
                classes=(LabelClass(1, "Bäume (Laub)", (230, 57, 70)),),
            ),
            "trees": ResultAsset("trees.parquet", GEOPARQUET_TYPE, "Trees"),
        },
        lineage=Lineage(
            ["s3://b/a.tif", "s3://b/b.tif"], "s3://b/p.dlpk", "ab" * 32,
            software={"chipline": "0.1.0"}, parameters={"padding": 16},
        ),
        title="Trees",
        **how,
    )  # fmt: skip


@pytest.mark.parametrize("edge", [180.0, 180.015])
def test_the_whole_world_is_not_a_strip_at_the_antimeridian(edge: float) -> None:
    degrees = pyproj.CRS.from_epsg(4326).to_wkt()
    geometry, box = footprint(degrees, [(-edge, -90.0, edge, 90.0)])
    assert geometry is not None
    assert box == [-180, -90, 180, 90]
    assert shapely.geometry.shape(geometry).area == pytest.approx(360 * 180)


def test_it_is_a_valid_item_with_lineage() -> None:
    found = json.loads(json.dumps(item(), allow_nan=False))
    assert found == item()
    LocalValidator().item_validator("1.1.0").validate(found)
    read = pystac.Item.from_dict(found)
    assert read.datetime == datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)
    assert [link.target for link in read.get_links("derived_from")] == [
        "s3://b/a.tif",
        "s3://b/b.tif",
        "s3://b/p.dlpk",
    ]
    assert read.properties["proj:code"] == "EPSG:32612"
    assert read.properties["chipline:package_digest"] == "ab" * 32
    assert read.properties["processing:software"] == {"chipline": "0.1.0"}
    classes = found["assets"]["classes"]
    assert classes["proj:shape"] == [2472, 2299]
    assert classes["proj:transform"][:6] == [0.1, 0, 528000.0, 0, -0.1, 4979000.0]
    assert classes["classification:classes"] == [
        {"value": 1, "name": "B_ume__Laub_", "title": "Bäume (Laub)", "color_hint": "E63946"}
    ]
    assert "proj:shape" not in found["assets"]["trees"]


def test_the_imagerys_date_goes_before_the_runs() -> None:
    day, later = datetime(2019, 7, 1, tzinfo=UTC), datetime(2020, 7, 1, tzinfo=UTC)
    found = item(acquired=(day, day))
    assert found["properties"]["datetime"].startswith("2019-07-01")
    assert "start_datetime" not in found["properties"]
    several = item(acquired=(day, later))
    LocalValidator().item_validator("1.1.0").validate(several)
    assert several["properties"]["datetime"] is None
    assert several["properties"]["start_datetime"].startswith("2019-07-01")
    assert several["properties"]["end_datetime"].startswith("2020-07-01")
    assert found["properties"]["created"].startswith("2026-01-02T01:04:05")


def test_the_footprint_is_where_the_corners_are() -> None:
    geometry, bbox = footprint(UTM, [GRID.bounds])
    project = pyproj.Transformer.from_crs(32612, 4326, always_xy=True)
    xmin, ymin, xmax, ymax = GRID.bounds
    assert geometry is not None
    ring = shapely.Polygon(geometry["coordinates"][0])
    for x, y in ((xmin, ymin), (xmin, ymax), (xmax, ymin), (xmax, ymax)):
        assert ring.boundary.distance(shapely.Point(project.transform(x, y))) < 1e-6
    assert bbox == pytest.approx(ring.bounds, abs=1e-6)
    assert ring.exterior.is_ccw


def test_several_footprints_are_joined() -> None:
    geometry, _ = footprint(UTM, [(528000, 4978000, 528010, 4978010), (529000, 4978000, 529010, 4978010)])
    assert geometry is not None
    assert geometry["type"] == "MultiPolygon"


def test_across_the_antimeridian() -> None:
    crs = pyproj.CRS.from_epsg(32601)  # its zone begins at 180°
    x, y = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(-180, 60)
    geometry, bbox = footprint(crs.to_wkt(), [(x - 10_000, y, x + 10_000, y + 1000)])
    assert geometry is not None
    assert bbox is not None
    assert geometry["type"] == "MultiPolygon"
    area = shapely.geometry.shape(geometry)
    assert area.bounds[0] >= -180
    assert area.bounds[2] <= 180
    assert area.area < 1
    assert bbox[0] > 179
    assert bbox[2] < -179


def test_pixel_space_has_no_place() -> None:
    found = item(crs_wkt=None)
    assert found["geometry"] is None
    assert "bbox" not in found
    assert "proj:code" not in found["properties"]


def test_nan_as_nodata_is_json() -> None:
    asset = ResultAsset("a.tif", COG_TYPE, "A", dtype="float32", nodata=math.nan)
    found = stac_item(
        "x", crs_wkt=UTM, footprints=[GRID.bounds], created=MADE, assets={"a": asset},
        lineage=Lineage([], "s3://b/p.dlpk", "ab"), title="X",
    )  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False))["assets"]["a"]["nodata"] == "nan"
