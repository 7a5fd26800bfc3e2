"""Samples of awkward chips: without data in places, of several sizes, of other types, larger than memory."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from torch.utils.data import DataLoader

from tasks.labels import ClassSchema
from tasks.train import datasets
from tasks.train.augmentation import DEFAULT, NONE
from tasks.train.datasets import IGNORED, InstanceChips, LabelChips, ObjectChips, PixelChips, collate_pixels
from tasks.train.normalisation import Normalisation, check_scale, normalisation_of
from tasks.train.recipes import Recipe, recipe_of
from tasks.training_data import Chip, TrainingData, read_chip
from tasks.training_data.images import decode_known
from tasks.training_data.reader import chip_statistics
from tasks.training_data.tiff import encode_mask

MakeData = Callable[..., TrainingData]
SCHEMA = ClassSchema.from_values({3: "Round", 7: "Square"})
CUSTOM = recipe_of("CUSTOM", [["rotate", "(15,35);1"], ["zoom", "(1.1,1.4);1"], ["contrast", "(0.8,1.2);1"]])


def scale(bands: int = 4) -> Normalisation:
    return Normalisation((0.0,) * bands, (1000.0,) * bands, (0.3,) * bands, (0.1,) * bands, imagenet=False)


def options(size: int | None = 32, recipe: Recipe = NONE, **changes: Any) -> dict[str, Any]:
    return {"normalisation": scale(), "size": size, "recipe": recipe, "multiple": 32, **changes}


def tiles(
    folder: Path,
    dtype: str = "float32",
    *,
    shapes: tuple[tuple[int, int], ...] = ((48, 48),),
    nodata: Any = None,
) -> list[Chip]:
    """Chips of four bands: 300 on the ground, 600 where the label is 3; no data in the upper left corner."""
    chips = []
    for number, (rows, cols) in enumerate(shapes):
        pixels = np.full((4, rows, cols), 300, dtype)
        mask = np.zeros((rows, cols), np.uint8)
        mask[rows // 2 :, cols // 2 :] = 3
        pixels[:, mask == 3] = 600
        if nodata is not None:
            pixels[:, :8, :8] = nodata
            pixels[1, :, -1] = nodata  # one band only
        image, label = folder / f"{number}.tif", folder / f"{number}_label.tif"
        shared = {
            "driver": "GTiff",
            "height": rows,
            "width": cols,
            "transform": from_origin(0, 0, 1, 1),
        }
        given = None if nodata is None or nodata != nodata else nodata
        with rasterio.open(image, "w", count=4, dtype=dtype, nodata=given, **shared) as target:
            target.write(pixels)
        with rasterio.open(label, "w", count=1, dtype="uint8", **shared) as target:
            target.write(mask, 1)
        chips.append(Chip(str(number), image, label, None, SCHEMA, "Classified_Tiles"))
    return chips


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint16", 65535), ("float32", float("nan")), ("float32", -9999)]
)
@pytest.mark.parametrize("recipe", [NONE, DEFAULT, CUSTOM], ids=["none", "default", "custom"])
def test_what_holds_no_data_is_unknown_and_looks_as_in_inference(
    tmp_path: Path, dtype: str, nodata: float, recipe: Recipe
) -> None:
    [chip] = tiles(tmp_path, dtype, nodata=nodata)
    pixels, known = read_chip(chip)
    assert known is not None
    assert not known[:, :8, :8].any()
    assert (~known).sum() == 4 * 64 + 48
    assert not pixels[~known].any()
    found = chip_statistics(chip)
    assert (found.minimum.tolist(), found.maximum.tolist()) == ([300.0] * 4, [600.0] * 4)
    for number in range(4):
        image, labels = PixelChips([chip], **options(size=48, recipe=recipe, multiple=16))[(0, number)]
        assert image.isfinite().all()
        lost = labels == IGNORED
        assert 0 < int(lost.sum()) < 48 * 48
        middle = torch.nn.functional.max_pool2d((~lost)[None, None].float(), 5, 1, 2)[0, 0] == 0
        nothing = torch.from_numpy(scale().nothing)
        torch.testing.assert_close(image[:, middle], nothing[:, None].expand(-1, int(middle.sum())))
        # Where one band of four holds data there is something to learn.
        assert {0, 1, IGNORED} >= set(torch.unique(labels).tolist())


def test_a_mask_beside_a_chip_makes_its_pixels_unknown(tmp_path: Path) -> None:
    [chip] = tiles(tmp_path, "uint16")
    known = np.random.default_rng(2).random((48, 48)) < 0.8
    chip.image.with_name(chip.image.name + ".msk").write_bytes(encode_mask(known, 4))
    labels = PixelChips([chip], **options(size=None, multiple=16))[(0, 0)][1]
    np.testing.assert_array_equal(labels.numpy() == IGNORED, ~known)


def test_ordinary_chips_hold_data_everywhere(make_data: MakeData) -> None:
    pixels, known = read_chip(make_data(count=1).chips[0])
    assert known is None
    assert pixels.dtype == np.uint8


def test_an_alpha_band_is_a_band(tmp_path: Path) -> None:
    pixels = np.full((4, 8, 8), 9, np.uint8)
    pixels[3, :4] = 0
    profile = {"driver": "GTiff", "height": 8, "width": 8, "count": 4, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(tmp_path / "rgbn.tif", "w", alpha="unspecified", **profile) as target:
        target.write(pixels)
        target.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
    found, known = decode_known(tmp_path / "rgbn.tif")
    assert known is None
    np.testing.assert_array_equal(found, pixels)


def test_statistics_leave_out_what_holds_no_data(make_data: MakeData, tmp_path: Path) -> None:
    chips = tiles(tmp_path, "float32", shapes=((48, 48),) * 3, nodata=-9999)
    data = replace(make_data(count=2), chips=chips, band_names=tuple("abcd"), declared_stats=())
    found = normalisation_of([data], np.dtype(np.float32))
    assert (found.minimum, found.maximum) == ((300.0,) * 4, (600.0,) * 4)
    check_scale([replace(data, declared_stats=data.band_stats)])


def test_chips_of_several_sizes_make_batches(tmp_path: Path) -> None:
    chips = tiles(tmp_path, shapes=((48, 48), (20, 70), (96, 64), (10, 10)))
    training = PixelChips(chips, **options(size=32))
    images, labels = collate_pixels([training[(index, 5)] for index in range(4)])
    assert images.shape == (4, 4, 32, 32)
    # The small ones are filled, not enlarged: their objects keep their size.
    assert int((labels[3] == 1).sum()) == 25
    assert int((labels[3] == IGNORED).sum()) == 32 * 32 - 100
    whole = PixelChips(chips, **options(size=None))
    assert [tuple(whole[(index, 0)][0].shape[1:]) for index in range(4)] == [
        (32, 32),
        (32, 64),
        (96, 64),
        (32, 32),
    ]
    images, labels = collate_pixels([whole[(index, 0)] for index in range(4)])
    assert images.shape == (4, 4, 96, 64)
    assert (labels[0, 32:] == IGNORED).all()
    assert (labels[2] != IGNORED).all()


def boxed(data: TrainingData, **changes: Any) -> ObjectChips:
    given = {"normalisation": normalisation_of([data], np.dtype(np.uint8)), "recipe": NONE, "multiple": 32}
    return ObjectChips(data.chips, **{**given, "size": None, **changes})


def test_resized_chips_have_resized_boxes(make_data: MakeData) -> None:
    data = make_data(count=3, size=96)
    for index in range(3):
        plain, target = boxed(data)[(index, 0)]
        large, enlarged = boxed(data, factor=2.0)[(index, 0)]
        assert (plain.shape, large.shape) == ((3, 96, 96), (3, 192, 192))
        torch.testing.assert_close(enlarged["boxes"], 2 * target["boxes"])
        # The picture is the same: what is bright stays in the boxes.
        torch.testing.assert_close(large[:, ::2, ::2], plain, atol=2.2, rtol=0)
    small, shrunk = boxed(data, factor=0.5, size=32)[(0, 3)]
    assert small.shape == (3, 32, 32)
    sizes = shrunk["boxes"][:, 2:] - shrunk["boxes"][:, :2]
    assert 0 < sizes.max() <= 14.5  # 28 pixels at most, halved


@pytest.mark.parametrize("recipe", [DEFAULT, CUSTOM], ids=["default", "custom"])
def test_boxes_and_masks_of_objects_agree(make_data: MakeData, recipe: Recipe) -> None:
    data = make_data(count=6, size=96)
    chips = []
    for chip in data.chips:
        numbers = np.zeros((96, 96), np.uint8)
        numbers[20:50, 10:40], numbers[60:90, 50:80] = 1, 4
        label = chip.image.with_name(f"{chip.stem}_numbers.tif")
        with rasterio.open(label, "w", driver="GTiff", height=96, width=96, count=1, dtype="uint8") as target:
            target.write(numbers, 1)
        chips.append(replace(chip, metadata_format="RCNN_Masks", label=None, labels={7: label}))
    scaled = normalisation_of([data], np.dtype(np.uint8))
    shared: dict[str, Any] = {"normalisation": scaled, "multiple": 32, "recipe": recipe}
    instances = InstanceChips(chips, size=64, **shared)
    boxes = ObjectChips(chips, size=64, **shared)
    objects = 0
    for number in range(12):
        _, target = instances[(number % 6, number)]
        for mask, (left, top, right, bottom) in zip(
            target["masks"], target["boxes"].int().tolist(), strict=True
        ):
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            assert mask[top, :].any()
            assert mask[bottom - 1, :].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()
            objects += 1
        # The same draw moves boxes as it moves masks; a box around a turned box is no smaller.
        _, other = boxes[(number % 6, number)]
        for box in target["boxes"]:
            near = (other["boxes"][:, :2] <= box[:2] + 1.5).all(1) & (
                other["boxes"][:, 2:] >= box[2:] - 1.5
            ).all(1)
            assert near.any()
    assert objects > 8
    whole = InstanceChips(chips, **{**shared, "size": None, "recipe": NONE})[(0, 0)][1]
    assert whole["boxes"].tolist() == [[10, 20, 40, 50], [50, 60, 80, 90]]
    assert whole["labels"].tolist() == [2, 2]


def test_a_chip_of_objects_may_show_none(tmp_path: Path) -> None:
    [chip] = tiles(tmp_path)
    empty = replace(chip, metadata_format="RCNN_Masks", label=None, labels={})
    for size in (32, None):
        _, target = InstanceChips([empty], **options(size=size))[(0, 0)]
        assert target["masks"].shape == (0, 32, 32)
        assert target["boxes"].shape == (0, 4)


@pytest.mark.parametrize("recipe", [DEFAULT, CUSTOM], ids=["default", "custom"])
def test_windows_of_labelled_chips_come_from_the_scaled_chip(tmp_path: Path, recipe: Recipe) -> None:
    chips = [
        replace(chip, values=(7,)) for chip in tiles(tmp_path, shapes=((40, 60), (90, 70)), nodata=-9999)
    ]
    training = LabelChips(chips, output=64, **options(size=32, recipe=recipe))
    for draw in range(4):
        image, truth = training[(draw % 2, draw)]
        assert image.shape == (4, 32, 32)
        assert image.isfinite().all()
        assert truth.tolist() == [0, 1]
    assert LabelChips(chips, output=64, **options(size=None))[(0, 0)][0].shape == (4, 64, 64)


def test_memory_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chips = tiles(tmp_path, "uint16", shapes=((128, 128),) * 40)
    each = 128 * 128 * (4 * 2 + 1)  # bytes of the pixels and of their labels
    monkeypatch.setattr(datasets, "_CACHE_BYTES", 10 * each)
    training = PixelChips(chips, **options(size=128, recipe=DEFAULT))
    training[(0, 0)]  # what is loaded once
    tracemalloc.start()
    for index in range(40):
        training[(index, index)]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Each with some bytes that say what it is.
    assert len(training._cache) == 9
    assert training._cache.bytes <= 10 * each
    assert held < each
    assert peak < 8 * each  # a few copies of one chip on its way
    again = [training[(index, 1)] for index in (0, 39)]
    fresh = PixelChips(chips, **options(size=128, recipe=DEFAULT))
    for sample, index in zip(again, (0, 39), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(sample, fresh[(index, 1)], strict=True))


def test_processes_that_load_share_what_they_have_decoded(tmp_path: Path) -> None:
    training = PixelChips(tiles(tmp_path, shapes=((48, 48),) * 8), **options(size=32))
    draws: Any = [(index, 0) for index in range(8)]
    loader = DataLoader(training, sampler=draws, batch_size=2, num_workers=2, collate_fn=collate_pixels)
    first = list(loader)
    assert len(training._cache) == 8
    for chip in training.chips:
        chip.image.unlink()
    for (images, labels), (others, known) in zip(first, loader, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, known)
    # A process that is not forked has a cache of its own.
    assert len(pickle.loads(pickle.dumps(training))._cache) == 0
