from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from rasterio.crs import CRS

from tasks.infer.outputs_features import Features, FieldType, areas_m2, write_features

UTM = CRS.from_epsg(32612).to_wkt()
BOX = shapely.box(528000, 4978000, 528003, 4978002)
TWO = shapely.MultiPolygon(
    [shapely.box(528010, 4978010, 528011, 4978011), shapely.box(528020, 4978000, 528021, 4978001)]
)


def some(order: list[int], *, extra: bool = False) -> Features:
    geometry = [
        BOX,
        shapely.Polygon(BOX.exterior.coords[::-1]).buffer(1),
        shapely.box(528001, 4978000, 528003, 4978002),
    ]
    types: dict[str, FieldType] = {"Count": "integer", "Note": "text", "Height": "real", "class": "text"}
    columns: dict[str, list[Any]] = {
        "Count": [1, None, 3],
        "Note": ["ä", None, "c"],
        "Height": [1.5, None, 2.5],
        "class": ["x", "y", "z"],  # the layer's own field goes before
    }
    return Features(
        np.array(geometry, dtype=object)[order],
        [["Fichte", "Kiefer", "Fichte"][i] for i in order],
        [[1, 2, None][i] for i in order],
        np.array([87.5, 0.25, 60.0])[order],
        [["s3://b/ü.tif", None, "s3://b/x.tif"][i] for i in order],
        {name: [values[i] for i in order] for name, values in columns.items()} if extra else {},
        types if extra else {},
    )


def none(**how: Any) -> Features:
    return Features(np.empty(0, dtype=object), [], [], np.empty(0), [], **how)


@pytest.mark.parametrize(
    "read",
    [
        lambda files: geopandas.read_parquet(files.geoparquet),
        lambda files: pyogrio.read_dataframe(files.geopackage),
    ],
)
def test_both_files_hold_every_value(tmp_path: Path, read: Any) -> None:
    files = write_features(tmp_path, "trees", UTM, some([0, 1, 2], extra=True))
    frame = read(files)
    assert frame.crs.to_epsg() == 32612
    assert list(frame["Class"]) == ["Kiefer", "Fichte", "Fichte"]  # north first, then west
    assert frame["Confidence"].tolist() == [0.25, 87.5, 60.0]
    assert frame["Classvalue"].fillna(-1).tolist() == [2, 1, -1]
    assert frame["source_raster"].fillna("").tolist() == ["", "s3://b/ü.tif", "s3://b/x.tif"]
    assert frame["Count"].fillna(-1).tolist() == [-1, 1, 3]
    assert frame["Note"].fillna("").tolist() == ["", "ä", "c"]
    assert frame["Height"].fillna(-1).tolist() == [-1, 1.5, 2.5]
    assert "class" not in frame.columns
    assert frame["area_m2"].tolist() == pytest.approx(frame.area.tolist(), rel=1e-3)
    assert frame.geometry.iloc[1].equals(BOX)
    assert files.counts == {"Fichte": 2, "Kiefer": 1}
    assert files.bounds == pytest.approx(tuple(frame.total_bounds))


def test_the_order_of_the_input_does_not_matter(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    first = write_features(tmp_path / "a", "x", UTM, some([0, 1, 2], extra=True))
    second = write_features(tmp_path / "b", "x", UTM, some([2, 0, 1], extra=True))
    assert first.geoparquet.read_bytes() == second.geoparquet.read_bytes()
    assert first.geopackage.read_bytes() == second.geopackage.read_bytes()


def schema(files: Any) -> tuple[Any, Any]:
    parquet = geopandas.read_parquet(files.geoparquet)
    package = pyogrio.read_info(files.geopackage)
    types = [str(kind) for kind in pyogrio.raw.read(files.geopackage)[0]["dtypes"]]
    assert parquet.crs.to_epsg() == 32612
    return (
        {name: str(kind) for name, kind in parquet.dtypes.items()},
        (package["fields"].tolist(), types, package["ogr_types"], package["crs"], package["geometry_type"]),
    )


def test_no_feature_has_the_same_schema(tmp_path: Path) -> None:
    filled = write_features(tmp_path, "filled", UTM, some([0, 1, 2], extra=True))
    types = some([0], extra=True).extra_types
    empty = write_features(
        tmp_path, "empty", UTM, none(extra={name: [] for name in types}, extra_types=types)
    )
    assert schema(empty) == schema(filled)
    assert (empty.count, empty.counts, empty.bounds) == (0, {}, None)
    assert empty.fields == filled.fields
    assert pyogrio.read_info(empty.geopackage)["features"] == 0


def test_parts_are_kept_together(tmp_path: Path) -> None:
    features = Features(np.array([BOX, TWO], dtype=object), ["a", "a"], [1, 1], np.ones(2), ["x", "x"])
    files = write_features(tmp_path, "x", UTM, features)
    assert pyogrio.read_info(files.geopackage)["geometry_type"] == "MultiPolygon"
    frame = pyogrio.read_dataframe(files.geopackage)
    assert sorted(frame.area.round(6)) == [2, 6]


def test_pixel_space_has_no_crs_and_no_area(tmp_path: Path) -> None:
    features = Features(np.array([shapely.box(0, -5, 2, -1)], dtype=object), ["a"], [1], np.ones(1), ["x"])
    files = write_features(tmp_path, "x", None, features)
    for frame in (geopandas.read_parquet(files.geoparquet), pyogrio.read_dataframe(files.geopackage)):
        assert frame.crs is None or not frame.crs.is_projected
        assert frame["area_m2"].isna().all()


@pytest.mark.parametrize("epsg", [32612, 4326, 3857, 2263])  # metres, degrees, web, US feet
def test_areas_are_those_on_the_ellipsoid(epsg: int) -> None:
    crs = pyproj.CRS.from_epsg(epsg)
    longitude, latitude = (-73.9, 40.7) if epsg == 2263 else (-110.64, 44.96)
    corners = [(longitude, latitude), (longitude + 1e-3, latitude), (longitude + 1e-3, latitude + 1e-3)]
    project = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    polygon = shapely.Polygon([project.transform(*corner) for corner in corners])
    expected = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.Polygon(corners))[0])
    assert areas_m2(np.array([polygon], dtype=object), crs.to_wkt())[0] == pytest.approx(expected, rel=1e-4)
