"""Classified rasters as labels, in every kind of format, with the tables that name their classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from scipy import ndimage

from tasks.errors import LabelError
from tasks.training_data import read_boxes, read_chip_image, read_class_mask, read_instances
from tests.unit.export.conftest import TRANSFORM, write_raster

MakeScene = Callable[..., Any]
Export = Callable[..., Any]

ROWS, COLS = 70, 90
TILE = (32, 32)
SIZES = {"tile_size": 32, "stride_size": 29}
_TREES = [(1, "Oak", 7), (2, "Elm", 7), (3, "Ash", 8)]


def _rat(path: str, rows: list[tuple[int, str, int]], *, value: str = "Value") -> None:
    """A raster attribute table as ArcGIS leaves it beside the raster."""
    lines = "".join(
        f'<Row index="{index}"><F>{number}</F><F>{name}</F><F>{other}</F></Row>'
        for index, (number, name, other) in enumerate(rows)
    )
    fields = "".join(
        f'<FieldDefn index="{index}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for index, (name, kind, usage) in enumerate([(value, 0, 5), ("Class_name", 2, 2), ("Group", 0, 0)])
    )
    Path(f"{path}.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable tableType="thematic">{fields}{lines}'
        "</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"
    )


@pytest.fixture
def scene(make_scene: MakeScene, tmp_path: Path) -> Any:
    """A scene whose labels are burnt already; the class raster has an attribute table."""
    made = make_scene(rows=ROWS, cols=COLS, count=10)
    label = write_raster(tmp_path / "classes.tif", made.mask[np.newaxis], TRANSFORM)
    _rat(label, _TREES)
    return made.__class__(made.raster, label, made.pixels, made.mask, made.frame, made.truth)


def _regions(mask: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(class value, pixels) of each region of one class, by class, then first pixel."""
    found = []
    for value in np.unique(mask[mask > 0]):
        labelled, count = ndimage.label(mask == value)
        found += [(int(value), labelled == number) for number in range(1, count + 1)]
    return found


def _box(value: int, here: np.ndarray) -> tuple[int, float, float, float, float]:
    rows, cols = np.nonzero(here)
    return value, cols.min(), rows.min(), cols.max() + 1, rows.max() + 1


@pytest.mark.parametrize("angle", [0, 90])
def test_masks_and_classes_of_the_table(export: Export, scene: Any, angle: int) -> None:
    done = export(scene, metadata_format="Classified_Tiles", rotation_angle=angle, **SIZES)
    assert dict(zip(done.data.classes.values, done.data.classes.names, strict=True)) == {
        1: "Oak", 2: "Elm", 3: "Ash",
    }  # fmt: skip
    every = export(
        scene,
        output_nofeature_tiles="ALL_TILES",
        metadata_format="Classified_Tiles",
        rotation_angle=angle,
        **SIZES,
    )
    labelled = 0
    for chip in every.data.chips:
        expected = scene.truth.gathered(scene.mask, chip, TILE)
        np.testing.assert_array_equal(read_class_mask(chip), expected)
        labelled += bool(expected.any())
    assert len(done.data.chips) == labelled


@pytest.mark.parametrize(
    ("name", "angle"),
    [
        ("PASCAL_VOC_rectangles", 0),
        ("RCNN_Masks", 0),
        ("RCNN_Masks", 60),
        ("MultiLabeled_Tiles", 0),
        ("Labeled_Tiles", 60),
    ],
)
def test_objects_are_regions_of_the_chip_s_mask(export: Export, scene: Any, name: str, angle: int) -> None:
    done = export(scene, metadata_format=name, rotation_angle=angle, **SIZES)
    masks = export(scene, metadata_format="Classified_Tiles", rotation_angle=angle, **SIZES)
    assert len(done.data.chips) == len(masks.data.chips) > 4
    for chip, tile in zip(done.data.chips, masks.data.chips, strict=True):
        mask = read_class_mask(tile)
        regions = _regions(mask)
        if name == "PASCAL_VOC_rectangles":
            assert read_boxes(chip) == [_box(value, here) for value, here in regions]
        elif name == "RCNN_Masks":
            found = read_instances(chip)
            assert found.keys() == {value for value, _ in regions}
            for value, numbers in found.items():
                mine = [here for other, here in regions if other == value]
                for number, here in enumerate(mine, start=1):
                    np.testing.assert_array_equal(numbers == number, here)
        elif name == "MultiLabeled_Tiles":
            assert chip.values == tuple(sorted({value for value, _ in regions}))
        else:
            counts = np.bincount(mask.ravel())[1:]
            assert chip.values == (int(counts.argmax()) + 1,)


def test_a_chip_of_a_raster_has_its_commonest_class(export: Export, scene: Any) -> None:
    # A chip without any class has no folder to go to.
    half = scene.mask * (np.arange(COLS) < 40)
    write_raster(Path(scene.labels), half[np.newaxis].astype(np.uint8), TRANSFORM)
    _rat(scene.labels, _TREES)
    done = export(
        scene,
        metadata_format="Imagenet",
        output_nofeature_tiles="ALL_TILES",
        blacken_around_feature=True,
        **SIZES,
    )
    names = {"Oak": 1, "Elm": 2, "Ash": 3}
    assert 2 <= len(done.data.chips) < 3 * 3
    for chip in done.data.chips:
        mask = scene.truth.gathered(half, chip, TILE)
        assert names[chip.image.parent.name] == np.bincount(mask.ravel(), minlength=4)[1:].argmax() + 1
        expected = np.where(mask > 0, scene.truth.gathered(scene.pixels, chip, TILE), 0)
        np.testing.assert_array_equal(read_chip_image(chip), expected)


def test_another_column_gives_the_classes(export: Export, scene: Any) -> None:
    with pytest.raises(LabelError, match="several names: Oak, Elm"):
        export(scene, metadata_format="Classified_Tiles", classvalue_field="Group", **SIZES)
    _rat(scene.labels, [(1, "Leaf", 7), (2, "Leaf", 7), (3, "Needle", 8)])
    done = export(scene, metadata_format="Classified_Tiles", classvalue_field="Group", **SIZES)
    assert (done.data.classes.values, done.data.classes.names) == ((7, 8), ("Leaf", "Needle"))
    grouped = np.array([0, 7, 7, 8])[scene.mask]
    for chip in done.data.chips:
        expected = scene.truth.gathered(grouped, chip, TILE)
        np.testing.assert_array_equal(read_class_mask(chip), expected)
    with pytest.raises(LabelError, match="Group"):
        export(scene, metadata_format="Classified_Tiles", classvalue_field="Nothing", **SIZES)


def test_a_vat_dbf_names_the_classes(export: Export, scene: Any) -> None:
    import geopandas
    from pyogrio import write_dataframe

    Path(f"{scene.labels}.aux.xml").unlink()
    table = geopandas.GeoDataFrame(
        {"Value": [1, 2, 3], "Count": [5, 5, 5], "Class_name": ["One", "Two", "Three"]}, geometry=[None] * 3
    )
    write_dataframe(
        table.drop(columns="geometry"), f"{scene.labels}.vat.dbf", driver="ESRI Shapefile", layer="classes"
    )
    done = export(scene, **SIZES)
    assert done.data.classes.names == ("One", "Two", "Three")


def test_a_coarser_raster_in_degrees_gives_its_nearest_pixels(
    make_scene: MakeScene, export: Export, tmp_path: Path
) -> None:
    from rasterio.warp import Resampling, reproject

    scene = make_scene(rows=ROWS, cols=COLS)
    with rasterio.open(scene.raster) as source:
        xmin, ymin, xmax, ymax = rasterio.warp.transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    # Fine cells that reach beyond the imagery: the nearest one is at most a fraction of a pixel away.
    cell = (xmax - xmin) / 400
    to_map = rasterio.transform.from_origin(xmin - 5 * cell, ymax + 5 * cell, cell, cell)
    shape = (round((ymax - ymin) / cell) + 10, 410)
    fine = np.zeros(shape, np.uint8)
    reproject(
        scene.mask, fine, src_transform=TRANSFORM, src_crs="EPSG:32612", dst_transform=to_map,
        dst_crs="EPSG:4326", resampling=Resampling.nearest,
    )  # fmt: skip
    label = write_raster(tmp_path / "fine.tif", fine[np.newaxis], to_map, crs="EPSG:4326")
    done = export(scene, input_class_data=label, metadata_format="Classified_Tiles", **SIZES)
    wrong = total = 0
    for chip in done.data.chips:
        mask, expected = read_class_mask(chip), scene.truth.gathered(scene.mask, chip, TILE)
        wrong, total = wrong + int((mask != expected).sum()), total + mask.size
    assert wrong < 0.01 * total


def test_panoptic_from_two_rasters(make_scene: MakeScene, export: Export, tmp_path: Path, scene: Any) -> None:
    things = make_scene(5, rows=ROWS, cols=COLS, count=6, name="things")
    objects = np.where(things.mask > 0, things.mask + 4, 0).astype(np.uint8)
    label = write_raster(tmp_path / "objects.tif", objects[np.newaxis], TRANSFORM)
    done = export(scene, metadata_format="Panoptic_Segmentation", input_instance_data=label, **SIZES)
    seen = 0
    for chip in done.data.chips:
        mine = scene.truth.gathered(objects, chip, TILE)
        semantic = np.where(mine > 0, mine, scene.truth.gathered(scene.mask, chip, TILE))
        np.testing.assert_array_equal(read_class_mask(chip), semantic)
        found = read_instances(chip)
        assert found.keys() == set(np.unique(mine[mine > 0]).tolist())
        for value, numbers in found.items():
            regions = [here for other, here in _regions(mine) if other == value]
            assert numbers.max() == len(regions)
            for number, here in enumerate(regions, start=1):
                np.testing.assert_array_equal(numbers == number, here)
                seen += 1
    assert seen > 5


def test_options_for_polygons_are_named_as_meaningless(export: Export, scene: Any) -> None:
    done = export(scene, min_polygon_overlap_ratio=0.5, **SIZES)
    assert any("min_polygon_overlap_ratio" in note for note in done.manifest.details["notes"])


def test_values_outside_of_the_table_are_refused(export: Export, scene: Any) -> None:
    _rat(scene.labels, [(1, "Oak", 7), (2, "Elm", 7)])
    with pytest.raises(LabelError, match=r"3"):
        export(scene, metadata_format="Classified_Tiles", **SIZES)
