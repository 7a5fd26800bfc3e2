"""Labels prepared once: the same as labels in memory, whatever is asked for, at any size."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import LabelError, NotFoundError
from tasks.imagery.windows import Window
from tasks.labels import (
    ClassSchema,
    LabelFacts,
    PixelLabels,
    PreparedLabels,
    labels_on_grid,
    open_labels,
    prepare_labels,
    read_vector_labels,
)

LabelWriter = Callable[..., str]
TRANSFORM = (0.3, 0.0, 500_000.1, 0.0, -0.3, 5_000_000.7)
PIXELS = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
ROWS, COLS = 300, 400
UTM = pyproj.CRS("EPSG:32612").to_wkt()


def _square(col: float, row: float, size: float = 10) -> shapely.Geometry:
    """A square of pixels, in map units."""
    x, y = TRANSFORM[2] + 0.3 * col, TRANSFORM[5] - 0.3 * row
    return shapely.box(x, y - 0.3 * size, x + 0.3 * size, y)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[PixelLabels, list[PreparedLabels]]:
    """Overlapping labels with broken and missing ones between: in memory; prepared, kept and not kept."""
    folder = tmp_path_factory.mktemp("crowd")
    random = np.random.default_rng(11)
    count = 400
    centres = random.uniform((-20, -20), (COLS + 20, ROWS + 20), (count, 2))
    angles = np.sort(random.uniform(0, 2 * np.pi, (count, 8)), axis=1)
    radii = random.uniform(0.1, 30, (count, 8))
    rings = centres[:, None] + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)
    rings[::50] = rings[::50][:, [0, 3, 1, 2, 4, 5, 6, 7]]
    shapes = np.asarray(shapely.polygons(rings * (0.3, -0.3) + (TRANSFORM[2], TRANSFORM[5])), dtype=object)
    shapes[7] = None
    shapes[8] = shapely.Polygon()
    path = folder / "labels.parquet"
    values = random.integers(1, 5, count)
    geopandas.GeoDataFrame({"value": values}, geometry=shapes, crs="EPSG:32612").to_parquet(path)
    facts = prepare_labels(str(path), folder / "labels.fgb", target_crs_wkt=UTM)
    small = open_labels(folder / "labels.fgb", facts)
    large = open_labels(folder / "labels.fgb", facts.model_copy(update={"features": 10**6}))
    return labels_on_grid(read_vector_labels(str(path)), TRANSFORM), [small, large]


@settings(max_examples=60, deadline=None)
@given(
    row=st.integers(-60, ROWS + 20),
    col=st.integers(-60, COLS + 20),
    rows=st.integers(1, 200),
    cols=st.integers(1, 300),
)
def test_what_is_near_is_what_touches_the_window(
    crowd: tuple[PixelLabels, list[PreparedLabels]], row: int, col: int, rows: int, cols: int
) -> None:
    whole, prepared = crowd
    window = Window(row, col, rows, cols)
    frame = shapely.box(col, row, col + cols, row + rows)
    touching = np.flatnonzero(shapely.intersects(whole.geometries, frame))
    for labels in prepared:
        near = labels.near(TRANSFORM, window)
        assert near.values.tolist() == whole.values[touching].tolist()
        assert shapely.equals_identical(near.geometries, whole.geometries[touching]).all()
        assert (np.diff(near.numbers) > 0).all()
        np.testing.assert_array_equal(near.burn(row, col, rows, cols), whole.burn(row, col, rows, cols))


def test_records_keep_their_numbers_and_the_later_lies_on_top(
    write_labels: LabelWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.labels.sources._BATCH", 32)
    # Far apart and then all in one place, so that the spatial index has an order of its own.
    squares = [_square(1000 * (index % 7), 500 * (index % 5)) for index in range(200)]
    squares += [_square(50, 50) for _ in range(50)]
    values = [1 + index % 200 for index in range(250)]
    uri = write_labels(squares, value=values)
    facts = prepare_labels(uri, tmp_path / "a.fgb")
    for features in (facts.features, 10**6):
        labels = open_labels(tmp_path / "a.fgb", facts.model_copy(update={"features": features}))
        near = labels.near(TRANSFORM, Window(45, 45, 20, 20))
        assert near.numbers.tolist() == list(range(200, 250))
        assert near.values.tolist() == values[200:]
        assert near.burn(50, 50, 1, 1).tolist() == [[values[-1]]]
        assert near.dtype == np.dtype("uint8")
    assert facts.bounds == pytest.approx(shapely.total_bounds(np.array(squares)).tolist())
    assert facts.bytes == (tmp_path / "a.fgb").stat().st_size


def test_the_type_of_a_mask_does_not_depend_on_what_is_near(
    write_labels: LabelWriter, tmp_path: Path
) -> None:
    facts = prepare_labels(write_labels([_square(0, 0), _square(900, 0)], value=[1, 300]), tmp_path / "a.fgb")
    near = open_labels(tmp_path / "a.fgb", facts).near(TRANSFORM, Window(0, 0, 20, 20))
    assert near.burn(0, 0, 20, 20).dtype == np.dtype("uint16")
    nothing = open_labels(tmp_path / "a.fgb", facts).near(TRANSFORM, Window(5000, 5000, 9, 9))
    assert len(nothing) == 0
    assert not nothing.burn(5000, 5000, 9, 9).any()


def test_facts_are_json_and_count_what_happened(write_labels: LabelWriter, tmp_path: Path) -> None:
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    with np.errstate(invalid="ignore"):
        nan = shapely.Polygon([(0, 0), (5, 0), (5, float("nan")), (0, 0)])
    collection = shapely.GeometryCollection(
        [shapely.Point(0, 0), _square(0, 0), shapely.LineString([(0, 0), (1, 1)])]
    )
    nested = shapely.GeometryCollection([collection, _square(100, 100)])
    high = shapely.force_3d(_square(5, 5), 7.0)
    sliver = shapely.Polygon([(0, 0), (5, 0), (9, 0), (0, 0)])
    shapes = [_square(0, 0), bow_tie, nan, None, collection, nested, high, sliver, shapely.Point(0, 0)]
    uri = write_labels(
        shapes, "labels.parquet", Classvalue=[1, 2, 2, 3, 1, 1, 1, 4, 1], Classname=[*"ABBCAAADA"]
    )
    facts = prepare_labels(uri, tmp_path / "a.fgb")
    assert LabelFacts.model_validate_json(facts.model_dump_json()) == facts
    assert (facts.features, facts.repaired, facts.empty, facts.unprojectable) == (5, 2, 4, 0)
    assert facts.class_value_field == "Classvalue"
    assert facts.source_crs == "EPSG:32612"
    assert ClassSchema.from_records(facts.classes).names == ("A", "B", "D")
    labels = open_labels(tmp_path / "a.fgb", facts)
    assert labels.schema.names == ("A", "B", "D")
    near = labels.near(TRANSFORM, Window(-10, -10, 200, 200))
    assert near.numbers.tolist() == [0, 4, 5, 6]
    assert shapely.area(near.geometries) == pytest.approx([100, 100, 200, 100], rel=1e-3)
    assert not shapely.has_z(near.geometries).any()
    assert not shapely.has_z(read_vector_labels(uri).geometries).any()


def test_holes_and_several_parts_survive(write_labels: LabelWriter, tmp_path: Path) -> None:
    ring = shapely.difference(_square(0, 0, 30), _square(10, 10, 10))
    facts = prepare_labels(write_labels([shapely.union(ring, _square(50, 0))], value=[2]), tmp_path / "a.fgb")
    burnt = open_labels(tmp_path / "a.fgb", facts).near(TRANSFORM, Window(0, 0, 30, 60)).burn(0, 0, 30, 60)
    assert (burnt[10:20, 10:20] == 0).all()
    assert int((burnt == 2).sum()) == 900 - 100 + 100


def test_labels_in_degrees_are_reprojected_and_those_without_a_place_counted(
    write_labels: LabelWriter, tmp_path: Path
) -> None:
    degrees = geopandas.GeoSeries([_square(20, 30)], crs="EPSG:32612").to_crs("EPSG:4326")[0]
    pole = shapely.box(70, 91, 80, 95)
    facts = prepare_labels(
        write_labels([degrees, pole], "a.parquet", "EPSG:4326"), tmp_path / "a.fgb", target_crs_wkt=UTM
    )
    assert (facts.features, facts.unprojectable) == (1, 1)
    box = shapely.bounds(
        open_labels(tmp_path / "a.fgb", facts).near(TRANSFORM, Window(0, 0, 99, 99)).geometries
    )
    assert np.abs(box[0] - (20, 30, 30, 40)).max() < 0.01


def test_pixel_space_takes_labels_through_the_images_own_map(
    write_labels: LabelWriter, tmp_path: Path
) -> None:
    def to_image(
        xs: np.ndarray[tuple[int], np.dtype[np.float64]], ys: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
        # Turned by a quarter, twice as fine, and blind for what lies far in the east.
        cols = np.where(xs > 600_000, np.nan, (5_000_000 - ys) * 2)
        return cols, (xs - 500_000) * 2

    east = shapely.box(700_000, 4_999_990, 700_010, 5_000_000)
    near_by = shapely.box(500_010, 4_999_980, 500_015, 4_999_990)
    uri = write_labels([near_by, east], value=[1, 2])
    facts = prepare_labels(uri, tmp_path / "a.fgb", target_crs_wkt=UTM, to_image=to_image)
    assert facts.unprojectable == 1
    near = open_labels(tmp_path / "a.fgb", facts).near(PIXELS, Window(0, 0, 100, 100))
    assert shapely.bounds(near.geometries).tolist() == [[20, 20, 40, 30]]
    assert near.burn(20, 20, 10, 20).all()


def test_a_given_schema_names_the_classes(write_labels: LabelWriter, tmp_path: Path) -> None:
    schema = ClassSchema.from_values({1: "Tree", 5: "House", 7: "Road"}, {5: (9, 9, 9)})
    uri = write_labels([_square(0, 0), _square(20, 0)], value=[5, 1], classname=["Hut", "Bush"])
    facts = prepare_labels(uri, tmp_path / "a.fgb", schema=schema)
    assert ClassSchema.from_records(facts.classes) == schema


@pytest.mark.parametrize(
    ("fields", "wanted", "used", "values"),
    [
        ({"kind": ["House", "Tree"]}, "kind", "kind", [5, 1]),
        ({"kind": ["5", " Tree "]}, "kind", "kind", [5, 1]),
        ({"ClassName": ["House", "Tree"]}, None, "ClassName", [5, 1]),
        ({"ClassName": ["House", "Tree"], "value": [1, 5]}, None, "value", [1, 5]),
        ({"height": [3, 4]}, None, None, [1, 1]),
    ],
)
def test_with_a_schema_names_are_class_values(
    write_labels: LabelWriter,
    tmp_path: Path,
    fields: dict[str, list[object]],
    wanted: str | None,
    used: str | None,
    values: list[int],
) -> None:
    schema = ClassSchema.from_values({1: "Tree", 5: "House"})
    uri = write_labels([_square(0, 0), _square(20, 0)], **fields)
    facts = prepare_labels(uri, tmp_path / "a.fgb", classvalue_field=wanted, schema=schema)
    assert facts.class_value_field == used
    near = open_labels(tmp_path / "a.fgb", facts).near(TRANSFORM, Window(0, 0, 50, 50))
    assert near.values.tolist() == values


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": [1, 9, 8]}, r"does not name: 8, 9 \(it names 1 Tree, 5 House\)\. .*the field 'value'"),
        ({"classname": ["Tree", "Barn", "Hut"]}, r"does not name: Barn, Hut .*the field 'classname'"),
        ({"classname": ["Tree", None, "House"]}, "1 records without a positive whole number"),
        ({"value": [1, 0, 9]}, r"1 records without .*record 2, 0\)"),
    ],
)
def test_classes_that_the_schema_lacks_are_named(
    write_labels: LabelWriter, tmp_path: Path, fields: dict[str, list[object]], message: str
) -> None:
    uri = write_labels([_square(0, 0), _square(20, 0), _square(40, 0)], **fields)
    with pytest.raises(LabelError, match=message):
        prepare_labels(uri, tmp_path / "a.fgb", schema=ClassSchema.from_values({1: "Tree", 5: "House"}))
    assert not (tmp_path / "a.fgb").exists()


@pytest.mark.parametrize(
    ("shapes", "fields", "message"),
    [
        ([], {"value": []}, "no features"),
        ([_square(0, 0)] * 3, {"value": [1, 2.5, None]}, r"2 records without .*record 2, 2\.5\)"),
        ([_square(0, 0)] * 3, {"value": [1, 1, 2], "classname": [*"abc"]}, "several names: a, b"),
        ([_square(0, 0)] * 2, {"value": [1, 2], "classname": [*"aa"]}, "'a' belongs to the values 1 and 2"),
        ([shapely.Point(0, 0)] * 3, {"value": [1, 1, 1]}, "points or lines.*buffer_radius"),
        ([shapely.Polygon(), None], {"value": [1, 1]}, r"None of the 2 features .*2 empty"),
    ],
)
@pytest.mark.parametrize("batch", [2, 4096])
def test_what_cannot_be_used_is_refused_alike_in_memory_and_in_a_stream(
    write_labels: LabelWriter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    shapes: list[shapely.Geometry],
    fields: dict[str, list[object]],
    message: str,
) -> None:
    monkeypatch.setattr("tasks.labels.sources._BATCH", batch)
    uri = write_labels(shapes, "labels.parquet", **fields)
    with pytest.raises(LabelError, match=message) as streamed:
        prepare_labels(uri, tmp_path / "a.fgb")
    with pytest.raises(LabelError) as read:
        read_vector_labels(uri)
    assert str(streamed.value) == str(read.value)
    assert not (tmp_path / "a.fgb").exists()


def test_a_colour_field_may_be_one_text(write_labels: LabelWriter, tmp_path: Path) -> None:
    uri = write_labels([_square(0, 0)] * 4, value=[1, 2, 1, 3], Color=[None, "#0a0B0c", "#FF0000ff", "blue"])
    facts = prepare_labels(uri, tmp_path / "a.fgb")
    assert [record["Color"] for record in facts.classes][1] == [10, 11, 12]
    assert facts.classes[0]["Color"] != facts.classes[2]["Color"]


def test_points_and_lines_with_a_radius(write_labels: LabelWriter, tmp_path: Path) -> None:
    shapes = [
        shapely.Point(500_000, 5_000_000),
        shapely.LineString([(500_000, 5_000_000), (500_010, 5_000_000)]),
    ]
    uri = write_labels(shapes, "a.parquet", value=[1, 2])
    facts = prepare_labels(uri, tmp_path / "a.fgb", buffer_radius=3.0)
    near = open_labels(tmp_path / "a.fgb", facts).near(TRANSFORM, Window(-50, -50, 200, 200))
    areas = shapely.area(near.geometries) * 0.09
    assert areas == pytest.approx([9 * np.pi, 9 * np.pi + 60], rel=0.02)
    degrees = write_labels([shapely.Point(1, 1)], "b.gpkg", "EPSG:4326")
    with pytest.raises(LabelError, match="in degrees"):
        prepare_labels(degrees, tmp_path / "b.fgb", buffer_radius=3.0)


def test_threads_may_ask_at_once(crowd: tuple[PixelLabels, list[PreparedLabels]]) -> None:
    windows = [Window(row, col, 64, 64) for row in range(0, ROWS, 40) for col in range(0, COLS, 40)]
    for labels in crowd[1]:
        fresh = open_labels(labels.path, labels.facts)
        with ThreadPoolExecutor(4) as pool:
            near = pool.map(fresh.near, [TRANSFORM] * len(windows), windows)
            found = [item.numbers.tolist() for item in near]
        assert found == [labels.near(TRANSFORM, window).numbers.tolist() for window in windows]


def test_a_prepared_file_that_is_gone_or_something_else_is_refused(
    write_labels: LabelWriter, tmp_path: Path
) -> None:
    facts = prepare_labels(write_labels([_square(0, 0)], value=[1]), tmp_path / "a.fgb")
    with pytest.raises(NotFoundError, match="no prepared labels"):
        open_labels(tmp_path / "b.fgb", facts)
    other = write_labels([_square(0, 0)], "c.fgb", height=[1])
    with pytest.raises(LabelError, match="no prepared labels"):
        open_labels(Path(other), facts).near(TRANSFORM, Window(0, 0, 9, 9))
