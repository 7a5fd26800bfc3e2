"""Packages with small functions, imagery and a store in local folders; the host is the real one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from tasks.package import ModelDefinition, Package, open_package, write_dlpk
from tasks.settings import settings
from tasks.store import ObjectStore

_spec = importlib.util.spec_from_file_location("functions", Path(__file__).with_name("functions.py"))
assert _spec is not None
assert _spec.loader is not None
functions = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(functions)


@pytest.fixture(autouse=True)
def _local_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore()


def _of_brightness(folder: Path, name: str, function: str, text: str) -> Package:
    definition = ModelDefinition.model_validate(
        {
            "ModelType": "ImageClassification",
            "InferenceFunction": f"{function}.py",
            "ImageHeight": 80,
            "ImageWidth": 80,
            "ExtractBands": [0, 1, 2],
            "Classes": [
                {"Value": 1, "Name": "Dark", "Color": [10, 20, 30]},
                {"Value": 2, "Name": "Bright", "Color": [250, 240, 0]},
            ],
        }
    )
    path = folder / f"{name}.dlpk"
    write_dlpk(path, definition, {f"{function}.py": text.encode()})
    return open_package(path, folder / "unpacked")


@pytest.fixture
def classifier(tmp_path: Path) -> Package:
    """Classes Dark (1) and Bright (2) by a local mean; see functions.py."""
    return _of_brightness(tmp_path, "bright", "BrightClassifier", functions.CLASSIFIER)


@pytest.fixture
def scorer(tmp_path: Path) -> Package:
    """The classifier of this folder, offering scores for chips of 48 px."""
    return _of_brightness(tmp_path, "scorer", "ScoreClassifier", functions.CLASSIFIER + functions.SCORER)


@pytest.fixture
def detector(tmp_path: Path) -> Package:
    """A box around each blob of bright pixels; see functions.py."""
    definition = ModelDefinition.model_validate(
        {
            "ModelType": "ObjectDetection",
            "InferenceFunction": "BlobDetector.py",
            "ImageHeight": 128,
            "ImageWidth": 128,
            "ExtractBands": [0],
            "Classes": [{"Value": 7, "Name": "Blob", "Color": [200, 0, 200]}],
        }
    )
    path = tmp_path / "blobs.dlpk"
    write_dlpk(path, definition, {"BlobDetector.py": functions.DETECTOR.encode()})
    return open_package(path, tmp_path / "unpacked")


def _of_pairs(folder: Path, name: str, function: str, text: str) -> Package:
    definition = ModelDefinition.model_validate(
        {
            "ModelType": "ImageClassification",
            "ModelName": "ChangeDetector",
            "InferenceFunction": f"{function}.py",
            "ImageHeight": 72,
            "ImageWidth": 72,
            "ExtractBands": [0, 1, 2, 3],
            "Classes": [{"Value": 1, "Name": "Same"}, {"Value": 2, "Name": "Brighter", "Color": [250, 0, 0]}],
        }
    )
    path = folder / f"{name}.dlpk"
    write_dlpk(path, definition, {f"{function}.py": text.encode()})
    return open_package(path, folder / "unpacked")


@pytest.fixture
def pairs(tmp_path: Path) -> Package:
    """Classes Same (1) and Brighter (2) of two dates of two bands; see functions.py."""
    return _of_pairs(tmp_path, "pairs", "PairComparer", functions.PAIRS)


@pytest.fixture
def pair_scorer(tmp_path: Path) -> Package:
    """The same of means, offering scores."""
    return _of_pairs(tmp_path, "pair_scorer", "PairScorer", functions.PAIRS + functions.PAIR_SCORER)


@pytest.fixture
def objects(tmp_path: Path) -> Package:
    """Labels Dark and Bright by the mean of a crop; see functions.py."""
    definition = ModelDefinition.model_validate(
        {
            "ModelType": "ObjectClassification",
            "InferenceFunction": "MeanClassifier.py",
            "ImageHeight": 24,
            "ImageWidth": 24,
            "ExtractBands": [0],
            "Classes": [{"Value": 1, "Name": "Dark"}, {"Value": 2, "Name": "Bright", "Color": [250, 240, 0]}],
        }
    )
    path = tmp_path / "objects.dlpk"
    write_dlpk(path, definition, {"MeanClassifier.py": functions.OBJECTS.encode()})
    return open_package(path, tmp_path / "unpacked")


@pytest.fixture
def write_scene(tmp_path: Path) -> Callable[..., str]:
    """``write_scene(name, array, at=(0, 0), epsg=32612)``: a GeoTIFF with cells of 0.5; its path."""

    def write(
        name: str,
        array: NDArray[Any],
        at: tuple[int, int] = (0, 0),
        epsg: int = 32612,
        nodata: float | None = None,
    ) -> str:
        path = tmp_path / "imagery" / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        bands, rows, cols = array.shape
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=rows,
            width=cols,
            count=bands,
            dtype=array.dtype,
            crs=f"EPSG:{epsg}",
            transform=Affine(0.5, 0, 500_000 + 0.5 * at[1], 0, -0.5, 4_900_000 - 0.5 * at[0]),
            nodata=nodata,
            tiled=True,
            blockxsize=128,
            blockysize=128,
        ) as dataset:
            dataset.write(array)
        return str(path)

    return write


@pytest.fixture
def texture() -> NDArray[np.uint8]:
    """Smooth noise, (3, 300, 260)."""
    from scipy import ndimage

    rough = np.random.default_rng(5).random((3, 300, 260))
    smooth = ndimage.gaussian_filter(rough, (0, 5, 5))
    smooth -= smooth.min()
    scaled: NDArray[np.uint8] = (1 + 254 * smooth / smooth.max()).astype(np.uint8)
    return scaled


@pytest.fixture
def dots() -> NDArray[np.uint8]:
    """Separate bright squares of 6 to 20 px, (1, 400, 330)."""
    generator = np.random.default_rng(11)
    image = np.zeros((400, 330), np.uint8)
    for _ in range(3000):
        rows, cols = generator.integers(6, 20, 2)
        row, col = generator.integers(0, 400), generator.integers(0, 330)
        if not image[max(row - 1, 0) : row + rows + 1, max(col - 1, 0) : col + cols + 1].any():
            image[row : row + rows, col : col + cols] = 200
    return image[None]
