"""Reading vector labels: fields, CRS, broken geometries, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import geopandas
import numpy as np
import pyproj
import pytest
import shapely

from tasks.errors import LabelError, NotFoundError
from tasks.labels import read_vector_labels

LabelWriter = Callable[..., str]

SQUARE = shapely.box(500_000, 5_000_000, 500_010, 5_000_010)
OTHER = shapely.box(500_020, 5_000_000, 500_030, 5_000_010)


@pytest.mark.parametrize(
    ("fields", "wanted", "expected", "used"),
    [
        ({"ClassValue": [3, 4]}, None, [3, 4], "ClassValue"),
        ({"VALUE": [5, 6], "classvalue": [3, 4]}, None, [5, 6], "VALUE"),
        ({"kind": [8, 9]}, None, [1, 1], None),
        ({"kind": [8, 9], "classvalue": [3, 4]}, "kind", [8, 9], "kind"),
        ({"Kind": [8, 9]}, "kind", [8, 9], "Kind"),
        ({"classvalue": ["3", "4"]}, None, [3, 4], "classvalue"),
    ],
)
def test_the_class_value_field_is_searched_as_arcgis_does(
    write_labels: LabelWriter,
    fields: dict[str, list[object]],
    wanted: str | None,
    expected: list[int],
    used: str | None,
) -> None:
    labels = read_vector_labels(write_labels([SQUARE, OTHER], **fields), wanted)
    assert labels.values.tolist() == expected
    assert labels.class_value_field == used


def test_names_and_colours_come_from_the_training_sample_fields(write_labels: LabelWriter) -> None:
    uri = write_labels(
        [SQUARE, OTHER], Classname=["Palm", None], Classvalue=[1, 2], RED=[9, 1], GREEN=[8, 2], BLUE=[7, 3]
    )
    schema = read_vector_labels(uri).schema
    assert schema.names == ("Palm", "2")
    assert [item.color for item in schema] == [(9, 8, 7), (1, 2, 3)]


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp", "a.fgb", "a.parquet"])
def test_the_formats(write_labels: LabelWriter, name: str) -> None:
    # GeoJSON is in degrees by its own definition.
    crs = "EPSG:4326" if name.endswith("json") else "EPSG:32612"
    labels = read_vector_labels(write_labels([shapely.box(1, 2, 3, 4)], name, crs, classvalue=[2]))
    assert shapely.equals(labels.geometries[0], shapely.box(1, 2, 3, 4))
    assert labels.values.tolist() == [2]


def test_labels_in_another_crs_are_reprojected(write_labels: LabelWriter) -> None:
    degrees = geopandas.GeoSeries([SQUARE], crs="EPSG:32612").to_crs("EPSG:4326")[0]
    labels = read_vector_labels(
        write_labels([degrees], crs="EPSG:4326"), target_crs_wkt=pyproj.CRS("EPSG:32612").to_wkt()
    )
    assert np.abs(np.array(labels.bounds) - SQUARE.bounds).max() < 1e-3
    assert labels.source_crs == "EPSG:4326"


def test_broken_rings_are_repaired_and_empty_geometries_left_out_and_counted(
    write_labels: LabelWriter,
) -> None:
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    line_only = shapely.Polygon([(0, 0), (5, 0), (9, 0), (0, 0)])
    labels = read_vector_labels(
        write_labels(
            [SQUARE, bow_tie, None, shapely.Polygon(), line_only],
            name="labels.parquet",
            value=[1, 2, 3, 3, 4],
        )
    )
    assert len(labels) == 2
    assert labels.values.tolist() == [1, 2]
    assert labels.repaired == 2
    assert labels.empty == 3
    assert shapely.is_valid(labels.geometries).all()
    assert shapely.area(labels.geometries[1]) == pytest.approx(50)


def test_query_finds_what_touches_a_rectangle(write_labels: LabelWriter) -> None:
    labels = read_vector_labels(write_labels([OTHER, SQUARE, OTHER]))
    assert labels.query((500_019, 5_000_001, 500_021, 5_000_002)).tolist() == [0, 2]
    assert labels.query((0, 0, 1, 1)).tolist() == []


def test_a_buffer_turns_points_into_circles(write_labels: LabelWriter) -> None:
    uri = write_labels([shapely.Point(500_000, 5_000_000)])
    labels = read_vector_labels(uri, buffer_radius=3.0)
    assert shapely.area(labels.geometries[0]) == pytest.approx(9 * np.pi, rel=0.02)
    with pytest.raises(LabelError, match="buffer_radius"):
        read_vector_labels(uri)


def test_a_layer_is_picked_by_name(write_labels: LabelWriter) -> None:
    uri = write_labels([SQUARE], "two.gpkg", layer="first", value=[1])
    write_labels([OTHER, OTHER], "two.gpkg", layer="second", value=[2, 2])
    assert len(read_vector_labels(f"{uri}|layername=second")) == 2
    with pytest.raises(LabelError, match=r"several layers: first, second.*layername=first"):
        read_vector_labels(uri)
    with pytest.raises(LabelError, match="no layer 'third'"):
        read_vector_labels(f"{uri}|layername=third")


def test_an_unknown_field_names_the_fields_that_exist(write_labels: LabelWriter) -> None:
    with pytest.raises(LabelError, match=r"no field 'species'\. Set classvalue_field to .*: kind, height"):
        read_vector_labels(write_labels([SQUARE], kind=[1], height=[2.5]), "species")


def test_labels_without_crs_are_refused(write_labels: LabelWriter) -> None:
    with pytest.raises(LabelError, match="no coordinate reference system"):
        read_vector_labels(write_labels([SQUARE], "labels.shp", crs=None, value=[1]))


def test_no_features_are_refused(write_labels: LabelWriter) -> None:
    with pytest.raises(LabelError, match="no features"):
        read_vector_labels(write_labels([], value=[]))


@pytest.mark.parametrize("values", [[1, 0], [1, -2], [1, 2.5], [1, None], ["tree", "1"]])
def test_class_values_that_are_no_positive_whole_numbers_are_refused(
    write_labels: LabelWriter, values: list[object]
) -> None:
    with pytest.raises(LabelError, match="1 records without a positive whole number"):
        read_vector_labels(write_labels([SQUARE, OTHER], value=values))


def test_a_value_with_two_names_is_refused(write_labels: LabelWriter) -> None:
    with pytest.raises(LabelError, match="several names: Bush, Tree"):
        read_vector_labels(write_labels([SQUARE, OTHER], value=[1, 1], classname=["Tree", "Bush"]))


def test_what_is_no_vector_file_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("other") / "labels.gpkg"
    path.write_bytes(b"no geopackage")
    with pytest.raises(LabelError, match="cannot be read"):
        read_vector_labels(str(path))
    with pytest.raises(NotFoundError):
        read_vector_labels(str(path.with_name("missing.gpkg")))
