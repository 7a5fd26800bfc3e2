"""Training data on disk, drawn: bright squares on a dark ground, written by hand in the Esri layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.training_data import TrainingData, open_training_data

MakeData = Callable[..., TrainingData]
_CLASSES = [
    {"Value": 3, "Name": "Round", "Color": [1, 2, 3]},
    {"Value": 7, "Name": "Square", "Color": [4, 5, 6]},
    {"Value": 9, "Name": "Absent", "Color": [7, 8, 9]},
]


def _boxes(rng: np.random.Generator, size: int) -> list[tuple[int, int, int, int, int]]:
    found = []
    for _ in range(int(rng.integers(2, 5))):
        edge = int(rng.integers(12, 28))
        left, top = (int(value) for value in rng.integers(0, size - edge, size=2))
        found.append((int(rng.choice([3, 7])), left, top, left + edge, top + edge))
    return found


def _voc(boxes: list[tuple[int, int, int, int, int]]) -> str:
    objects = "".join(
        f"<object><name>{value}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for value, left, top, right, bottom in boxes
    )
    return f"<annotation>{objects}</annotation>"


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """Makes training data of ``count`` chips side by side; class 3 is reddish, class 7 bluish."""
    return make_training_data(tmp_path)


@pytest.fixture(scope="module")
def make_module_data(tmp_path_factory: pytest.TempPathFactory) -> MakeData:
    """The same, for data that several tests only read."""
    return make_training_data(tmp_path_factory.mktemp("data"))


def make_training_data(parent: Path) -> MakeData:
    """Makes training data below ``parent``, see :func:`make_data`."""

    def make(
        name: str = "data",
        *,
        metadata_format: str = "PASCAL_VOC_rectangles",
        count: int = 12,
        size: int = 128,
        seed: int = 0,
        placed: bool = True,
        classes: int = 2,
    ) -> TrainingData:
        folder = parent / name
        (folder / "images").mkdir(parents=True)
        (folder / "labels").mkdir()
        rng = np.random.default_rng(seed)
        tiles = metadata_format == "Classified_Tiles"
        for index in range(count):
            pixels = rng.integers(20, 60, size=(size, size, 3)).astype(np.uint8)
            mask = np.zeros((size, size), np.uint8)
            boxes = _boxes(rng, size)
            for value, left, top, right, bottom in boxes:
                pixels[top:bottom, left:right, 0 if value == 3 else 2] = 230
                mask[top:bottom, left:right] = value
            stem = f"{index:09d}"
            Image.fromarray(pixels).save(folder / "images" / f"{stem}.png")
            if placed:
                x, y = 500_000 + (index % 4) * size + 0.5, 5_000_000 - (index // 4) * size - 0.5
                (folder / "images" / f"{stem}.pgw").write_text(f"1\n0\n0\n-1\n{x}\n{y}\n")
            if tiles:
                Image.fromarray(mask).save(folder / "labels" / f"{stem}.png")
            else:
                (folder / "labels" / f"{stem}.xml").write_text(_voc(boxes))
        extension = "png" if tiles else "xml"
        (folder / "map.txt").write_text(f"images\\000000000.png  labels\\000000000.{extension} \r\n")
        cell = {"x": 1.0, "y": 1.0, "spatialReference": {"wkid": 32612, "latestWkid": 32612}}
        definition = {"MetaDataMode": metadata_format, "Classes": _CLASSES[:classes], "MinCellSize": cell}
        (folder / "esri_model_definition.emd").write_text(json.dumps(definition))
        stats = {"MetaDataMode": metadata_format, "NumBands": 3}
        (folder / "esri_accumulated_stats.json").write_text(json.dumps(stats))
        return open_training_data(folder)

    return make
