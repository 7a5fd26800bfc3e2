"""Chips against the whole raster, and the properties that let work be cut and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely

from tasks.errors import LabelError, StoreError
from tasks.export import candidates, cut, inputs, plan, sources
from tasks.export.parameters import ExportParameters
from tasks.imagery import GridReader
from tasks.store import ObjectStore, Publication
from tasks.training_data import Chip, read_boxes, read_chip, read_chip_image, read_class_mask
from tests.unit.export.oracle import differences

MakeScene = Callable[..., Any]
Export = Callable[..., Any]


def _place(chip: Chip) -> tuple[int, int]:
    """(row, col) of a chip in the scene, from its georeference."""
    assert chip.footprint is not None
    xmin, _, _, ymax = chip.footprint
    return round((5_000_000.0 - ymax) / 0.5), round((xmin - 500_000.0) / 0.5)


def _around(array: npt.NDArray[Any], row: int, col: int, size: int) -> npt.NDArray[Any]:
    """A window of the last two axes, 0 outside."""
    pad = [(0, 0)] * (array.ndim - 2) + [(0, size), (0, size)]
    return np.pad(array, pad)[..., row : row + size, col : col + size]


@pytest.mark.parametrize(("tile", "stride"), [(64, 40), (64, 64), (50, 77), (150, 33)])
def test_every_pixel_of_every_tile_equals_the_whole_raster(
    make_scene: MakeScene, export: Export, tile: int, stride: int
) -> None:
    scene = make_scene()
    done = export(scene, metadata_format="Classified_Tiles", tile_size=tile, stride_size=stride)
    assert len(done.data.chips) >= 3
    for chip in done.data.chips:
        row, col = _place(chip)
        np.testing.assert_array_equal(read_chip_image(chip), _around(scene.pixels, row, col, tile))
        np.testing.assert_array_equal(read_class_mask(chip), _around(scene.mask, row, col, tile))


def test_every_box_equals_the_clipped_label(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene()
    done = export(scene)
    boxes_seen = 0
    for chip in done.data.chips:
        assert chip.footprint is not None
        frame = shapely.box(*chip.footprint)
        expected = []
        for geometry, value in zip(scene.frame.geometry, scene.frame["classvalue"], strict=True):
            part = shapely.intersection(geometry, frame)
            xmin, ymin, xmax, ymax = part.bounds
            if shapely.area(part) > 0 and min(xmax - xmin, ymax - ymin) > 0.0101:
                left, top = (xmin - chip.footprint[0]) / 0.5, (chip.footprint[3] - ymax) / 0.5
                right, bottom = (xmax - chip.footprint[0]) / 0.5, (chip.footprint[3] - ymin) / 0.5
                expected.append((value, left, top, right, bottom))
        found = read_boxes(chip)
        assert [box[0] for box in found] == [box[0] for box in expected]
        assert np.abs(np.array(found) - np.array(expected)).max() < 0.01
        boxes_seen += len(found)
    assert boxes_seen == done.manifest.details["classes"][0]["count"] + sum(
        item["count"] for item in done.manifest.details["classes"][1:]
    )


def test_only_chips_with_labels_are_cut_unless_all_are_wanted(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(count=2)
    some = export(scene, metadata_format="Classified_Tiles")
    every = export(scene, metadata_format="Classified_Tiles", output_nofeature_tiles="ALL_TILES")
    with_labels = {_place(chip) for chip in every.data.chips if read_class_mask(chip).any()}
    assert {_place(chip) for chip in some.data.chips} >= with_labels
    assert len(every.data.chips) == 4 * 5 > len(some.data.chips)


@pytest.mark.parametrize(
    ("chips_per_part", "tract_px", "piece"),
    [(1, 47, (33, 50)), (3, 300, (8, 8)), (7, 100, (500, 7)), (11, 64, (64, 64))],
)
def test_bytes_and_numbers_do_not_depend_on_how_the_work_is_cut(
    make_scene: MakeScene,
    export: Export,
    monkeypatch: pytest.MonkeyPatch,
    chips_per_part: int,
    tract_px: int,
    piece: tuple[int, int],
) -> None:
    scene = make_scene()
    whole = export(scene, output_location="whole", metadata_format="Classified_Tiles")
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "_tract_px", lambda *_: tract_px)
        patch.setattr(sources.ItemSources, "piece", lambda _: piece)
        name = f"cut-{chips_per_part}-{tract_px}"
        pieces = export(
            scene, output_location=name, metadata_format="Classified_Tiles", chips_per_part=chips_per_part
        )
    assert len(pieces.plan.parts) > len(whole.plan.parts)
    assert differences(pieces.files(), whole.files()) == []


@pytest.mark.parametrize("profile", [{"tiled": False, "blockysize": 1}, {"blockxsize": 16, "blockysize": 16}])
def test_bytes_do_not_depend_on_the_raster_s_blocks(
    make_scene: MakeScene, export: Export, profile: dict[str, Any]
) -> None:
    usual = export(make_scene(), output_location="usual")
    other = export(make_scene(name="other", **profile), output_location="other")
    assert differences(other.files(), usual.files()) == []


def test_the_order_of_the_parts_does_not_matter_and_finished_ones_are_not_cut_again(
    make_scene: MakeScene, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene()
    whole = export(scene, output_location="whole")
    parameters = ExportParameters(
        input_raster=[scene.raster],
        input_class_data=scene.labels,
        output_location="resumed",
        tile_size=64,
        stride_size=40,
        chips_per_part=3,
    )
    store = ObjectStore()
    made = plan.plan_in_force(store, parameters, inputs.inspect_inputs(parameters))
    plan.save_plan(store, made)
    last = len(made.parts) - 1
    cut.cut_part(store, made, last)

    # The next part dies in the middle of its chips.
    put = Publication.put_file
    calls = []

    def dies(self: Publication, *arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0])
        if len(calls) > 4:
            raise StoreError("The store is gone.", "Wait.")
        return put(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Publication, "put_file", dies)
        with pytest.raises(StoreError, match="gone"):
            cut.cut_part(store, made, 1)
    assert cut.read_result(store, made.folder_uri, 1) is None

    def never(*_: Any) -> None:
        raise AssertionError("a finished part was read again")

    with monkeypatch.context() as patch:
        patch.setattr(GridReader, "read", never)
        cut.cut_part(store, made, last)
    # Started again, now with another number of chips per part: the plan in the store stays in force.
    resumed = export(scene, output_location="resumed", chips_per_part=1000)
    assert len(resumed.plan.parts) == last + 1
    assert differences(resumed.files(), whole.files()) == []


def test_a_mosaic_is_cut_as_one_image(make_scene: MakeScene, export: Export, tmp_path: Path) -> None:
    scene = make_scene()
    halves = []
    for name, start, stop in (("left", 0, 100), ("right", 100, scene.pixels.shape[2])):
        path = tmp_path / f"{name}.tif"
        with rasterio.open(scene.raster) as source:
            profile = source.profile | {
                "width": stop - start,
                "transform": source.transform @ source.transform.translation(start, 0),
            }
        with rasterio.open(path, "w", **profile) as target:
            target.write(scene.pixels[:, :, start:stop])
        halves.append(str(path))
    whole = export(scene, output_location="whole")
    mosaic = export(scene, output_location="mosaic", input_raster=halves)
    same = {path: data for path, data in mosaic.files().items() if not path.endswith(".emd")}
    assert same == {path: data for path, data in whole.files().items() if not path.endswith(".emd")}


def test_items_are_cut_separately_with_one_running_number(make_scene: MakeScene, export: Export) -> None:
    first, second = make_scene(1, name="first"), make_scene(2, name="second", rows=90)
    alone = export(first, output_location="alone", start_index=100)
    done = export(
        first,
        input_raster=[first.raster, second.raster],
        processing_mode="PROCESS_ITEMS_SEPARATELY",
        start_index=100,
        chips_per_part=4,
    )
    numbers = [int(chip.stem) for chip in done.data.chips]
    assert numbers == list(range(100, 100 + len(numbers)))
    assert len(numbers) > len(alone.data.chips)
    for path, data in alone.files().items():
        if path.startswith(("images/", "labels/")):
            assert (done.folder / path).read_bytes() == data


def test_a_scene_smaller_than_a_chip_is_filled_with_zeros(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(rows=40, cols=50, count=4)
    done = export(scene, metadata_format="Classified_Tiles", output_nofeature_tiles="ALL_TILES")
    (chip,) = done.data.chips
    image, mask = read_chip_image(chip), read_class_mask(chip)
    assert image.shape == (3, 64, 64)
    assert not image[:, 40:].any()
    assert not image[:, :, 50:].any()
    assert not mask[40:].any()
    np.testing.assert_array_equal(mask[:40, :50], scene.mask)


def test_pixels_without_picture_carry_no_label_and_do_not_count(
    make_scene: MakeScene, export: Export
) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 150, 210), dtype=np.uint8)
    pixels[:, 30:70, 20:90] = 0
    pixels[0, 100:140, 100:200] = 0  # nodata in one band only: a valid pixel
    scene = make_scene(pixels=pixels, nodata=0)
    done = export(scene, metadata_format="Classified_Tiles", stride_size=64)
    expected = np.where(pixels.any(axis=0), scene.mask, 0)
    assert (expected != scene.mask).any()
    sums, count = np.zeros(3), 0
    for chip in done.data.chips:
        row, col = _place(chip)
        np.testing.assert_array_equal(read_class_mask(chip), _around(expected, row, col, 64))
        piece = _around(pixels, row, col, 64)
        sums += piece.sum(axis=(1, 2))
        count += int(piece.any(axis=0).sum())
        # The chip itself says where there is no picture.
        shown = piece.any(axis=0)
        known = read_chip(chip)[1]
        np.testing.assert_array_equal(np.ones((3, 64, 64), bool) if known is None else known, [shown] * 3)
    assert [stats.mean for stats in done.data.band_stats] == pytest.approx(sums / count)


def test_statistics_equal_numpy_on_all_chips(make_scene: MakeScene, export: Export) -> None:
    scene = make_scene(dtype="uint16", bands=5)
    done = export(scene, chips_per_part=2, cell_size=None)
    chips = np.stack([read_chip_image(chip) for chip in done.data.chips]).astype(np.float64)
    assert done.data.band_names == ("Band_1", "Band_2", "Band_3", "Band_4", "Band_5")
    for band, stats in enumerate(done.data.band_stats):
        values = chips[:, band]
        assert (stats.minimum, stats.maximum) == (values.min(), values.max())
        assert stats.mean == pytest.approx(values.mean(), rel=1e-12)
        assert stats.std == pytest.approx(values.std(), rel=1e-9)


def test_a_share_below_the_ratio_is_left_out_of_boxes_and_masks(
    make_scene: MakeScene, export: Export
) -> None:
    scene = make_scene()
    ratio = 0.5
    tiles = export(
        scene, output_location="a", metadata_format="Classified_Tiles", min_polygon_overlap_ratio=ratio
    )
    boxes = export(scene, output_location="b", min_polygon_overlap_ratio=ratio)
    everything = export(scene, output_location="c")
    areas = scene.frame.geometry.area.to_numpy()
    assert len(tiles.data.chips) == len(boxes.data.chips)
    for chip, tile in zip(boxes.data.chips, tiles.data.chips, strict=True):
        assert chip.footprint is not None
        shares = scene.frame.geometry.intersection(shapely.box(*chip.footprint)).area.to_numpy() / areas
        assert len(read_boxes(chip)) == int((shares >= ratio).sum())
        kept = scene.frame[shares >= ratio]
        oracle = rasterio.features.rasterize(
            zip(kept.geometry, kept["classvalue"], strict=True),
            out_shape=scene.mask.shape,
            transform=rasterio.transform.from_origin(500_000, 5_000_000, 0.5, 0.5),
            dtype="uint8",
        )
        row, col = _place(tile)
        np.testing.assert_array_equal(read_class_mask(tile), _around(oracle, row, col, 64))
    before = sum(len(read_boxes(chip)) for chip in everything.data.chips)
    assert sum(len(read_boxes(chip)) for chip in boxes.data.chips) < before


@pytest.mark.parametrize(("chip_format", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg")])
def test_other_chip_formats_keep_their_place(
    make_scene: MakeScene, export: Export, chip_format: str, suffix: str
) -> None:
    done = export(make_scene(), chip_format=chip_format)
    tiff = export(make_scene(), output_location="tiff")
    assert {chip.image.suffix for chip in done.data.chips} == {suffix}
    assert [chip.footprint for chip in done.data.chips] == [chip.footprint for chip in tiff.data.chips]
    assert [read_boxes(chip) for chip in done.data.chips] == [read_boxes(chip) for chip in tiff.data.chips]


def test_labels_that_change_after_planning_stop_the_part(make_scene: MakeScene) -> None:
    scene = make_scene()
    parameters = ExportParameters(
        input_raster=[scene.raster], input_class_data=scene.labels, output_location="x", tile_size=64
    )
    store = ObjectStore()
    made = plan.plan_in_force(store, parameters, inputs.inspect_inputs(parameters))
    scene.frame.iloc[:3].to_file(scene.labels, engine="pyogrio")
    with pytest.raises(LabelError, match="have changed"):
        cut.cut_part(store, made, 0)
