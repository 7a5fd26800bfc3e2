"""Pixel space and image space: labels drawn on the map land on the raw image's own pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from tasks.errors import BadInputError
from tasks.training_data import read_boxes, read_chip_image, read_chip_image2, read_class_mask
from tests.unit.export.conftest import random_polygons, write_raster
from tests.unit.export.oracle import Truth, same_boxes

Export = Callable[..., Any]

ROWS, COLS = 90, 121
# Sheared and turned, degrees per pixel, as a raw image lies on the map.
TO_MAP = Affine(1e-5, 2e-6, 10.0, 1e-6, -1.1e-5, 50.0)
PIXEL_SPACE = Affine(1, 0, 0, 0, -1, 0)
TILE = (32, 40)
SIZES = {"tile_size": TILE[1], "tile_size_y": TILE[0], "stride_size": 30}


class RawScene:
    """A raw image, and labels in degrees that belong on known pixels."""

    def __init__(self, folder: Path, name: str = "raw", *, seed: int = 1, **placed: Any) -> None:
        random = np.random.default_rng(seed)
        self.pixels = random.integers(1, 255, (3, ROWS, COLS), dtype=np.uint8)
        polygons = np.array(random_polygons(random, 15, (ROWS, COLS)), dtype=object)
        self.truth = Truth(polygons, random.integers(1, 4, 15), (ROWS, COLS), PIXEL_SPACE)
        self.mask = self.truth.mask().astype(np.uint8)
        options = {"crs": "EPSG:4326"} | placed
        transform = options.pop("transform", Affine.identity())
        self.raster = write_raster(folder / f"{name}.tif", self.pixels, transform, **options)

        def move(points: Any) -> Any:
            x, y = points.T
            return np.column_stack(
                [TO_MAP.a * x + TO_MAP.b * y + TO_MAP.c, TO_MAP.d * x + TO_MAP.e * y + TO_MAP.f]
            )

        frame = geopandas.GeoDataFrame(
            {"classvalue": self.truth.values}, geometry=list(shapely.transform(polygons, move)), crs=4326
        )
        self.labels = str(folder / f"{name}.gpkg")
        frame.to_file(self.labels)

    def export(self, export: Export, **values: Any) -> Any:
        options = {"reference_system": "PIXEL_SPACE", "output_nofeature_tiles": "ALL_TILES"} | SIZES | values
        return export(self, **options)


def _gcps() -> list[GroundControlPoint]:
    places = [(0, 0), (COLS, 0), (0, ROWS), (COLS, ROWS), (60, 45), (20, 70)]
    return [
        GroundControlPoint(row=row, col=col, x=x, y=y)
        for col, row in places
        for x, y in [TO_MAP @ (col, row)]
    ]


def _rpcs(lean: tuple[float, float] = (0.0, 0.0)) -> RPC:
    """The affine as rational polynomials; ``lean`` is px per metre of height."""
    to_image = ~TO_MAP
    lon, lat = TO_MAP @ (60, 45)
    wide, high = 0.002, 0.002
    one = [1.0] + [0.0] * 19
    samples = [0.0, to_image.a * wide / 60, to_image.b * high / 60, lean[0] * 100 / 60]
    lines = [0.0, to_image.d * wide / 45, to_image.e * high / 45, lean[1] * 100 / 45]
    return RPC(
        height_off=300.0, height_scale=100.0,
        lat_off=lat, lat_scale=high, long_off=lon, long_scale=wide,
        # Lines and samples of RPCs count from the middle of the first pixel.
        line_off=44.5, line_scale=45.0, samp_off=59.5, samp_scale=60.0,
        line_num_coeff=lines + [0.0] * 16, line_den_coeff=one,
        samp_num_coeff=samples + [0.0] * 16, samp_den_coeff=one,
    )  # fmt: skip


@pytest.fixture(params=["affine", "gcps", "rpcs"])
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> RawScene:
    placed: dict[str, dict[str, Any]] = {
        "affine": {"transform": TO_MAP},
        "gcps": {"gcps": _gcps()},
        "rpcs": {"rpcs": _rpcs(), "crs": None},
    }
    return RawScene(tmp_path, **placed[request.param])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_labels_on_the_map_land_on_their_pixels(raw: RawScene, export: Export) -> None:
    masks = raw.export(export, metadata_format="Classified_Tiles")
    boxes = raw.export(export)
    assert len(masks.data.chips) == 3 * 4
    wrong = labelled = 0
    for chip in masks.data.chips:
        np.testing.assert_array_equal(read_chip_image(chip), raw.truth.gathered(raw.pixels, chip, TILE))
        expected = raw.truth.gathered(raw.mask, chip, TILE)
        wrong += int((read_class_mask(chip) != expected).sum())
        labelled += int((expected > 0).sum())
    # Control points and RPCs are solved for, to some millionths of a pixel.
    assert wrong <= 2 < 2000 < labelled
    for chip in boxes.data.chips:
        found, expected_boxes = read_boxes(chip), raw.truth.boxes(chip, TILE)
        assert same_boxes(found, expected_boxes)
    definition = json.loads((boxes.folder / "esri_model_definition.emd").read_text())
    assert definition["ImageSpaceUsed"] == "PIXEL_SPACE"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("lean", [(0.0, -0.3), (0.3, 0.05), (0.1, 0.4), (-0.5, 0.0)])
def test_in_image_space_height_points_up(tmp_path: Path, export: Export, lean: tuple[float, float]) -> None:
    raw = RawScene(tmp_path, rpcs=_rpcs(lean), crs=None)
    done = raw.export(
        export, reference_system="IMAGE_SPACE", metadata_format="Classified_Tiles", tile_size_y=32
    )
    longest = np.zeros(2)
    longest[int(np.argmax(np.abs(lean)))] = np.sign(lean[int(np.argmax(np.abs(lean)))])
    for chip in done.data.chips:
        to_grid = raw.truth.to_grid(chip)
        up = np.array(to_grid @ (0, -1)) - np.array(to_grid @ (0, 0))
        assert up == pytest.approx(longest, abs=1e-9)
        np.testing.assert_array_equal(read_chip_image(chip), raw.truth.gathered(raw.pixels, chip, TILE))
        differs = read_class_mask(chip) != raw.truth.gathered(raw.mask, chip, TILE)
        assert differs.sum() <= 1
    # All of the image is in some chip, and no chip reaches outside.
    seen = np.zeros((ROWS, COLS), dtype=bool)
    rows, cols = np.indices((ROWS, COLS))
    for chip in done.data.chips:
        at = raw.truth.gathered(np.stack([rows, cols]) + 1, chip, TILE)
        assert (at > 0).all()
        seen[at[0] - 1, at[1] - 1] = True
    assert seen.all()


def test_mask_polygons_are_brought_to_the_image_too(tmp_path: Path, export: Export) -> None:
    raw = RawScene(tmp_path, transform=TO_MAP)
    corners = [TO_MAP @ corner for corner in ((0, 0), (80, 0), (80, ROWS), (0, ROWS))]
    mask = tmp_path / "mask.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.Polygon(corners)], crs=4326).to_file(mask)
    done = raw.export(export, input_mask_polygons=str(mask))
    origins = {round((raw.truth.to_grid(chip) @ (0, 0))[0]) for chip in done.data.chips}
    assert origins == {0, 30}


def test_an_image_without_any_place_needs_no_map_when_nothing_comes_from_there(
    tmp_path: Path, export: Export
) -> None:
    raw = RawScene(tmp_path, crs=None)
    with pytest.raises(BadInputError, match="RPCs"):
        raw.export(export)
    done = raw.export(export, metadata_format="Export_Tiles", input_class_data=None)
    assert len(done.data.chips) == 3 * 4
    label = write_raster(tmp_path / "label.tif", raw.mask[np.newaxis], Affine.identity(), crs=None)
    tiles = raw.export(export, metadata_format="Classified_Tiles", input_class_data=label)
    for chip in tiles.data.chips:
        np.testing.assert_array_equal(read_class_mask(chip), raw.truth.gathered(raw.mask, chip, TILE))


def test_raw_images_are_no_mosaic(tmp_path: Path, export: Export) -> None:
    first, second = RawScene(tmp_path, transform=TO_MAP), RawScene(tmp_path, "b", seed=2, transform=TO_MAP)
    with pytest.raises(BadInputError, match="PROCESS_ITEMS_SEPARATELY"):
        first.export(export, input_raster=[first.raster, second.raster])
    done = first.export(
        export,
        input_raster=[first.raster, second.raster],
        processing_mode="PROCESS_ITEMS_SEPARATELY",
        metadata_format="Classified_Tiles",
    )
    assert len(done.data.chips) == 2 * 3 * 4
    for number, chip in enumerate(done.data.chips):
        pixels = (first, second)[number // 12].pixels
        np.testing.assert_array_equal(read_chip_image(chip), first.truth.gathered(pixels, chip, TILE))
        np.testing.assert_array_equal(read_class_mask(chip), first.truth.gathered(first.mask, chip, TILE))


def test_pairs_of_raw_images_stay_pairs(tmp_path: Path, export: Export) -> None:
    scenes = [RawScene(tmp_path, f"raw{seed}", seed=seed, transform=TO_MAP) for seed in range(4)]
    options = {"processing_mode": "PROCESS_ITEMS_SEPARATELY", "metadata_format": "Export_Tiles"}
    names = [scene.raster for scene in scenes]
    done = scenes[0].export(export, input_raster=names[:2], additional_input_raster=names[2:], **options)
    for number, chip in enumerate(done.data.chips):
        first, second = scenes[number // 12].pixels, scenes[2 + number // 12].pixels
        np.testing.assert_array_equal(read_chip_image(chip), scenes[0].truth.gathered(first, chip, TILE))
        np.testing.assert_array_equal(read_chip_image2(chip), scenes[0].truth.gathered(second, chip, TILE))
    with pytest.raises(BadInputError, match="as many"):
        scenes[0].export(export, input_raster=names[:2], additional_input_raster=names[2:3], **options)
    small = write_raster(tmp_path / "small.tif", scenes[0].pixels[:, :50], TO_MAP, crs="EPSG:4326")
    with pytest.raises(BadInputError, match="must have the size"):
        scenes[0].export(export, additional_input_raster=[small], **options)
