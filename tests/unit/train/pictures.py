"""Training data of pictures and of pairs of pictures, from the real scene in examples/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio

from tasks.labels import ClassSchema
from tasks.training_data import TrainingData, open_training_data
from tasks.training_data.sample import Sample
from tests.unit.training_data.exports import export

SCENE = Path(__file__).parents[3] / "examples" / "yellowstone_trees" / "west.tif"
CHANGED = ClassSchema.from_values({4: "Gone"})
NOTHING = ClassSchema(())
CELL = 0.5  # of what exports.py writes

Pixels = npt.NDArray[Any]


def scene_chips(count: int, size: int = 64, col: int = 512) -> list[Pixels]:
    """Chips side by side, (3, size, size) uint8."""
    with rasterio.open(SCENE) as source:
        windows = [
            rasterio.windows.Window(col + size * (n % 4), 1536 + size * (n // 4), size, size)
            for n in range(count)
        ]
        return [source.read(window=window) for window in windows]


def changed(chips: list[Pixels]) -> tuple[list[Pixels], list[Pixels]]:
    """The chips later, darker and with a blue square each, and where that is (value 4)."""
    rng = np.random.default_rng(1)
    after, masks = [], []
    for chip in chips:
        size = chip.shape[1]
        later, mask = (chip * 0.8).astype(np.uint8), np.zeros((size, size), np.uint8)
        row, col = rng.integers(0, size // 2, 2)
        square = slice(row, row + size // 2), slice(col, col + size // 2)
        later[:, *square] = np.array([30, 60, 220], np.uint8)[:, None, None]
        mask[square] = 4
        after.append(later)
        masks.append(mask)
    return after, masks


def write(
    folder: Path,
    metadata_format: str,
    first: list[Pixels],
    *,
    second: list[Pixels] | None = None,
    masks: list[Pixels] | None = None,
    west: float = 500_000.0,
) -> TrainingData:
    """The folder, opened; chips lie four in a row, in cells of half a metre."""
    samples = []
    for number, image in enumerate(first):
        size = image.shape[1]
        valid = np.ones((size, size), bool)
        place = (west + CELL * size * (number % 4), 5_000_000.0 - CELL * size * (number // 4))
        samples.append(
            Sample(
                number,
                image,
                valid,
                (CELL, 0.0, place[0], 0.0, -CELL, place[1]),
                mask=None if masks is None else masks[number],
                image2=None if second is None else second[number],
                valid2=None if second is None else valid,
            )
        )
    export(folder, metadata_format, samples, NOTHING if masks is None else CHANGED)
    return (
        open_training_data(folder)
        if folder.name not in ("A", "B")
        else open_training_data(folder, "Export_Tiles")
    )


def change_data(folder: Path, count: int = 12) -> TrainingData:
    """Pairs of dates with their change (Classified_Tiles of two rasters)."""
    before = scene_chips(count)
    after, masks = changed(before)
    return write(folder, "Classified_Tiles", before, second=after, masks=masks)


def sharp_data(folder: Path, count: int = 12) -> TrainingData:
    """Single pictures (Export_Tiles)."""
    return write(folder, "Export_Tiles", scene_chips(count))


def paired_data(folder: Path, count: int = 12) -> TrainingData:
    """Pictures, and their negatives of one band (Export_Tiles of two rasters)."""
    chips = scene_chips(count)
    return write(folder, "Export_Tiles", chips, second=[255 - chip[1:2] for chip in chips])


def two_sides(folder: Path, count: int = 8) -> TrainingData:
    """Pictures, and others of another place with red and blue exchanged (CycleGAN)."""
    write(folder / "A", "CycleGAN", scene_chips(count))
    others = [chip[::-1] for chip in scene_chips(count, col=1024)]
    write(folder / "B", "CycleGAN", others, west=600_000.0)
    return open_training_data(folder)
