"""Every pixel and every box of every chip against the whole raster, whatever the grid and the cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.export import candidates, sources
from tasks.training_data import read_boxes, read_chip_image, read_class_mask
from tests.unit.export.oracle import same_boxes

MakeScene = Callable[..., Any]
Export = Callable[..., Any]

# An export takes a while: a failure is shown as it was found, not made smaller.
few = hypothesis_settings(
    max_examples=4,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ROWS, COLS = 90, 121


def _positions(size: int, tile: int, stride: int) -> list[int]:
    """Chips from the upper left; the last one is moved inward."""
    regular = list(range(0, max(size - tile, 0) + 1, stride))
    return regular if regular[-1] + tile >= size else [*regular, size - tile]


@few
@given(
    seed=st.integers(0, 2**16),
    tile=st.tuples(st.integers(16, 60), st.integers(16, 60)),
    stride=st.tuples(st.integers(20, 70), st.integers(20, 70)),
    blocks=st.sampled_from(
        [{}, {"blockxsize": 16, "blockysize": 64}, {"tiled": False, "blockysize": 1}, {"tiled": False}]
    ),
    tract_px=st.integers(10, 150),
    piece=st.tuples(st.integers(3, 100), st.integers(3, 150)),
    chips_per_part=st.integers(1, 60),
)
def test_any_grid_any_blocks_any_cut(
    make_scene: MakeScene,
    export: Export,
    seed: int,
    tile: tuple[int, int],
    stride: tuple[int, int],
    blocks: dict[str, Any],
    tract_px: int,
    piece: tuple[int, int],
    chips_per_part: int,
) -> None:
    scene = make_scene(seed, rows=ROWS, cols=COLS, count=12, name=f"scene-{seed}", **blocks)
    options = {
        "tile_size": tile[1],
        "tile_size_y": tile[0],
        "stride_size": stride[1],
        "stride_size_y": stride[0],
        "chips_per_part": chips_per_part,
        "output_nofeature_tiles": "ALL_TILES",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "_tract_px", lambda *_: tract_px)
        patch.setattr(sources.ItemSources, "piece", lambda _: piece)
        masks = export(scene, metadata_format="Classified_Tiles", **options)
        boxes = export(scene, metadata_format="PASCAL_VOC_rectangles", **options)
    places = [
        (row, col)
        for row in _positions(ROWS, tile[0], stride[0])
        for col in _positions(COLS, tile[1], stride[1])
    ]
    assert len(masks.data.chips) == len(boxes.data.chips) == len(places)
    for chip, (row, col) in zip(masks.data.chips, places, strict=True):
        # Dense numbers, row by row, from the upper left.
        assert tuple(scene.truth.to_grid(chip) @ (0, 0)) == pytest.approx((col, row), abs=1e-6)
        here = np.s_[..., row : row + tile[0], col : col + tile[1]]
        np.testing.assert_array_equal(read_chip_image(chip), scene.pixels[here])
        np.testing.assert_array_equal(read_class_mask(chip), scene.mask[here])
    for chip in boxes.data.chips:
        assert same_boxes(read_boxes(chip), scene.truth.boxes(chip, tile))


@few
@given(
    seed=st.integers(0, 2**16),
    tile=st.tuples(st.integers(16, 50), st.integers(16, 50)),
    tract_px=st.integers(10, 150),
    quarter=st.sampled_from([90, 180, 270]),
)
def test_quarters_are_the_grid_s_own_pixels(
    make_scene: MakeScene, export: Export, seed: int, tile: tuple[int, int], tract_px: int, quarter: int
) -> None:
    scene = make_scene(seed, rows=ROWS, cols=COLS, count=12, name=f"scene-{seed}")
    options = {
        "tile_size": tile[1],
        "tile_size_y": tile[0],
        "stride_size": 60,
        "rotation_angle": quarter,
        "output_nofeature_tiles": "ALL_TILES",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "_tract_px", lambda *_: tract_px)
        masks = export(scene, metadata_format="Classified_Tiles", **options)
        boxes = export(scene, **options)
    angles = list(range(0, 360, quarter))
    places = [
        (row, col, angle)
        for row in _positions(ROWS, tile[0], 60)
        for col in _positions(COLS, tile[1], 60)
        for angle in angles
    ]
    assert len(masks.data.chips) == len(places)
    for chip, (row, col, angle) in zip(masks.data.chips, places, strict=True):
        image, mask = read_chip_image(chip), read_class_mask(chip)
        # By the georeference, and for square chips also by turning the unturned chip.
        np.testing.assert_array_equal(image, scene.truth.gathered(scene.pixels, chip, tile))
        np.testing.assert_array_equal(mask, scene.truth.gathered(scene.mask, chip, tile))
        if tile[0] == tile[1] or angle == 180:
            window = scene.pixels[:, row : row + tile[0], col : col + tile[1]]
            np.testing.assert_array_equal(image, np.rot90(window, -angle // 90, axes=(1, 2)))
        centre = scene.truth.to_grid(chip) @ (tile[1] / 2, tile[0] / 2)
        assert np.abs(np.array(centre) - (col + tile[1] / 2, row + tile[0] / 2)).max() <= 0.5 + 1e-6
    for chip in boxes.data.chips:
        assert same_boxes(read_boxes(chip), scene.truth.boxes(chip, tile))


@few
@given(seed=st.integers(0, 2**16), angle=st.sampled_from([30.0, 37.5, 100.0, 200.0]))
def test_other_angles_are_burnt_in_the_chip_s_frame(
    make_scene: MakeScene, export: Export, seed: int, angle: float
) -> None:
    tile = (33, 48)
    # A plane: a blend of its pixels is the plane itself.
    col, row = np.meshgrid(np.arange(COLS) + 0.5, np.arange(ROWS) + 0.5)
    plane = (3 * col - 2 * row + 500).astype(np.float32)[np.newaxis]
    scene = make_scene(seed, rows=ROWS, cols=COLS, count=12, name=f"scene-{seed}", pixels=plane)
    options = {
        "tile_size": tile[1],
        "tile_size_y": tile[0],
        "stride_size": 60,
        "rotation_angle": angle,
        "output_nofeature_tiles": "ALL_TILES",
    }
    masks = export(scene, metadata_format="Classified_Tiles", **options)
    boxes = export(scene, **options)
    angles = [k * angle for k in range(12) if k * angle < 360]
    assert len(masks.data.chips) == len(_positions(ROWS, 33, 60)) * len(_positions(COLS, 48, 60)) * len(
        angles
    )
    y, x = np.mgrid[0 : tile[0], 0 : tile[1]] + 0.5
    truth = scene.truth
    for number, chip in enumerate(masks.data.chips):
        to_grid = truth.to_grid(chip)
        turn = np.degrees(np.arctan2(-to_grid.d, to_grid.a)) % 360
        assert turn == pytest.approx(angles[number % len(angles)], abs=1e-6)
        at = to_grid @ (x, y)
        inside = (at[0] >= 0) & (at[0] < COLS) & (at[1] >= 0) & (at[1] < ROWS)
        deep = (at[0] >= 0.5) & (at[0] <= COLS - 0.5) & (at[1] >= 0.5) & (at[1] <= ROWS - 0.5)
        image, mask = read_chip_image(chip)[0], read_class_mask(chip)
        np.testing.assert_allclose(image[deep], (3 * at[0] - 2 * at[1] + 500)[deep], atol=1e-2)
        assert not image[~inside].any()
        burnt = truth.burnt(truth.in_chip(chip), truth.values, tile)
        np.testing.assert_array_equal(mask, np.where(inside, burnt, 0))
    for chip in boxes.data.chips:
        assert same_boxes(read_boxes(chip), truth.boxes(chip, tile))


def test_the_record_s_corners_are_the_chip_s(make_scene: MakeScene, export: Export) -> None:
    from tasks.export import cut
    from tasks.store import ObjectStore

    scene = make_scene(rows=ROWS, cols=COLS)
    done = export(scene, rotation_angle=30, tile_size=48, tile_size_y=33, stride_size=60)
    parts = range(len(done.plan.parts))
    results = [cut.read_result(ObjectStore(), done.plan.folder_uri, part) for part in parts]
    results = [
        cut.read_result(ObjectStore(), done.plan.folder_uri, part) for part in range(len(done.plan.parts))
    ]
    records = [record for result in results if result is not None for record in result.chips]
    assert len(records) == len(done.data.chips) > 12
    for record, chip in zip(records, done.data.chips, strict=True):
        transform = scene.truth.transform @ scene.truth.to_grid(chip)
        corners = [transform @ corner for corner in ((0, 0), (48, 0), (48, 33), (0, 33))]
        assert record.corners == pytest.approx(np.ravel(corners), abs=1e-5)


def test_cells_that_are_not_square(make_scene: MakeScene, export: Export) -> None:
    transform = Affine(0.25, 0, 500_000.0, 0, -2.0, 5_000_000.0)
    scene = make_scene(rows=ROWS, cols=COLS, transform=transform)
    masks = export(scene, metadata_format="Classified_Tiles", tile_size=40)
    boxes = export(scene, tile_size=40)
    assert len(masks.data.chips) == len(boxes.data.chips) > 3
    for chip, box_chip in zip(masks.data.chips, boxes.data.chips, strict=True):
        np.testing.assert_array_equal(read_class_mask(chip), scene.truth.gathered(scene.mask, chip, (40, 40)))
        assert same_boxes(read_boxes(box_chip), scene.truth.boxes(box_chip, (40, 40)))
    assert masks.data.cell_size == (0.25, 2.0)


@pytest.mark.parametrize(
    ("chip_format", "dtype"),
    [
        *(("TIFF", dtype) for dtype in ("uint8", "int16", "float32", "float64")),
        *(("MRF", dtype) for dtype in ("uint8", "uint32", "float32")),
    ],
)
def test_any_type_and_any_number_of_bands(
    make_scene: MakeScene, export: Export, chip_format: str, dtype: str
) -> None:
    random = np.random.default_rng(5)
    low = 0 if dtype.startswith("u") else -30_000
    pixels = random.uniform(low, 60_000 if dtype[-2:] not in ("t8", "16") else 120, (4, 50, 60)).astype(dtype)
    scene = make_scene(rows=50, cols=60, count=4, pixels=pixels, photometric="MINISBLACK")
    done = export(scene, chip_format=chip_format, tile_size=32, output_nofeature_tiles="ALL_TILES")
    for chip in done.data.chips:
        found = read_chip_image(chip)
        assert found.dtype == pixels.dtype
        np.testing.assert_array_equal(found, scene.truth.gathered(pixels, chip, (32, 32)))
