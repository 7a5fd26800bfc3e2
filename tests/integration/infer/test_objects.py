"""Object classification from parameters to the published layer, through the real host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet
import pyogrio
import pytest
import rasterio
import shapely

from tasks.errors import ChiplineError
from tasks.infer import task
from tasks.infer.finish import finish
from tasks.infer.parameters import ClassifyObjectsParameters
from tasks.infer.part import compute_part
from tasks.infer.prepare import prepare
from tasks.package.publish import publish_package
from tasks.store import join

CELL, WEST, NORTH = 0.5, 500_000.0, 4_900_000.0


def at(col: float, row: float) -> tuple[float, float]:
    """Map position of a pixel position."""
    return WEST + CELL * col, NORTH - CELL * row


def box(col: float, row: float, width: float, height: float) -> shapely.Polygon:
    west, north = at(col, row)
    return shapely.box(west, north - CELL * height, west + CELL * width, north)


@pytest.fixture
def run(store: Any, objects: Any, tmp_path: Path) -> Any:
    """``run(rasters, features=None, arguments={}, **more)``: the layer, its details, the plan."""
    uri = publish_package(store, tmp_path / "objects.dlpk", made_by="test")

    def run_tool(
        rasters: list[str], features: Any = None, arguments: dict[str, Any] | None = None, **more: Any
    ) -> Any:
        parameters = ClassifyObjectsParameters.model_validate(
            {
                "input_raster": rasters,
                "in_features": None if features is None else str(features),
                "model": uri,
                "out_feature_class": "labelled",
                "model_arguments": [{"name": k, "value": str(v)} for k, v in (arguments or {}).items()],
                **more,
            }
        )
        plan = prepare(parameters, store)
        for part in range(len(plan.parts)):
            compute_part(store, plan, part, package=objects)
        details = finish(store, plan, {}).manifest.details
        path = join(plan.folder, details["outputs"][0]["path"])
        has_geometry = b"geo" in (pyarrow.parquet.read_schema(path).metadata or {})
        read = geopandas.read_parquet if has_geometry else pd.read_parquet
        return read(path), details, plan

    return run_tool


@pytest.fixture
def scene(texture: Any, write_scene: Any) -> str:
    return str(write_scene("scene", texture[:1]))


def many(count: int) -> geopandas.GeoDataFrame:
    """Polygons, lines and points over the scene of 260 x 300 pixels."""
    chooser = np.random.default_rng(4)
    shapes: list[shapely.Geometry] = []
    for number in range(count):
        col, row = chooser.uniform(5, 240), chooser.uniform(5, 280)
        if number % 3 == 0:
            shapes.append(box(col, row, *chooser.uniform(2, 15, 2)))
        elif number % 3 == 1:
            shapes.append(shapely.LineString([at(col, row), at(col + 7, row + 3)]))
        else:
            shapes.append(shapely.Point(at(col, row)))
    return geopandas.GeoDataFrame({"Größe": range(count)}, geometry=shapes, crs="EPSG:32612")


def expected_mean(array: Any, geometry: shapely.Geometry, size: int) -> float:
    """Mean of the fixed crop around the middle of the envelope; what lies outside does not count."""
    xmin, ymin, xmax, ymax = shapely.bounds(geometry).tolist()
    col = ((xmin + xmax) / 2 - WEST) / CELL - size / 2
    row = (NORTH - (ymin + ymax) / 2) / CELL - size / 2
    col, row = int(np.floor(col + 0.5)), int(np.floor(row + 0.5))
    part = array[max(row, 0) : max(row + size, 0), max(col, 0) : max(col + size, 0)]
    return float(part.mean())


def test_labels_equal_the_function_on_each_crop_however_the_work_is_cut(
    run: Any, texture: Any, write_scene: Any, scene: str, tmp_path: Path
) -> None:
    features = many(61)  # the last batch is short
    features.to_file(tmp_path / "gebäude.gpkg")
    made, details, plan = run([scene], tmp_path / "gebäude.gpkg", shard_size=64, shards_per_part=3)
    assert (len(plan.shards), len(plan.parts)) == (8, 3)
    means = [expected_mean(texture[0], shape, 24) for shape in features.geometry]
    np.testing.assert_allclose(made["Confidence"], means, rtol=1e-12)
    assert made["ClassLabel"].tolist() == ["Bright" if mean > 128 else "Dark" for mean in means]
    assert made["Größe"].tolist() == list(range(61))
    assert (made.geometry.geom_equals(features.geometry)).all()
    assert set(made["source_raster"]) == {scene}
    counts = details["outputs"][0]
    assert counts["objects"] == sum(counts["objects_per_class"].values()) == 61

    # Other shards, files cut elsewhere, and features in another order: the same answers.
    halves = [
        write_scene("north", texture[:1, :117]),
        write_scene("south", texture[:1, 117:], at=(117, 0)),
    ]
    mixed = features.sample(frac=1, random_state=3)
    mixed.to_parquet(tmp_path / "mixed.parquet")
    again, _, other = run(halves, tmp_path / "mixed.parquet", shard_size=512)
    assert len(other.shards) == 1
    again = again.sort_values("Größe")
    assert again["Confidence"].tolist() == made["Confidence"].tolist()
    assert again["ClassLabel"].tolist() == made["ClassLabel"].tolist()


def test_varying_crops_are_the_features_envelopes_and_outside_is_black(
    run: Any, scene: str, texture: Any, tmp_path: Path
) -> None:
    triangle = shapely.Polygon([at(40, 60), at(59.6, 60), at(40, 79.6)])
    shapes = [box(10, 20, 7, 5), triangle, box(100, 100, 40, 5), shapely.Point(at(50.2, 70.7))]
    frame = geopandas.GeoDataFrame(geometry=shapes, crs="EPSG:32612")
    frame.to_parquet(tmp_path / "few.parquet")
    varying = {"fixed": 0, "size": 24}
    made, _, _ = run([scene], tmp_path / "few.parquet", varying)
    array = texture[0].astype(float)
    whole = array[60:80, 40:60].mean()
    # Larger than a crop may be, and a point: the fixed window.
    fixed = [expected_mean(texture[0], shape, 24) for shape in shapes[2:]]
    wanted = [array[20:25, 10:17].mean(), whole, *fixed]
    np.testing.assert_allclose(made["Confidence"], wanted, rtol=1e-12)

    black, details, _ = run([scene], tmp_path / "few.parquet", {**varying, "blacken": 1})
    row, col = np.mgrid[60:80, 40:60] + 0.5
    inside = (row - 60) + (col - 40) < 19.6
    half = array[60:80, 40:60][inside].mean()
    np.testing.assert_allclose(black["Confidence"].iloc[[0, 1, 3]], [wanted[0], half, wanted[3]], rtol=1e-12)
    assert "nothing is blackened" in details["remarks"][0]


def test_nothing_is_lost_and_everything_is_counted(
    run: Any, write_scene: Any, texture: Any, tmp_path: Path
) -> None:
    holed = texture[:1].copy()
    holed[:, 100:160, 100:160] = 0
    uri = write_scene("holed", holed, nodata=0)
    shapes = [
        shapely.Point(at(130, 130)),  # no imagery in its crop
        None,
        shapely.Polygon(),
        shapely.Point(at(9000, 9000)),
        shapely.Point(at(-5, 20)),  # its crop reaches the imagery, the point itself does not
        box(-6, 30, 7, 5),  # one column of it lies on the imagery
        shapely.Point(at(20, 20)),
    ]
    frame = geopandas.GeoDataFrame({"name": list("abcdefg")}, geometry=shapes, crs="EPSG:32612")
    frame.to_parquet(tmp_path / "odd.parquet")
    made, details, plan = run([uri], tmp_path / "odd.parquet")
    assert made["name"].tolist() == list("abcdefg")
    assert made["ClassLabel"].notna().tolist() == [False, False, False, False, False, True, True]
    counts = details["outputs"][0]
    assert counts["features_without_imagery"] == 2
    assert counts["features_without_geometry"] == 2
    assert counts["features_beside_the_imagery"] == 1
    assert len(details["remarks"]) == 2
    package = pyogrio.read_dataframe(join(plan.folder, details["outputs"][1]["path"]))
    assert package["ClassLabel"].isna().tolist() == made["ClassLabel"].isna().tolist()


def test_a_layer_without_features_gives_an_empty_result(run: Any, scene: str, tmp_path: Path) -> None:
    many(3).iloc[:0].to_parquet(tmp_path / "none.parquet")
    made, details, plan = run([scene], tmp_path / "none.parquet")
    assert len(made) == 0
    assert not plan.parts
    assert "ClassLabel" in made.columns
    assert "holds no feature" in details["remarks"][0]


def test_separate_items_classify_a_feature_once_on_each_image(
    run: Any, write_scene: Any, texture: Any, tmp_path: Path
) -> None:
    early, late = write_scene("early", texture[:1]), write_scene("late", 255 - texture[:1])
    many(9).to_crs("EPSG:4326").to_file(tmp_path / "places.geojson")
    mosaic, _, _ = run([early, late], tmp_path / "places.geojson")
    assert set(mosaic["source_raster"]) == {early}  # where rasters overlap, the first one wins
    made, _, _ = run([early, late], tmp_path / "places.geojson", processing_mode="PROCESS_ITEMS_SEPARATELY")
    assert made["source_raster"].tolist() == [early, late] * 9
    first = made[made["source_raster"] == early]
    assert first["Confidence"].tolist() == mosaic["Confidence"].tolist()
    both = made["Confidence"].to_numpy().reshape(9, 2).sum(axis=1)
    np.testing.assert_allclose(both, 255, atol=1e-9)


def test_out_sr_is_the_layers_coordinate_system(run: Any, store: Any, scene: str, tmp_path: Path) -> None:
    features = many(9)
    features.to_file(tmp_path / "few.gpkg")
    how: dict[str, Any] = {"processing_mode": "PROCESS_ITEMS_SEPARATELY"}
    plain, _, _ = run([scene], tmp_path / "few.gpkg", **how)
    made, details, plan = run([scene], tmp_path / "few.gpkg", out_sr=3857, **how)
    assert made.crs.to_epsg() == 3857
    assert made.geometry.geom_equals_exact(features.to_crs(3857).geometry, 1e-6).all()
    assert made["Confidence"].tolist() == plain["Confidence"].tolist()
    np.testing.assert_allclose(made["area_m2"], plain["area_m2"])
    item = json.loads(store.get(join(plan.folder, "labelled.stac.json")))
    assert item["properties"]["proj:code"] == "EPSG:3857"
    assert "3857" in details["outputs"][0]["crs_wkt"]


def test_without_features_each_image_is_one_object(
    run: Any,
    store: Any,
    write_scene: Any,
    texture: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uris = []
    for number in range(7):
        part = texture[:1, number * 20 : number * 20 + 24, : 24 + 24 * (number % 2)]
        uris.append(write_scene(f"chip_{number}", part, at=(number * 20, 0)))
    made, details, plan = run(uris, shard_size=64)
    # Chips of the crop's own size are taken as they are.
    wanted = [texture[0, number * 20 : number * 20 + 24, :24].mean() for number in range(0, 7, 2)]
    np.testing.assert_allclose(made["Confidence"].iloc[::2], wanted, rtol=1e-12)
    others = [texture[0, number * 20 : number * 20 + 24, :48].mean() for number in range(1, 7, 2)]
    np.testing.assert_allclose(made["Confidence"].iloc[1::2], others, atol=1.5)
    assert made["image"].tolist() == [f"chip_{number}.tif" for number in range(7)]
    assert made.geometry.iloc[2].equals(box(0, 40, 24, 24))
    item = json.loads(store.get(join(plan.folder, "labelled.stac.json")))
    place = shapely.geometry.shape(item["geometry"])
    assert shapely.area(place) == pytest.approx(made.to_crs("EPSG:4326").union_all().area, rel=1e-3)
    assert [link["href"] for link in item["links"]] == [*uris, plan.package.uri]
    assert len(plan.shards) == 1
    again, _, _ = run(uris[::-1], shard_size=64)
    assert again["Confidence"].tolist()[::-1] == made["Confidence"].tolist()

    # A run's page has no picture of images that lie side by side.
    shown: list[str] = []
    for kind in ("table", "image", "markdown"):
        monkeypatch.setattr(task, f"create_{kind}_artifact", lambda kind=kind, **_: shown.append(kind))
    result = finish(store, plan, {})
    task._leave_artifacts(store, plan, result)
    assert shown == ["table", "markdown"]
    assert result.already_done
    assert task.addresses(plan, result)["uri"].endswith("/labelled.parquet")

    # Pictures that lie nowhere give a table.
    raw = tmp_path / "imagery" / "bild_ä.png"
    with rasterio.open(raw, "w", driver="PNG", height=24, width=24, count=1, dtype="uint8") as dataset:
        dataset.write(texture[:1, :24, :24])
    table, details, plan = run([str(raw)])
    assert json.loads(store.get(join(plan.folder, "labelled.stac.json")))["geometry"] is None
    with pytest.raises(ChiplineError, match="lie on no map"):
        run([str(raw)], output_formats=["GEOJSON"])
    assert "geometry" not in table.columns
    assert table["Confidence"].iloc[0] == texture[0, :24, :24].mean()
    assert details["outputs"][0]["objects"] == 1


def test_an_object_says_what_it_comes_from_and_its_caption_in_every_format(
    run: Any, store: Any, scene: str, tmp_path: Path
) -> None:
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2024:07:01 10:20:30")
    shapes = [
        box(20, 20, 8, 6),
        shapely.LineString([at(40, 40), at(50, 44)]),
        shapely.Point(at(90, 90)),
        None,
    ]
    frame = geopandas.GeoDataFrame({"run": list("abcd")}, geometry=shapes, crs="EPSG:32612").to_crs(
        "EPSG:4326"
    )
    frame.to_parquet(tmp_path / "mixed.parquet")
    formats = ["FLATGEOBUF", "GEOJSON"]
    made, details, plan = run(
        [scene],
        tmp_path / "mixed.parquet",
        {"captions": 1},
        caption_field="Beschreibung",
        output_formats=formats,
    )
    assert made["run"].tolist() == list("abcd")  # the layer's own field stays
    assert made["ClassLabelRun"].fillna("").tolist() == [plan.run_key] * 3 + [""]
    assert made["package"].fillna("").tolist() == [f"objects {plan.package.digest[:12]}"] * 3 + [""]
    assert made["source_date"].fillna("").tolist() == ["2024-07-01T10:20:30"] * 3 + [""]
    # Square metres of a polygon in degrees; points and lines have none.
    assert made["area_m2"].iloc[0] == pytest.approx(12, rel=1e-3)
    assert made["area_m2"].iloc[1:].isna().all()
    said = ["" if np.isnan(mean) else f"something of {mean:.0f}" for mean in made["Confidence"]]
    assert made["Beschreibung"].fillna("").tolist() == said
    names = [output["path"] for output in details["outputs"]]
    assert names == [f"labelled.{end}" for end in ("parquet", "gpkg", "fgb", "geojson")]
    for name in names[1:]:
        read = pyogrio.read_dataframe(join(plan.folder, name))
        assert read["ClassLabel"].fillna("").tolist() == made["ClassLabel"].fillna("").tolist()
        assert [shape and shape.geom_type for shape in read.geometry] == [
            "Polygon",
            "LineString",
            "Point",
            None,
        ]
    item = json.loads(store.get(join(plan.folder, "labelled.stac.json")))
    assert {"geoparquet", "geopackage", "flatgeobuf", "geojson", "preview"} == set(item["assets"])
    layer = str(tmp_path / "mixed.parquet")
    assert [link["href"] for link in item["links"]] == [scene, layer, plan.package.uri]
    assert item["properties"]["proj:code"] in ("EPSG:4326", "OGC:CRS84")  # the layer's, not the imagery's

    # Without captions the field is not written, and one by name is refused.
    plain, _, _ = run([scene], tmp_path / "mixed.parquet")
    assert not {"Caption", "Beschreibung"} & set(plain.columns)
    with pytest.raises(ChiplineError, match="gives no captions"):
        run([scene], tmp_path / "mixed.parquet", caption_field="Beschreibung")
    with pytest.raises(ChiplineError, match="a Shapefile holds one of them"):
        run([scene], tmp_path / "mixed.parquet", output_formats=["SHAPEFILE"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_label_field": "größe"}, "field 'größe' already"),
        ({"features": "far.parquet"}, r"None of the 3 features.*coordinate systems"),
        ({"features": "nowhere.parquet"}, "no coordinate reference system"),
        ({"features": "missing.gpkg"}, r"missing\.gpkg"),
        ({"features": None, "extent": [0, 0, 1, 1]}, "extent means nothing"),
    ],
)
def test_bad_input_is_one_message(
    run: Any, scene: str, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    few = many(3)
    few.to_parquet(tmp_path / "few.parquet")
    few.translate(1e5, 0).to_frame("geometry").to_parquet(tmp_path / "far.parquet")
    few.set_crs(None, allow_override=True).to_parquet(tmp_path / "nowhere.parquet")
    name = change.pop("features", "few.parquet")
    with pytest.raises(ChiplineError, match=message):
        run([scene], None if name is None else tmp_path / name, **change)
