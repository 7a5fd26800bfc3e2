"""Each metadata format: labels, export, our reader; the same boxes, pixels, instances and classes again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from PIL import Image

from tasks.export import preview, task
from tasks.store import ObjectStore
from tasks.training_data import (
    FORMATS,
    read_boxes,
    read_chip_image,
    read_chip_image2,
    read_class_mask,
    read_instances,
)
from tests.unit.export.conftest import CRS, TRANSFORM, write_raster
from tests.unit.export.oracle import Truth, same_boxes

MakeScene = Callable[..., Any]
Export = Callable[..., Any]

ROWS, COLS = 90, 121
TILE = (40, 48)
SIZES = {"tile_size": TILE[1], "tile_size_y": TILE[0], "stride_size": 48, "chips_per_part": 4}


@pytest.fixture
def scene(make_scene: MakeScene) -> Any:
    return make_scene(rows=ROWS, cols=COLS, count=14)


@pytest.fixture
def other(make_scene: MakeScene) -> Any:
    """A second raster of another kind on the same ground, and other labels."""
    return make_scene(7, rows=ROWS, cols=COLS, count=6, bands=2, dtype="uint16", name="other")


def _stats(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "esri_accumulated_stats.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_is_complete_and_its_statistics_are_numpy_s(
    export: Export, scene: Any, other: Any, name: str
) -> None:
    more: dict[str, Any] = {}
    if name == "Panoptic_Segmentation":
        more["input_instance_data"] = other.labels
    if name == "CycleGAN":
        more["additional_input_raster"] = [other.raster]
    done = export(scene, metadata_format=name, **SIZES, **more)
    sides = [(done.folder, done.data)]
    if name == "CycleGAN":
        sides = [(done.folder / "A", done.data), (done.folder / "B", done.data.other)]
    for folder, data in sides:
        stats = _stats(folder)
        definition = json.loads((folder / "esri_model_definition.emd").read_text(encoding="utf-8"))
        assert stats["MetaDataMode"] == definition["MetaDataMode"] == name
        assert stats["NumTiles"] == len(data.chips) >= 6
        assert (stats["TileSizeX"], stats["TileSizeY"]) == (TILE[1], TILE[0])
        assert (folder / "stats.txt").read_text().startswith(f"images = {len(data.chips)} *")
        chips = [read_chip_image(chip).astype(np.float64) for chip in data.chips]
        for band, found in enumerate(stats["BandStatsState"]):
            values = np.concatenate([chip[band].ravel() for chip in chips])
            assert (found["Min"], found["Max"], found["Num"]) == (values.min(), values.max(), values.size)
            assert found["M1"] == pytest.approx(values.mean(), rel=1e-12)
            assert found["M2"] == pytest.approx(((values - values.mean()) ** 2).sum(), rel=1e-9)
        listed = _listed(folder) if name != "COCO_rectangles" else [{path} for path in _pictures(folder)]
        # In the order of the numbers, which are the pictures' names.
        assert [{Path(path).stem for path in line} - {"labels"} for line in listed] == [
            {f"{number:09d}"} for number in range(len(data.chips))
        ]
        written = set(_below(folder, "images", "images2", "labels", "labels2"))
        assert {path for line in listed for path in line} == written
    values = done.data.classes.values
    assert (values == (1, 2, 3)) or name in ("Export_Tiles", "CycleGAN")


def _below(folder: Path, *names: str) -> list[str]:
    """The pictures and labels, without world files."""
    return [
        str(path.relative_to(folder))
        for name in names
        for path in sorted((folder / name).rglob("*.*"))
        if path.is_file() and path.suffix != ".tfw"
    ]


def _pictures(folder: Path) -> list[str]:
    return sorted(_below(folder, "images"))


def _listed(folder: Path) -> list[set[str]]:
    lines = (folder / "map.txt").read_bytes().decode().split("\r\n")
    assert lines.pop() == ""
    return [set(line.replace("\\", "/").split()) for line in lines]


@pytest.mark.parametrize(
    ("name", "chip_format"),
    [
        *((name, "TIFF") for name in sorted(FORMATS)),
        ("Imagenet", "MRF"),
        ("COCO_rectangles", "JPEG"),
        ("Panoptic_Segmentation", "PNG"),
    ],
)
def test_every_format_can_be_looked_at(
    export: Export, make_scene: MakeScene, name: str, chip_format: str
) -> None:
    scene = make_scene(rows=60, cols=80, count=9)
    more: dict[str, Any] = {"fix_chip_size": name not in ("Labeled_Tiles", "Imagenet")}
    if name == "Panoptic_Segmentation":
        more["input_instance_data"] = scene.labels
    if name == "CycleGAN":
        more["additional_input_raster"] = [scene.raster]
    done = export(scene, metadata_format=name, chip_format=chip_format, rotation_angle=90, **SIZES, **more)
    for picture in (preview.contact_sheet, preview.footprints):
        data = picture(ObjectStore(), done.plan)
        assert len(data) <= preview.MAX_BYTES
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert len(np.unique(pixels)) > 50
    assert task.outputs_table(ObjectStore(), done.plan, done.manifest)
    classes = task.class_table(done.manifest)
    assert len(classes) == (0 if name in ("Export_Tiles", "CycleGAN") else 3)


@pytest.mark.parametrize(
    "name", ["PASCAL_VOC_rectangles", "KITTI_rectangles", "COCO_rectangles", "YOLO_rectangles"]
)
def test_boxes_come_back(export: Export, scene: Any, name: str) -> None:
    done = export(scene, metadata_format=name, **SIZES)
    expected = [scene.truth.boxes(chip, TILE) for chip in done.data.chips]
    assert sum(map(len, expected)) > 20
    for chip, boxes in zip(done.data.chips, expected, strict=True):
        assert same_boxes(read_boxes(chip), boxes)
    stats = _stats(done.folder)["FeatureStats"]
    assert stats["NumFeaturesTotal"] == sum(map(len, expected))
    areas = [
        [
            part.area * 0.25
            for chip in done.data.chips
            for index, part in scene.truth.parts(chip, TILE).items()
            if scene.truth.values[index] == value
        ]
        for value in done.data.classes.values
    ]
    assert stats["NumFeaturesPerClass"] == [len(found) for found in areas]
    assert [item["Sum"] for item in stats["FeatureAreaPerClass"]] == pytest.approx([sum(a) for a in areas])
    assert [item["Max"] for item in stats["FeatureAreaPerClass"]] == pytest.approx([max(a) for a in areas])


def test_coco_holds_the_outlines(export: Export, scene: Any) -> None:
    done = export(scene, metadata_format="COCO_rectangles", **SIZES)
    document = json.loads((done.folder / "labels.json").read_text())
    parts = [
        (chip, index, part)
        for chip in done.data.chips
        for index, part in scene.truth.parts(chip, TILE).items()
    ]
    assert len(document["annotations"]) == len(parts)
    names = {picture["id"]: picture["file_name"] for picture in document["images"]}
    for entry, (chip, index, part) in zip(document["annotations"], parts, strict=True):
        assert names[entry["image_id"]] == chip.image.name
        assert entry["category_id"] == scene.truth.values[index]
        assert entry["area"] == pytest.approx(part.area, abs=0.01)
        outer = [shapely.Polygon(np.reshape(ring, (-1, 2))) for ring in entry["segmentation"]]
        expected = shapely.union_all([shapely.Polygon(p.exterior) for p in shapely.get_parts(part)])
        difference = shapely.union_all(shapely.make_valid(outer)).symmetric_difference(expected)
        # Holes may be told as cuts, so that only what lies outside is compared.
        assert difference.difference(shapely.convex_hull(part).buffer(-0.5)).area < 0.05 * part.length


def test_instances_come_back(export: Export, scene: Any) -> None:
    done = export(scene, metadata_format="RCNN_Masks", **SIZES)
    counted = dict.fromkeys(done.data.classes.values, 0)
    for chip in done.data.chips:
        found, expected = read_instances(chip), scene.truth.instances(chip, TILE)
        assert found.keys() == expected.keys()
        for value, mask in expected.items():
            np.testing.assert_array_equal(found[value], mask)
            counted[value] += int(mask.max())
    assert sum(counted.values()) > 20
    assert _stats(done.folder)["FeatureStats"]["NumFeaturesPerClass"] == list(counted.values())


def test_classes_of_a_chip_come_back(export: Export, scene: Any) -> None:
    done = export(scene, metadata_format="MultiLabeled_Tiles", **SIZES)
    expected = [
        tuple(sorted({int(scene.truth.values[index]) for index in scene.truth.parts(chip, TILE)}))
        for chip in done.data.chips
    ]
    assert len({len(values) for values in expected}) > 1
    assert [chip.values for chip in done.data.chips] == expected


@pytest.mark.parametrize("name", ["Labeled_Tiles", "Imagenet"])
@pytest.mark.parametrize("blacken", [False, True])
def test_one_chip_around_each_feature(export: Export, scene: Any, name: str, blacken: bool) -> None:
    done = export(scene, metadata_format=name, blacken_around_feature=blacken, **SIZES)
    found = []
    for chip in done.data.chips:
        origin = scene.truth.to_grid(chip) @ (0, 0)
        ideal = [
            np.clip((np.array(inside[:2]) + inside[2:] - TILE[::-1]) / 2, 0, (COLS - TILE[1], ROWS - TILE[0]))
            for inside in _bounds_inside(scene)
        ]
        near = [
            index
            for index, (place, value) in enumerate(zip(ideal, scene.truth.values, strict=True))
            if np.abs(place - origin).max() <= 0.5 + 1e-6 and (value,) == chip.values
        ]
        found.append(near)
        window = scene.truth.gathered(scene.pixels, chip, TILE)
        if not blacken:
            np.testing.assert_array_equal(read_chip_image(chip), window)
            continue
        images = [
            np.where(scene.truth.gathered(scene.truth.mask([index]), chip, TILE) > 0, window, 0)
            for index in near
        ]
        assert any(np.array_equal(read_chip_image(chip), image) for image in images)
    # Every feature has its chip, and none has two.
    assert all(found)
    assert len(found) == len(scene.truth.polygons)
    assert {index for near in found for index in near} == set(range(len(found)))
    if name == "Labeled_Tiles":
        for chip, near in zip(done.data.chips, found, strict=True):
            (box,) = read_boxes(chip)
            boxes = [
                (int(scene.truth.values[i]), *part.bounds)
                for i, part in scene.truth.parts(chip, TILE).items()
                if i in near
            ]
            assert any(same_boxes([box], [expected]) for expected in boxes)


def test_a_feature_with_a_bare_middle_has_its_chip(make_scene: MakeScene, export: Export) -> None:
    ring = shapely.Point(105, 75).buffer(70).difference(shapely.Point(105, 75).buffer(64))
    bend = ring.difference(shapely.box(105, 0, 210, 150))
    scene = make_scene(name="bare", polygons=[ring, bend], values=[1, 2])
    done = export(scene, metadata_format="Labeled_Tiles", tile_size=32, stride_size=32)
    assert sorted(chip.values for chip in done.data.chips) == [(1,), (2,)]
    for chip in done.data.chips:
        part = scene.truth.parts(chip, (32, 32))[chip.values[0] - 1]
        assert part.area > 32


def _bounds_inside(scene: Any) -> list[tuple[float, float, float, float]]:
    whole = shapely.box(0, 0, COLS, ROWS)
    return [shapely.intersection(polygon, whole).bounds for polygon in scene.truth.polygons]


def test_a_crop_is_the_feature_s_own_pixels(export: Export, scene: Any) -> None:
    done = export(scene, metadata_format="Labeled_Tiles", fix_chip_size=False, tile_size=16, stride_size=16)
    definition = json.loads((done.folder / "esri_model_definition.emd").read_text())
    assert definition["CropTileMode"] == "Variable_Size"
    expected = {}
    for index, (xmin, ymin, xmax, ymax) in enumerate(_bounds_inside(scene)):
        rows = slice(int(np.floor(ymin)), int(np.ceil(ymax)))
        cols = slice(int(np.floor(xmin)), int(np.ceil(xmax)))
        expected[rows.start, cols.start] = index, scene.pixels[:, rows, cols]
    assert len(done.data.chips) == len(expected) == len(scene.truth.polygons)
    for chip in done.data.chips:
        col, row = (round(value) for value in scene.truth.to_grid(chip) @ (0, 0))
        index, pixels = expected[row, col]
        assert chip.values == (scene.truth.values[index],)
        np.testing.assert_array_equal(read_chip_image(chip), pixels)


@pytest.mark.parametrize("name", ["Labeled_Tiles", "Imagenet"])
def test_a_turned_crop_holds_the_whole_feature(export: Export, scene: Any, name: str) -> None:
    options = {"metadata_format": name, "fix_chip_size": False, "tile_size": 16, "stride_size": 16}
    upright = export(scene, **options)
    turned = export(scene, rotation_angle=90, **options)
    assert len(turned.data.chips) == 4 * len(upright.data.chips)
    for number, chip in enumerate(turned.data.chips):
        whole = upright.data.chips[number // 4]
        expected = np.rot90(read_chip_image(whole), -(number % 4), axes=(1, 2))
        np.testing.assert_array_equal(read_chip_image(chip), expected)
        assert chip.values == whole.values


def test_pictures_of_two_rasters_on_one_grid(export: Export, scene: Any, other: Any) -> None:
    done = export(
        scene,
        metadata_format="Export_Tiles",
        additional_input_raster=[other.raster],
        output_nofeature_tiles="ALL_TILES",
        **SIZES,
    )
    assert len(done.data.chips) == 3 * 3
    for chip in done.data.chips:
        np.testing.assert_array_equal(read_chip_image(chip), scene.truth.gathered(scene.pixels, chip, TILE))
        np.testing.assert_array_equal(read_chip_image2(chip), scene.truth.gathered(other.pixels, chip, TILE))
    definition = json.loads((done.folder / "esri_model_definition.emd").read_text())
    chips = np.stack([read_chip_image2(chip) for chip in done.data.chips]).astype(np.float64)
    for band, stats in enumerate(definition["AllTilesStats2"]):
        values = chips[:, band]
        assert (stats["Min"], stats["Max"]) == (values.min(), values.max())
        assert (stats["Mean"], stats["StdDev"]) == pytest.approx((values.mean(), values.std()), rel=1e-9)


def test_a_pair_needs_both_pictures(export: Export, scene: Any, tmp_path: Path) -> None:
    left = write_raster(tmp_path / "left.tif", scene.pixels[:, :40, :60], TRANSFORM)
    done = export(
        scene,
        metadata_format="Export_Tiles",
        input_class_data=None,
        additional_input_raster=[left],
        **(SIZES | {"tile_size": 24, "tile_size_y": 24, "stride_size": 24}),
    )
    places = [tuple(np.rint(scene.truth.to_grid(chip) @ (0, 0)).tolist()) for chip in done.data.chips]
    assert places == [(col, row) for row in (0, 24) for col in (0, 24, 48)]
    assert all(read_chip_image2(chip).any() for chip in done.data.chips)


def test_without_labels_every_position_is_a_picture(export: Export, scene: Any) -> None:
    done = export(scene, metadata_format="Export_Tiles", input_class_data=None, **SIZES)
    assert len(done.data.chips) == 3 * 3
    assert len(done.data.classes) == 0


def test_the_sides_of_cyclegan_are_exports_of_their_own(
    make_scene: MakeScene, export: Export, scene: Any
) -> None:
    second = make_scene(3, rows=60, cols=60, bands=1, dtype="uint16", name="second")
    done = export(
        scene,
        metadata_format="CycleGAN",
        input_class_data=None,
        additional_input_raster=[second.raster],
        **SIZES,
    )
    assert done.data.other is not None
    assert (len(done.data.chips), len(done.data.other.chips)) == (3 * 3, 2 * 2)
    for data, truth in ((done.data, scene), (done.data.other, second)):
        assert [chip.stem for chip in data.chips] == [f"{n:09d}" for n in range(len(data.chips))]
        for chip in data.chips:
            np.testing.assert_array_equal(
                read_chip_image(chip), truth.truth.gathered(truth.pixels, chip, TILE)
            )
    assert done.manifest.details["chips"] == 13
    assert (done.data.other.bands, _stats(done.folder / "B")["NumBands"]) == (1, 1)


def test_change_detection_resamples_the_later_image(export: Export, scene: Any, tmp_path: Path) -> None:
    # Cells of twice the size, offset by one of ours: each covers exactly four.
    coarse = np.random.default_rng(3).integers(1, 200, (3, 60, 70), dtype=np.uint8)
    to_map = TRANSFORM @ TRANSFORM.translation(-2, -4) @ TRANSFORM.scale(2)
    later = write_raster(tmp_path / "later.tif", coarse, to_map)
    done = export(scene, metadata_format="Classified_Tiles", additional_input_raster=[later], **SIZES)
    for chip in done.data.chips:
        np.testing.assert_array_equal(read_class_mask(chip), scene.truth.gathered(scene.mask, chip, TILE))
        image2 = read_chip_image2(chip).astype(int)
        expected = scene.truth.gathered(
            coarse.repeat(2, axis=1).repeat(2, axis=2)[:, 4 : 4 + ROWS, 2 : 2 + COLS], chip, TILE
        )
        if not np.array_equal(image2, expected):
            # Blended, then: never further off than the neighbours differ.
            low, high = coarse.min(), coarse.max()
            assert low <= image2.min() <= image2.max() <= high
            assert abs(image2.mean() - expected.mean()) < 4


def test_the_later_image_may_have_another_crs(export: Export, scene: Any, tmp_path: Path) -> None:
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    # A plane, so that resampling it twice gives the plane.
    col, row = np.meshgrid(np.arange(300) - 80, np.arange(300) - 80)
    plane = (100 + 2 * col + 3 * row).astype(np.float32)
    shifted = TRANSFORM @ TRANSFORM.translation(-80, -80)
    transform, width, height = calculate_default_transform(
        CRS, "EPSG:4326", 300, 300, *rasterio.transform.array_bounds(300, 300, shifted)
    )
    warped = np.zeros((1, height, width), np.float32)
    reproject(
        plane,
        warped[0],
        src_transform=shifted,
        src_crs=CRS,
        dst_transform=transform,
        dst_crs="EPSG:4326",
        resampling=Resampling.bilinear,
    )
    later = write_raster(tmp_path / "later.tif", warped, transform, crs="EPSG:4326")
    done = export(scene, metadata_format="Classified_Tiles", additional_input_raster=[later], **SIZES)
    whole = plane[80 : 80 + ROWS, 80 : 80 + COLS]
    for chip in done.data.chips:
        image2 = read_chip_image2(chip)[0]
        expected = scene.truth.gathered(whole, chip, TILE)
        # Nearest pixels would be off by up to half a cell in both directions: 2.5.
        assert np.abs(image2 - expected).max() < 3.2


def test_panoptic_has_classes_below_and_objects_on_top(
    make_scene: MakeScene, export: Export, scene: Any
) -> None:
    things = make_scene(9, rows=ROWS, cols=COLS, count=9, name="things")
    frame = things.frame.assign(kind=things.truth.values + 4)
    frame["classname"] = frame["kind"].map({5: "Car", 6: "Boat", 7: "Van"})
    frame.to_file(things.labels, engine="pyogrio")
    objects = Truth(things.truth.polygons, things.truth.values + 4, (ROWS, COLS), TRANSFORM)
    done = export(
        scene,
        metadata_format="Panoptic_Segmentation",
        input_instance_data=things.labels,
        instance_class_value_field="kind",
        **SIZES,
    )
    assert done.data.instance_classes is not None
    assert done.data.instance_classes.names == ("Car", "Boat", "Van")
    assert set(done.data.classes.values) == {1, 2, 3, 5, 6, 7}
    pixels = dict.fromkeys(done.data.classes.values, 0)
    for chip in done.data.chips:
        found, expected = read_instances(chip), objects.instances(chip, TILE)
        assert found.keys() == expected.keys()
        semantic = scene.truth.gathered(scene.mask, chip, TILE).astype(int)
        for value, mask in expected.items():
            np.testing.assert_array_equal(found[value], mask)
            semantic[mask > 0] = value
        np.testing.assert_array_equal(read_class_mask(chip), semantic)
        for value in pixels:
            pixels[value] += int((semantic == value).sum())
    assert pixels[5] > 0
    assert _stats(done.folder)["ClassPixelStats"]["NumPixelsPerClass"] == list(pixels.values())


@pytest.mark.parametrize(
    ("name", "extension"), [("Labeled_Tiles", "PNG"), ("RCNN_Masks", "JPEG"), ("Imagenet", "MRF")]
)
def test_formats_and_chip_formats_mix(export: Export, scene: Any, name: str, extension: str) -> None:
    done = export(scene, metadata_format=name, chip_format=extension, **SIZES)
    tiff = export(scene, metadata_format=name, output_location="tiff", **SIZES)
    assert [chip.footprint for chip in done.data.chips] == [chip.footprint for chip in tiff.data.chips]
    assert [chip.values for chip in done.data.chips] == [chip.values for chip in tiff.data.chips]
    for chip, exact in zip(done.data.chips, tiff.data.chips, strict=True):
        image = read_chip_image(exact).astype(int)
        if extension == "JPEG":
            assert np.abs(read_chip_image(chip) - image).mean() < 20
        else:
            np.testing.assert_array_equal(read_chip_image(chip), image)
