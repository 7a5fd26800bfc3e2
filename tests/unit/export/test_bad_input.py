"""Imagery and labels as they come: used where they can be, else refused with one clear message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

from tasks.errors import BadInputError, ChiplineError, LabelError
from tasks.training_data import FORMATS, read_boxes, read_chip_image, read_class_mask, read_instances
from tests.unit.export.conftest import CRS, TRANSFORM, write_raster
from tests.unit.export.oracle import same_boxes

MakeScene = Callable[..., Any]
Export = Callable[..., Any]

ROWS, COLS = 60, 70
TILES = {"metadata_format": "Classified_Tiles", "tile_size": 32, "stride_size": 32}


def test_nan_is_no_picture_and_does_not_spoil_the_statistics(make_scene: MakeScene, export: Export) -> None:
    pixels = np.random.default_rng(1).uniform(1, 9, (2, ROWS, COLS)).astype(np.float32)
    pixels[:, 10:30, 5:40] = np.nan
    pixels[0, 40:50, 5:40] = np.nan  # one band only: still a picture
    pixels[1, 55, 60] = np.inf
    scene = make_scene(rows=ROWS, cols=COLS, pixels=pixels)
    done = export(scene, output_nofeature_tiles="ALL_TILES", **TILES)
    lost = np.isnan(pixels).all(axis=0)
    for chip in done.data.chips:
        gone = scene.truth.gathered(lost, chip, (32, 32))
        mask = scene.truth.gathered(scene.mask, chip, (32, 32))
        np.testing.assert_array_equal(read_class_mask(chip), np.where(gone, 0, mask))
    chips = np.stack([read_chip_image(chip) for chip in done.data.chips])
    gone = np.stack([scene.truth.gathered(lost, chip, (32, 32)) for chip in done.data.chips])
    for band, stats in enumerate(done.data.band_stats):
        counted = chips[:, band][~gone]
        counted = counted[np.isfinite(counted)].astype(np.float64)
        assert (stats.minimum, stats.maximum) == (counted.min(), counted.max())
        assert stats.mean == pytest.approx(counted.mean(), rel=1e-9)
        assert stats.std == pytest.approx(counted.std(), rel=1e-6)


def test_nothing_but_nodata(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(rows=ROWS, cols=COLS, pixels=np.zeros((3, ROWS, COLS), np.uint8), nodata=0)
    done = export(scene, **TILES)
    assert not any(read_class_mask(chip).any() for chip in done.data.chips)
    assert len(done.data.band_stats) == 3


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_raster_of_one_pixel(make_scene: MakeScene, export: Export, name: str) -> None:
    scene = make_scene(
        rows=1, cols=1, polygons=[shapely.box(-3, -3, 5, 5)], values=[2], tiled=False, blockysize=1
    )
    more: dict[str, Any] = {}
    if name == "CycleGAN":
        more["additional_input_raster"] = [scene.raster]
    if name == "Panoptic_Segmentation":
        more["input_instance_data"] = scene.labels
    done = export(scene, metadata_format=name, tile_size=16, **more)
    (chip,) = done.data.chips
    image = read_chip_image(chip)
    assert image.shape == (3, 16, 16)
    np.testing.assert_array_equal(image[:, 0, 0], scene.pixels[:, 0, 0])
    assert not image[:, 1:].any()
    if name in ("Classified_Tiles", "RCNN_Masks", "Panoptic_Segmentation"):
        mask = read_class_mask(chip)
        assert (mask[0, 0], mask.sum()) == (2, 2)
        if name != "Classified_Tiles":
            assert {value: int(numbers.sum()) for value, numbers in read_instances(chip).items()} == {2: 1}


def test_an_unusable_raster_is_named(make_scene: MakeScene, export: Export, tmp_path: Path) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    without = write_raster(tmp_path / "nowhere.tif", scene.pixels, TRANSFORM, crs=None)
    with pytest.raises(BadInputError, match=r"nowhere\.tif"):
        export(scene, input_raster=[without], **TILES)
    whole = Path(scene.raster).read_bytes()
    # The directory of the file is at its end, or the pixels are: either way something is missing.
    for name, data in (
        ("half.tif", whole[: len(whole) // 2]),
        ("empty.tif", b""),
        ("text.tif", b"no raster"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ChiplineError, match=name):
            export(scene, input_raster=[str(tmp_path / name)], output_location=name[:4], **TILES)
    different = write_raster(tmp_path / "two.tif", scene.pixels[:2], TRANSFORM)
    with pytest.raises(BadInputError, match=r"two\.tif has 2"):
        export(scene, input_raster=[scene.raster, different], **TILES)
    numbers = np.ones((1, 20, 20), np.complex64)
    complex_ = write_raster(tmp_path / "complex.tif", numbers, TRANSFORM)
    with pytest.raises(ChiplineError, match=r"complex\.tif"):
        export(scene, input_raster=[complex_], **TILES)


def test_a_raster_that_breaks_off_stops_the_part_and_publishes_nothing(
    make_scene: MakeScene, export: Export, tmp_path: Path
) -> None:
    from tasks.store import ObjectStore, current

    scene = make_scene(rows=ROWS, cols=COLS, blockxsize=16, blockysize=16)
    path = tmp_path / "broken.tif"
    data = bytearray(Path(scene.raster).read_bytes())
    with rasterio.open(scene.raster) as source:
        # Blocks that GDAL will look for beyond the end of the file.
        assert source.width == COLS
    path.write_bytes(data[: len(data) - 3 * 16 * 16 * 5])
    with pytest.raises(ChiplineError, match=r"broken\.tif"):
        export(scene, input_raster=[str(path)], output_nofeature_tiles="ALL_TILES", **TILES)
    assert current(ObjectStore(), "training-data", "chips") is None


@pytest.mark.parametrize("name", ["Classified_Tiles", "RCNN_Masks", "Imagenet", "COCO_rectangles"])
def test_names_in_any_script(make_scene: MakeScene, export: Export, name: str) -> None:
    scene = make_scene(rows=ROWS, cols=COLS, name="Straße 東京 №1")
    names = {1: "Bäume & Büsche", 2: "道路 / 橋", 3: "<Дом>"}
    frame = scene.frame.assign(classname=scene.frame["classvalue"].map(names))
    frame.to_file(scene.labels, engine="pyogrio")
    done = export(scene, metadata_format=name, tile_size=32)
    if name in ("Classified_Tiles", "COCO_rectangles"):
        assert done.data.classes.names == tuple(names.values())
    else:
        assert [item.split("_")[0] for item in done.data.classes.names][:2] == ["Bäume", "道路"]
    for chip in done.data.chips:
        if name == "Classified_Tiles":
            expected = scene.truth.gathered(scene.mask, chip, (32, 32))
            np.testing.assert_array_equal(read_class_mask(chip), expected)
        elif name == "RCNN_Masks":
            expected_all = scene.truth.instances(chip, (32, 32))
            assert read_instances(chip).keys() == expected_all.keys()
        elif name == "COCO_rectangles":
            assert same_boxes(read_boxes(chip), scene.truth.boxes(chip, (32, 32)))
        else:
            assert len(chip.values) == 1


@pytest.mark.parametrize("name", ["PASCAL_VOC_rectangles", "Classified_Tiles", "RCNN_Masks", "Labeled_Tiles"])
def test_labels_outside_partly_outside_thin_and_huge(
    make_scene: MakeScene, export: Export, name: str
) -> None:
    polygons = [
        shapely.box(-400, -300, 5_000, 4_000),  # over everything
        shapely.box(200, 200, 230, 230),  # outside
        shapely.box(-20, 20, 12.5, 40),  # partly
        shapely.box(COLS, 0, COLS + 9, 9),  # touches the edge from outside
        shapely.box(20, 10.25, 60, 10.2578125),  # a sliver
        shapely.box(33, 33, 33.0078125, 50),
        shapely.box(40.25, 40.25, 40.375, 40.375),  # between the pixels' centres
        shapely.box(63, 50, 80, 80),
    ]
    values = [1, 2, 2, 2, 3, 3, 3, 2]
    scene = make_scene(rows=ROWS, cols=COLS, polygons=polygons, values=values)
    done = export(scene, metadata_format=name, tile_size=32, stride_size=32)
    assert done.data.classes.values == (1, 2, 3)
    if name == "Labeled_Tiles":
        # One chip each, but for what is outside, and for slivers, which count nowhere.
        assert sorted(value for chip in done.data.chips for value in chip.values) == [1, 2, 2, 3]
        return
    assert len(done.data.chips) == 2 * 3
    for chip in done.data.chips:
        if name == "Classified_Tiles":
            expected = scene.truth.gathered(scene.mask, chip, (32, 32))
            np.testing.assert_array_equal(read_class_mask(chip), expected)
        elif name == "RCNN_Masks":
            found, expected_all = read_instances(chip), scene.truth.instances(chip, (32, 32))
            assert found.keys() == expected_all.keys()
            for value, mask in expected_all.items():
                np.testing.assert_array_equal(found[value], mask)
        else:
            assert same_boxes(read_boxes(chip), scene.truth.boxes(chip, (32, 32)))


def test_a_file_of_mixed_geometries(make_scene: MakeScene, export: Export, tmp_path: Path) -> None:
    scene = make_scene(rows=ROWS, cols=COLS, count=6)
    extra = [
        shapely.Point(500_010, 4_999_990),
        shapely.LineString([(500_001, 4_999_999), (500_020, 4_999_980)]),
        shapely.GeometryCollection(
            [shapely.Point(500_003, 4_999_995), shapely.box(500_003, 4_999_985, 500_006, 4_999_990)]
        ),
        shapely.Polygon(
            [(500_020, 4_999_980), (500_026, 4_999_986), (500_026, 4_999_980), (500_020, 4_999_986)]
        ),
        None,
        shapely.Polygon(),
    ]
    both = geopandas.GeoDataFrame(
        {"classvalue": [*scene.truth.values, 1, 2, 3, 1, 2, 3]},
        geometry=[*scene.frame.geometry, *extra],
        crs=CRS,
    )
    path = tmp_path / "mixed.geojson"
    both.to_file(path, driver="GeoJSON")
    done = export(scene, input_class_data=str(path), buffer_radius=1.5, tile_size=64, stride_size=64)
    assert done.manifest.details["labels"]["empty"] == 2
    assert done.manifest.details["labels"]["features"] == 6 + 4
    assert sum(len(read_boxes(chip)) for chip in done.data.chips) >= 9
    # Without a radius points and lines cover no pixels: they count as empty, too.
    plain = export(scene, input_class_data=str(path), output_location="plain", tile_size=64)
    found = plain.manifest.details["labels"]
    assert (found["features"], found["empty"], found["repaired"]) == (6 + 2, 4, 1)


def test_a_second_raster_elsewhere_is_refused(make_scene: MakeScene, export: Export, tmp_path: Path) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    away = write_raster(tmp_path / "away.tif", scene.pixels, TRANSFORM @ TRANSFORM.translation(9_000, 0))
    with pytest.raises(ChiplineError, match=r"away\.tif"):
        export(scene, additional_input_raster=[away], **TILES)


def test_labels_elsewhere_are_refused(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(rows=ROWS, cols=COLS)
    scene.frame.translate(90_000, 0).to_frame("geometry").to_file(scene.labels, engine="pyogrio")
    for name in ("Classified_Tiles", "Labeled_Tiles", "YOLO_rectangles"):
        with pytest.raises(LabelError, match="do not touch the imagery"):
            export(scene, metadata_format=name, tile_size=32)


def test_classes_that_a_format_cannot_hold_are_refused_before_any_chip(
    make_scene: MakeScene, export: Export, tmp_path: Path
) -> None:
    scene = make_scene(rows=ROWS, cols=COLS, values=[2000] * 4, polygons=[shapely.box(0, 0, 9, 9)] * 4)
    with pytest.raises(BadInputError, match="2000"):
        export(scene, metadata_format="YOLO_rectangles", tile_size=32)
    named = scene.frame.assign(classname="Bush, Tree")
    named.to_file(scene.labels, engine="pyogrio")
    with pytest.raises(BadInputError, match="Bush, Tree"):
        export(scene, metadata_format="MultiLabeled_Tiles", tile_size=32)
    assert not list((tmp_path / "root").rglob("*.tif"))
