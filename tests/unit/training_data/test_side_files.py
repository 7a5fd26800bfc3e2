"""The side files, byte for byte where real exports of ArcGIS show the form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest

from tasks.labels.schema import ClassSchema
from tasks.training_data import side_files
from tasks.training_data.statistics import BandStatistics, ClassStatistics, Spread

GOLDEN = Path(__file__).parent / "golden"


def _spread(low: float, mean: float, high: float, count: int) -> Spread:
    return Spread(low, high, mean * count, count)


def _summary(metadata_format: str, contents: ClassStatistics, name: str) -> side_files.ExportSummary:
    flat = np.full((3, 128, 128), 100, dtype=np.uint8)
    flat[:, 0, 0], flat[:, 0, 1] = 90, 110
    return side_files.ExportSummary(
        metadata_format=metadata_format,
        tile_size=(128, 128),
        classes=ClassSchema.from_values({1: name}, {1: (255, 0, 0)}),
        band_names=("Red", "Green", "Blue"),
        bands=BandStatistics.of(flat),
        contents=contents,
        raster_count=1,
        min_cell_size=(0.5, 0.5),
        max_cell_size=(0.5, 0.5),
        wkid=32633,
    )


def test_stats_txt_of_rectangles_equals_an_export_of_arcgis() -> None:
    contents = ClassStatistics([1])
    contents.images, contents.features = 482, 1658
    contents.images_per_class, contents.count_per_class = {1: 482}, {1: 1658}
    contents.features_per_image = _spread(1, 3.44, 11, 482)
    contents.size_per_class = {1: _spread(0, 15.45, 40.8, 1658)}
    text = side_files.stats_txt(_summary("PASCAL_VOC_rectangles", contents, "Palm")).decode()
    assert text == (
        "images = 482 *3*128*128\n"
        "features = 1658\n"
        "features per image = [min = 1, mean = 3.44, max = 11]\n"
        "classes = 1\n"
        "cls name              cls value     images   features    min size   mean size    max size\n"
        "Palm                          1        482       1658        0.00       15.45       40.80\n"
    )


def test_stats_txt_of_tiles_equals_an_export_of_arcgis() -> None:
    contents = ClassStatistics([1])
    contents.images = 3382
    contents.images_per_class, contents.count_per_class = {1: 3382}, {1: 531590974}
    contents.classes_per_image = _spread(1, 1.25, 2, 3382)
    contents.size_per_class = {1: _spread(96568, 157182.43, 160000, 3382)}
    lines = side_files.stats_txt(_summary("Classified_Tiles", contents, "1")).decode().split("\n")
    assert lines[0] == "images = 3382 *3*128*128"
    assert lines[2] == "classes per image = [min = 1, mean = 1.25, max = 2]"
    assert lines[3].split()[5] == "pixels"
    row = "1                             1       3382  531590974    96568.00   157182.43   160000.00"
    assert lines[4:] == [row, ""]


def _tile_summary() -> side_files.ExportSummary:
    contents = ClassStatistics([1])
    contents.add_pixels({1: 1200})
    return _summary("Classified_Tiles", contents, "Building")


def _rectangle_summary() -> side_files.ExportSummary:
    contents = ClassStatistics([1])
    contents.add_features({1: [300.0, 12.5]})
    return _summary("PASCAL_VOC_rectangles", contents, "Building")


def test_accumulated_stats_are_the_golden_files() -> None:
    assert side_files.accumulated_stats(_tile_summary()) == (GOLDEN / "tiles_stats.json").read_bytes()
    assert (
        side_files.accumulated_stats(_rectangle_summary()) == (GOLDEN / "rectangles_stats.json").read_bytes()
    )


def test_the_model_definition_is_the_golden_file() -> None:
    assert side_files.model_definition(_tile_summary()) == (GOLDEN / "tiles.emd").read_bytes()


def summaries() -> dict[str, side_files.ExportSummary]:
    """One export of each kind that the real exports at hand do not show, by the name of its golden files."""
    buildings = _tile_summary()
    second = np.full((1, 4, 4), 7, dtype=np.uint16)
    second[0, 0, 0] = 9
    nothing, pixels, features = ClassStatistics([]), ClassStatistics([1, 2]), ClassStatistics([1, 2])
    nothing.add_features({})
    pixels.add_pixels({1: 1200, 2: 84})
    pixels.add_pixels({2: 16})
    features.add_features({1: [300.0], 2: [12.5, 4.25]})
    features.add_features({})
    two = ClassSchema.from_values({1: "Building", 2: "Palm tree"}, {1: (255, 0, 0), 2: (0, 128, 0)})
    return {
        "export_tiles": replace(
            buildings,
            metadata_format="Export_Tiles",
            classes=ClassSchema(()),
            contents=nothing,
            bands2=BandStatistics.of(second),
            band_names2=("Band_1",),
        ),
        "rcnn_masks": replace(
            buildings, metadata_format="RCNN_Masks", classes=two, contents=features, image_space="PIXEL_SPACE"
        ),
        "panoptic": replace(
            buildings,
            metadata_format="Panoptic_Segmentation",
            contents=pixels,
            instance_classes=ClassSchema(two.classes[1:]),
        ),
        "labeled_tiles": replace(
            buildings,
            metadata_format="Labeled_Tiles",
            classes=two,
            contents=features,
            blacken_around_feature=True,
            fixed_size=False,
        ),
    }


@pytest.mark.parametrize("name", ["export_tiles", "rcnn_masks", "panoptic", "labeled_tiles"])
def test_side_files_are_the_golden_files_with_line_feeds(name: str) -> None:
    summary = summaries()[name]
    for ending, made in (
        ("_stats.json", side_files.accumulated_stats(summary)),
        ("_stats.txt", side_files.stats_txt(summary)),
        (".emd", side_files.model_definition(summary)),
    ):
        assert made == (GOLDEN / f"{name}{ending}").read_bytes()
        assert made.endswith(b"\n")
        assert b"\r" not in made


def test_accumulated_stats_say_what_the_documented_example_says() -> None:
    example = {
        "Version": 1,
        "NumBands": 3,
        "TileSizeX": 128,
        "TileSizeY": 128,
        "NumClasses": 1,
        "NumTiles": 1,
        "OutputFeatures": False,
        "MetaDataMode": "Classified_Tiles",
        "Classes": [{"ClassValue": 1, "ClassName": "Building"}],
        "ClassPixelStats": {
            "NumClasses": 1,
            "NumImagesTotal": 1,
            "NumImagesPerClass": [1],
            "NumPixelsPerClass": [1200],
            "NumClassesPerImage": {"Min": 1, "Max": 1, "Mean": 1, "Sum": 1, "Count": 1},
            "PixelsPerClass": [{"Min": 1200, "Max": 1200, "Mean": 1200, "Sum": 1200, "Count": 1}],
        },
        "BandStatsState": [{"Min": 90, "Max": 110, "Num": 16384, "M1": 100, "M2": 200}] * 3,
    }
    text = side_files.accumulated_stats(_tile_summary()).decode()
    assert json.loads(text) == example
    assert list(json.loads(text)) == [
        "Version",
        "NumBands",
        "TileSizeX",
        "TileSizeY",
        "NumClasses",
        "NumTiles",
        "OutputFeatures",
        "MetaDataMode",
        "Classes",
        "ClassPixelStats",
        "BandStatsState",
    ]
    assert text.startswith('{\n  "Version" : 1,\n  "NumBands" : 3,\n')


def test_the_definition_holds_the_old_keys_first_and_a_colour_per_class() -> None:
    definition = json.loads(side_files.model_definition(_tile_summary()))
    assert list(definition)[:12] == [
        "Framework",
        "ModelConfiguration",
        "ModelType",
        "ModelFile",
        "ImageHeight",
        "ImageWidth",
        "ExtractBands",
        "DataRange",
        "ModelPadding",
        "BatchSize",
        "PerProcessGPUMemoryFraction",
        "Classes",
    ]
    assert definition["Classes"] == [{"Value": 1, "Name": "Building", "Color": [255, 0, 0]}]
    assert definition["MetaDataMode"] == "Classified_Tiles"
    assert definition["AllTilesStats"][0]["StdDev"] == (200 / 16384) ** 0.5
    assert "Chipline" in definition["Description"]


def test_codes_of_reference_systems() -> None:
    assert side_files.wkid_of(pyproj.CRS("EPSG:32612").to_wkt()) == 32612
    assert side_files.wkid_of(pyproj.CRS("EPSG:32612").to_wkt("WKT1_GDAL")) == 32612
    assert side_files.wkid_of(pyproj.CRS("ESRI:102008").to_wkt()) == 102008
    local = "+proj=tmerc +lat_0=1.5 +lon_0=2.5 +k=0.9 +x_0=7 +y_0=8 +datum=WGS84 +units=m"
    assert side_files.wkid_of(pyproj.CRS(local).to_wkt()) is None


def test_band_names() -> None:
    assert side_files.default_band_names(3, ["", "", ""]) == ("Red", "Green", "Blue")
    assert side_files.default_band_names(2, ["nir", ""]) == ("nir", "Band_2")
    assert side_files.default_band_names(4) == ("Band_1", "Band_2", "Band_3", "Band_4")
    assert side_files.default_band_names(3, ["a", "b", "c"]) == ("a", "b", "c")
