"""What changed between dates: areas on the ellipsoid, transitions, partners, tables."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.imagery import Grid, Window
from tasks.infer import series_objects
from tasks.infer.cell_areas import CellAreas
from tasks.infer.outputs_features import areas_m2
from tasks.infer.series_objects import partners
from tasks.infer.series_rasters import change_format
from tasks.infer.series_report import SeriesTables, as_csv, columns_of, matrix_of, series_markdown


def grid(epsg: int, transform: tuple[float, ...], rows: int = 40, cols: int = 60) -> Grid:
    return Grid(pyproj.CRS.from_epsg(epsg).to_wkt(), transform, rows, cols)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epsg", "transform"),
    [
        (32612, (10.0, 0.0, 300_000.0, 0.0, -10.0, 4_900_000.0)),
        (4326, (0.01, 0.0, 10.0, 0.0, -0.01, 60.0)),
        (3857, (10.0, 0.0, 1_000_000.0, 0.0, -10.0, 6_000_000.0)),
        (2263, (3.0, 0.0, 1_000_000.0, 0.0, -3.0, 200_000.0)),
        (4326, (0.01, 0.0, 179.8, 0.0, -0.01, 60.0)),  # across the antimeridian
    ],
)
def test_cells_have_the_area_of_their_geodesic_outline(epsg: int, transform: Any) -> None:
    place = grid(epsg, transform)
    made = CellAreas(place).of_rows(place.window)
    to_degrees = pyproj.Transformer.from_crs(str(place.crs_wkt), "EPSG:4326", always_xy=True)
    for row in (0, 17, 39):
        corners = ((30, row), (31, row), (31, row + 1), (30, row + 1))
        x, y = np.array([place.to_map(*corner) for corner in corners]).T
        expected = abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*to_degrees.transform(x, y))[0])
        assert made[row] == pytest.approx(expected, rel=2e-5)


def test_the_whole_world_has_its_area() -> None:
    world = grid(4326, (0.5, 0.0, -180.0, 0.0, -0.5, 90.0), 360, 720)
    in_all = CellAreas(world).of_rows(world.window).sum() * 720
    assert in_all == pytest.approx(5.10065622e14, rel=1e-8)


@pytest.mark.parametrize(
    ("values", "dtype", "nodata", "base"),
    [
        ([1, 9], "uint8", 0, 10),
        ([0, 9], "uint8", 255, 10),
        ([1, 10], "uint16", 0, 100),
        ([0, 999], "uint32", 2**32 - 1, 1000),
    ],
)
def test_codes_hold_both_classes_as_digits(values: list[int], dtype: str, nodata: int, base: int) -> None:
    form, found = change_format(values, {})
    assert (form.dtype, form.nodata, found) == (dtype, nodata, base)


def boxes(seed: int, count: int) -> Any:
    chooser = np.random.default_rng(seed)
    corner, size = chooser.integers(0, 20, (count, 2)), chooser.integers(1, 6, (count, 2))
    return shapely.box(*np.hstack([corner, corner + size]).astype(float).T)


@given(
    seed=st.integers(0, 10_000), least=st.sampled_from([0.1, 0.3, 0.9]), at_once=st.sampled_from([1, 7, 4096])
)
@settings(max_examples=40, deadline=None)
def test_partners_are_those_of_a_greedy_search_over_all_pairs(seed: int, least: float, at_once: int) -> None:
    before, after = boxes(seed, 30), boxes(seed + 1, 25)
    common = shapely.area(shapely.intersection(before[:, None], after[None]))
    iou = common / (shapely.area(before)[:, None] + shapely.area(after)[None] - common)
    expected, left = {}, iou.copy()
    while left.max() >= least:
        one, other = np.unravel_index(
            np.argmax(left), left.shape
        )  # ties: the first before, then the first after
        expected[int(other)] = int(one)
        left[one, :] = left[:, other] = -1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_objects, "_AT_ONCE", at_once)
        made = partners(before, after, least)
    assert dict(zip(made.after.tolist(), made.before.tolist(), strict=True)) == expected
    np.testing.assert_allclose(made.iou, iou[made.before, made.after])


def test_partners_of_nothing_are_none_and_broken_outlines_have_some() -> None:
    none = np.empty(0, dtype=object)
    assert len(partners(none, boxes(1, 3), 0.3).iou) == len(partners(boxes(1, 3), none, 0.3).iou) == 0
    bow_tie = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    assert len(partners(np.array([bow_tie]), np.array([shapely.box(0, 0, 4, 4)]), 0.3).iou) == 1


def tables() -> SeriesTables:
    made = SeriesTables("pixels")
    for date in ("2023", "2024"):
        for value, name in ((1, "Wald, alt"), (2, "Wie|se")):
            row = {"date": date, "Classvalue": value, "Class": name, "pixels": value, "area_m2": 2.5 * value}
            made.dates.append({**row, "share": 0.5})
    pair = {"from_date": "2023", "to_date": "2024"}
    for one, other, area in (("Wald, alt", "Wald, alt", 1.0), ("Wald, alt", "Wie|se", 4.0)):
        made.changes.append({**pair, "from_class": one, "to_class": other, "pixels": 1, "area_m2": area})
    return made


def test_tables_say_the_same_as_csv_json_and_markdown() -> None:
    made = tables()
    dates, changes = columns_of("pixels")
    rows = list(csv.DictReader(as_csv(made.dates, dates).decode().splitlines()))
    assert [(row["date"], row["Class"], float(row["area_m2"])) for row in rows] == [
        (date, name, area)
        for date in ("2023", "2024")
        for name, area in (("Wald, alt", 2.5), ("Wie|se", 5.0))
    ]
    assert as_csv([], changes).decode().startswith("from_date,to_date,from_class,to_class,pixels,area_m2")
    document = json.loads(made.to_json("woods"))
    assert document["matrices"] == [
        {
            "from": "2023",
            "to": "2024",
            "classes": ["Wald, alt", "Wie|se"],
            "area_m2": [[1.0, 4.0], [0.0, 0.0]],
        }
    ]
    assert matrix_of(made.changes, "2023", "2024")[1] == [[1.0, 4.0], [0.0, 0.0]]
    shown = series_markdown(document)
    assert "| Wald, alt | 2.5 | 2.5 |" in shown
    assert "| Wie\\|se | 0.0 | 0.0 |" in shown
    assert "From 2023 to 2024" in shown


def test_rings_areas_and_cells_agree() -> None:
    place = grid(4326, (0.001, 0.0, 10.0, 0.0, -0.001, 50.0))
    cell = shapely.box(*place.window_bounds(Window(5, 30, 1, 1)))
    by_outline = areas_m2(np.array([cell], dtype=object), str(place.crs_wkt))[0]
    assert CellAreas(place).of_rows(place.window)[5] == pytest.approx(by_outline, rel=1e-6)
