"""The options of an export, each against what the whole raster says; and the ones that do not go together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject

from tasks.errors import BadInputError, LabelError
from tasks.export.inputs import check_options
from tasks.export.parameters import ExportParameters
from tasks.training_data import FORMATS, read_boxes, read_chip_image, read_class_mask
from tests.unit.export.conftest import CRS, TRANSFORM, write_raster
from tests.unit.export.oracle import around, same_boxes

MakeScene = Callable[..., Any]
Export = Callable[..., Any]

ROWS, COLS = 90, 121
TILES = {"metadata_format": "Classified_Tiles", "tile_size": 32, "stride_size": 16}


def _to_map(geometry: shapely.Geometry) -> shapely.Geometry:
    a, b, c, d, e, f = tuple(TRANSFORM)[:6]
    return shapely.affinity.affine_transform(geometry, (a, b, d, e, c, f))


def _polygons(path: Path, *geometries: shapely.Geometry) -> str:
    geopandas.GeoDataFrame(geometry=[_to_map(item) for item in geometries], crs=CRS).to_file(path)
    return str(path)


def _places(done: Any, scene: Any) -> list[tuple[int, int]]:
    """(row, col) of each chip."""
    found = [scene.truth.to_grid(chip) @ (0, 0) for chip in done.data.chips]
    return [(round(row), round(col)) for col, row in found]


def test_chips_lie_completely_inside_the_mask_polygons(
    make_scene: MakeScene, export: Export, tmp_path: Path
) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    # Two that share an edge through a chip, one of them with a hole; the edge is cut at odd places.
    left = shapely.Polygon([(0, 0), (40.5, 0), (40.5, 33), (40.5, 90), (0, 90)])
    right = shapely.Polygon(
        [(40.5, 0), (100, 0), (100, 90), (40.5, 90)], [shapely.box(70, 40, 74, 44).exterior.coords]
    )
    mask = _polygons(tmp_path / "mask.gpkg", left, right)
    done = export(scene, input_mask_polygons=mask, output_nofeature_tiles="ALL_TILES", **TILES)
    region = shapely.union_all([left, right])
    expected = [
        (row, col)
        for row in [0, 16, 32, 48, 58]
        for col in [0, 16, 32, 48, 64, 80, 89]
        if region.covers(shapely.box(col, row, col + 32, row + 32))
    ]
    assert _places(done, scene) == expected
    across = [col for _, col in expected if col < 40 < col + 32]
    assert across
    assert (16, 48) not in expected
    with pytest.raises(LabelError, match="completely inside"):
        export(scene, input_mask_polygons=mask, metadata_format="Classified_Tiles", tile_size=101)


def test_mask_polygons_hold_turned_chips_only_with_their_corners(
    make_scene: MakeScene, export: Export, tmp_path: Path
) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    mask = _polygons(tmp_path / "mask.gpkg", shapely.box(0, 0, COLS, ROWS))
    options = {"rotation_angle": 45, "output_nofeature_tiles": "ALL_TILES"} | TILES
    free, bound = export(scene, **options), export(scene, input_mask_polygons=mask, **options)
    whole = shapely.box(0, 0, COLS, ROWS).buffer(1e-6)
    inside = 0
    for chip in free.data.chips:
        to_grid = scene.truth.to_grid(chip)
        frame = shapely.Polygon([to_grid @ corner for corner in ((0, 0), (32, 0), (32, 32), (0, 32))])
        inside += bool(whole.covers(frame))
    assert 0 < len(bound.data.chips) == inside < len(free.data.chips)


@pytest.mark.parametrize(
    "name", ["PASCAL_VOC_rectangles", "RCNN_Masks", "Labeled_Tiles", "MultiLabeled_Tiles"]
)
def test_a_label_below_the_ratio_counts_nowhere(make_scene: MakeScene, export: Export, name: str) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    tile = (32, 32)
    done = export(scene, metadata_format=name, tile_size=32, stride_size=32, min_polygon_overlap_ratio=0.6)
    assert len(done.data.chips) > 4
    if name == "Labeled_Tiles":
        # A feature so large or so far outside that its own chip does not hold its share has no chip.
        for chip in done.data.chips:
            assert any(same_boxes(read_boxes(chip), [box]) for box in scene.truth.boxes(chip, tile, 0.6))
        return
    for chip in done.data.chips:
        expected = scene.truth.boxes(chip, tile, 0.6)
        assert expected
        if name == "MultiLabeled_Tiles":
            assert chip.values == tuple(sorted({box[0] for box in expected}))
        elif name == "RCNN_Masks":
            assert {box[0] for box in read_boxes(chip)} == {box[0] for box in expected}
        else:
            assert same_boxes(read_boxes(chip), expected)


def test_numbers_begin_where_they_are_told(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    done = export(scene, start_index=999_999_998, chips_per_part=2, **TILES)
    numbers = sorted(int(chip.stem) for chip in done.data.chips)
    assert numbers == list(range(999_999_998, 999_999_998 + len(numbers)))
    lines = (done.folder / "map.txt").read_bytes().decode().splitlines()
    assert [int(line.split("\\")[1].split(".")[0]) for line in lines] == numbers


def test_an_extent_is_snapped_outwards_to_whole_pixels(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    xmin, ymax = TRANSFORM @ (20.3, 10.7)
    xmax, ymin = TRANSFORM @ (83.6, 73.2)
    done = export(scene, extent=[xmin, ymin, xmax, ymax], output_nofeature_tiles="ALL_TILES", **TILES)
    assert _places(done, scene) == [(r, c) for r in [10, 26, 42] for c in [20, 36, 52]]
    for chip in done.data.chips:
        np.testing.assert_array_equal(
            read_chip_image(chip), scene.truth.gathered(scene.pixels, chip, (32, 32))
        )
        np.testing.assert_array_equal(read_class_mask(chip), scene.truth.gathered(scene.mask, chip, (32, 32)))
    with pytest.raises(BadInputError, match="does not touch the imagery"):
        export(scene, extent=[0, 0, 10, 10], **TILES)


def test_another_cell_size_moves_the_labels_along(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    done = export(scene, cell_size=1.0, output_nofeature_tiles="ALL_TILES", **TILES)
    shape = (-(-ROWS // 2), -(-COLS // 2))
    halved = [shapely.affinity.scale(polygon, 0.5, 0.5, origin=(0, 0)) for polygon in scene.truth.polygons]
    expected = scene.truth.burnt(np.array(halved, dtype=object), scene.truth.values, shape)
    assert done.data.cell_size == (1.0, 1.0)
    for chip in done.data.chips:
        assert chip.footprint is not None
        row, col = round(5_000_000 - chip.footprint[3]), round(chip.footprint[0] - 500_000)
        # The last column's centres lie on the raster's edge: no picture, no label.
        picture = read_chip_image(chip).any(axis=0)
        assert picture.mean() > 0.9
        burnt = around(expected, row, col, 32, 32)
        np.testing.assert_array_equal(read_class_mask(chip), np.where(picture, burnt, 0))


def test_rasters_in_two_reference_systems_as_one_mosaic_and_one_by_one(
    make_scene: MakeScene, export: Export, tmp_path: Path
) -> None:
    col, row = np.meshgrid(np.arange(COLS), np.arange(ROWS))
    plane = (200 + 3 * col + 2 * row).astype(np.float32)[np.newaxis]
    scene = make_scene(rows=ROWS, cols=COLS, pixels=plane)
    # The right half, by way of degrees.
    with rasterio.open(scene.raster) as source:
        transform, width, height = calculate_default_transform(CRS, "EPSG:4326", COLS, ROWS, *source.bounds)
        turned = np.full((1, height, width), -1, np.float32)
        reproject(
            plane[0], turned[0], src_transform=TRANSFORM, src_crs=CRS, dst_transform=transform,
            dst_crs="EPSG:4326", resampling=Resampling.bilinear, dst_nodata=-1, init_dest_nodata=True,
        )  # fmt: skip
    left = write_raster(tmp_path / "left.tif", plane[:, :, :60], TRANSFORM)
    whole = write_raster(tmp_path / "whole.tif", turned, transform, crs="EPSG:4326", nodata=-1)
    options = {"input_raster": [left, whole], "output_nofeature_tiles": "ALL_TILES"} | TILES
    mosaic = export(scene, **options)
    checked = 0
    for chip in mosaic.data.chips:
        found = read_chip_image(chip)[0]
        expected = scene.truth.gathered(plane[0], chip, (32, 32))
        here = (found > 0) & (expected > 0)
        assert np.abs(found - expected)[here].max() < 6
        # The first raster wins, and is not resampled.
        grid_col = scene.truth.to_grid(chip) @ (0, 0)
        own = (np.arange(32) + round(grid_col[0])) < 60
        np.testing.assert_array_equal(found[:, own], expected[:, own])
        np.testing.assert_array_equal(
            read_class_mask(chip), np.where(found != 0, scene.truth.gathered(scene.mask, chip, (32, 32)), 0)
        )
        checked += int(here[:, ~own].sum())
    assert checked > 1000
    items = export(scene, processing_mode="PROCESS_ITEMS_SEPARATELY", **options)
    assert len(items.plan.items) == 2
    first = {part.item: part.firsts[0] for part in reversed(items.plan.parts)}
    assert first[0] == 0
    degrees = [chip for chip in items.data.chips if int(chip.stem) >= first[1]]
    assert degrees
    assert all(abs(chip.footprint[0]) < 180 for chip in degrees)
    # Class 1 covers as many square metres in either system, to within some percent.
    by_item = [
        sum(int((read_class_mask(chip) > 0).any()) for chip in chips)
        for chips in (items.data.chips[: first[1]], degrees)
    ]
    assert min(by_item) > 3


def test_a_class_schema_names_and_orders_the_classes(
    make_scene: MakeScene, export: Export, tmp_path: Path
) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    schema = tmp_path / "classes.json"
    leaves = [
        {"value": 1, "name": "Baum", "color": [1, 2, 3]},
        {"value": 2, "name": "Busch", "color": [4, 5, 6]},
    ]
    plants = {"value": 9, "name": "Plant", "color": "#00ff00", "children": leaves}
    rock = {"value": 3, "name": "Fels", "color": [7, 8, 9]}
    schema.write_text(json.dumps({"classes": [plants, rock]}))
    done = export(scene, class_schema=str(schema), **TILES)
    assert dict(zip(done.data.classes.values, done.data.classes.names, strict=True)) == {
        1: "Baum", 2: "Busch", 3: "Fels", 9: "Plant",
    }  # fmt: skip
    for chip in done.data.chips:
        np.testing.assert_array_equal(read_class_mask(chip), scene.truth.gathered(scene.mask, chip, (32, 32)))
    schema.write_text(json.dumps({"classes": [plants]}))
    with pytest.raises(LabelError, match="3"):
        export(scene, class_schema=str(schema), **TILES)


def test_points_grow_to_circles(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    points = scene.frame.assign(geometry=scene.frame.geometry.representative_point())
    points.to_file(scene.labels, engine="pyogrio")
    done = export(scene, buffer_radius=3.0, tile_size=64, stride_size=64)
    for chip in done.data.chips:
        frame = shapely.box(*chip.footprint)
        circles = shapely.buffer(np.asarray(points.geometry), 3.0)
        parts = shapely.intersection(circles, frame)
        sizes = shapely.bounds(parts)
        inside = (shapely.area(parts) > 0) & ((sizes[:, 2:] - sizes[:, :2]).min(axis=1) > 0.01)
        assert len(read_boxes(chip)) == inside.sum()
        for _, xmin, ymin, xmax, ymax in read_boxes(chip):
            assert max(xmax - xmin, ymax - ymin) <= 12.02  # 6 m across, in pixels of half a metre
    with pytest.raises(LabelError, match="buffer_radius"):
        export(scene, tile_size=64, stride_size=64)


def _options(**values: Any) -> ExportParameters:
    return ExportParameters(
        **{"input_raster": ["a.tif"], "input_class_data": "b.gpkg", "output_location": "x", **values}
    )


@pytest.mark.parametrize(
    ("name", "values", "says", "remedy"),
    [
        ("Classified_Tiles", {"input_class_data": None}, "needs labels", "input_class_data"),
        ("Imagenet", {"input_class_data": None}, "needs labels", "input_class_data"),
        ("PASCAL_VOC_rectangles", {"additional_input_raster": ["c.tif"]}, "second image", "Export_Tiles"),
        ("CycleGAN", {}, "pairs two kinds", "additional_input_raster"),
        ("Panoptic_Segmentation", {}, "single objects", "input_instance_data"),
        ("RCNN_Masks", {"input_instance_data": "i.gpkg"}, "no instance data", "Panoptic_Segmentation"),
        ("RCNN_Masks", {"blacken_around_feature": True}, "not cut around features", "Labeled_Tiles"),
        ("KITTI_rectangles", {"fix_chip_size": False}, "not cut around features", "Imagenet"),
        ("Imagenet", {"fix_chip_size": False, "rotation_angle": 30}, "by quarters", "multiple of 90"),
        ("Export_Tiles", {"reference_system": "PIXEL_SPACE", "cell_size": 2.0}, "raw image", "cell_size"),
        ("Export_Tiles", {"reference_system": "IMAGE_SPACE", "extent": [0, 0, 1, 1]}, "raw image", "extent"),
    ],
)
def test_options_that_do_not_go_together(name: str, values: dict[str, Any], says: str, remedy: str) -> None:
    with pytest.raises(BadInputError, match=says) as caught:
        check_options(_options(metadata_format=name, **values), FORMATS[name])
    assert remedy in str(caught.value)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_plain_options_of_every_format_are_fine(name: str) -> None:
    values: dict[str, Any] = {}
    if name == "CycleGAN":
        values["additional_input_raster"] = ["c.tif"]
    if name == "Panoptic_Segmentation":
        values["input_instance_data"] = "i.gpkg"
    check_options(_options(metadata_format=name, **values), FORMATS[name])


@pytest.mark.parametrize(
    ("chip_format", "bands", "dtype"),
    [("JPEG", 4, "uint8"), ("JPEG", 3, "uint16"), ("PNG", 2, "uint8"), ("PNG", 3, "float32")],
)
def test_a_chip_format_that_cannot_hold_the_imagery_is_refused_at_once(
    make_scene: MakeScene, export: Export, chip_format: str, bands: int, dtype: str
) -> None:
    scene = make_scene(rows=40, cols=40, count=2, bands=bands, dtype=dtype, photometric="MINISBLACK")
    with pytest.raises(BadInputError, match=f"{chip_format} chips hold") as caught:
        export(scene, chip_format=chip_format)
    assert "TIFF" in str(caught.value)


def test_png_keeps_sixteen_bits(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(
        rows=64,
        cols=64,
        bands=3,
        dtype="uint16",
        count=4,
        pixels=np.random.default_rng(1).integers(0, 65535, (3, 64, 64), dtype=np.uint16),
    )
    done = export(scene, chip_format="PNG", tile_size=32, output_nofeature_tiles="ALL_TILES")
    for chip in done.data.chips:
        found = read_chip_image(chip)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, scene.truth.gathered(scene.pixels, chip, (32, 32)))


@pytest.mark.parametrize(
    "transform",
    [
        Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5),
        Affine.translation(500_000, 5_000_000) @ Affine.scale(0.5, 0.5),  # south up
        Affine.translation(500_000, 5_000_000) @ Affine.scale(-0.5, -0.5),
    ],
)
def test_rasters_that_do_not_lie_north_up_are_brought_there(
    make_scene: MakeScene, export: Export, transform: Affine
) -> None:
    col, row = np.meshgrid(np.arange(COLS) + 0.5, np.arange(ROWS) + 0.5)
    plane = (200 + 3 * col + 2 * row).astype(np.float32)[np.newaxis]
    scene = make_scene(rows=ROWS, cols=COLS, pixels=plane, transform=transform)
    done = export(scene, output_nofeature_tiles="ALL_TILES", **TILES)
    labelled = 0
    for chip in done.data.chips:
        to_grid = scene.truth.to_grid(chip)
        x, y = np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5)
        at_col, at_row = to_grid @ (x, y)
        deep = (at_col > 1) & (at_col < COLS - 1) & (at_row > 1) & (at_row < ROWS - 1)
        found = read_chip_image(chip)[0]
        assert np.abs(found - (200 + 3 * at_col + 2 * at_row))[deep].max(initial=0) < 3.1
        burnt = scene.truth.burnt(scene.truth.in_chip(chip), scene.truth.values, (32, 32))
        np.testing.assert_array_equal(read_class_mask(chip)[deep], burnt[deep])
        labelled += int((burnt[deep] > 0).sum())
    assert labelled > 2000
