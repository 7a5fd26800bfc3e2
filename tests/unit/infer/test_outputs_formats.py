"""A layer in further formats: each opens with the same features and the class, confidence and origin."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.crs import CRS

from tasks.infer.dates import iso_time
from tasks.infer.outputs_features import Features, write_features
from tasks.infer.outputs_formats import write_formats

UTM = CRS.from_epsg(32612).to_wkt()
BOXES = np.array([shapely.box(x, 4_978_000, x + 3, 4_978_002) for x in (528_000, 528_010)], dtype=object)


def features() -> Features:
    return Features(
        geometry=BOXES,
        class_name=["Fichte", "Kiefer"],
        class_value=[1, None],
        confidence=np.array([87.5, 60.0]),
        source_raster=["s3://b/ü.tif", None],
        source_date=["2024-07-01T10:20:30", None],
        package="trees 0123456789ab",
        run="abc",
    )


def test_every_format_holds_the_features(tmp_path: Path) -> None:
    files = write_features(tmp_path, "trees", UTM, features(), ["FLATGEOBUF", "GEOJSON", "SHAPEFILE"])
    assert [path.name for path, _ in files.further] == ["trees.fgb", "trees.geojson", "trees.shp.zip"]
    for path in (files.geoparquet, files.geopackage, *(path for path, _ in files.further)):
        parquet = path.suffix == ".parquet"
        frame = geopandas.read_parquet(path) if parquet else pyogrio.read_dataframe(path)
        frame = frame.sort_values("Class").reset_index(drop=True)
        assert frame["Class"].tolist() == ["Fichte", "Kiefer"]
        assert frame["Confidence"].tolist() == [87.5, 60.0]
        assert frame["package"].tolist() == ["trees 0123456789ab"] * 2
        assert frame["run"].tolist() == ["abc"] * 2
        assert frame["area_m2"].tolist() == pytest.approx([6.0, 6.0], rel=2e-3)
        source = "source" if "source" in frame else "source_raster"
        date = "srcdate" if "srcdate" in frame else "source_date"
        assert frame[source].fillna("").tolist() == ["s3://b/ü.tif", ""]
        assert "2024-07-01" in str(frame[date][0])
        inside = frame.to_crs(UTM).geometry.to_numpy()
        assert shapely.hausdorff_distance(inside, BOXES).max() < 0.02
    assert pyogrio.read_info(tmp_path / "trees.geojson")["crs"] == "EPSG:4326"


def test_no_feature_and_any_geometry_open_in_every_format(tmp_path: Path) -> None:
    none = Features(np.empty(0, dtype=object), [], [], np.empty(0), [])
    files = write_features(tmp_path, "none", UTM, none, ["FLATGEOBUF", "GEOJSON", "SHAPEFILE"])
    for path in (files.geopackage, *(path for path, _ in files.further)):
        assert len(pyogrio.read_dataframe(path)) == 0
    point, line = (
        shapely.Point(528_000, 4_978_000),
        shapely.LineString([(528_000, 4_978_000), (528_003, 4_978_000)]),
    )
    lines = shapely.MultiLineString([line])
    for name, shapes, formats in (
        ("points", [point, None], ["FLATGEOBUF", "GEOJSON", "SHAPEFILE"]),
        ("lines", [line, lines], ["FLATGEOBUF", "GEOJSON", "SHAPEFILE"]),
        ("both", [point, lines, BOXES[0], None], ["FLATGEOBUF", "GEOJSON"]),
    ):
        frame = geopandas.GeoDataFrame({"n": range(len(shapes))}, geometry=shapes, crs=UTM)
        for path, _ in write_formats(tmp_path, name, frame, formats):  # type: ignore[arg-type]
            made = pyogrio.read_dataframe(path)
            assert made["n"].tolist() == list(range(len(shapes)))
            for one, other in zip(made.to_crs(UTM).geometry, frame.geometry, strict=True):
                assert (one is None) == (other is None)
                assert other is None or shapely.hausdorff_distance(one, other) < 0.02


def test_times_of_files_become_iso_times() -> None:
    assert iso_time("2024:07:01 10:20:30") == "2024-07-01T10:20:30"
    assert iso_time("2024-07-01T10:20:30.123Z") == "2024-07-01T10:20:30"
    assert iso_time("2024-07-01") == "2024-07-01T00:00:00"
    assert iso_time("July") is None
