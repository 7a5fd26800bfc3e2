"""Rasters made on the spot: random pixels with known content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from tasks.settings import settings

Writer = Callable[..., str]


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", "[]")
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes an array (bands, rows, cols) as a tiled GeoTIFF and returns its path."""

    def _write(
        name: str,
        values: NDArray[Any],
        *,
        corner: tuple[float, float] = (500_000.0, 5_000_000.0),
        cell: float = 0.5,
        crs: str | None = "EPSG:32612",
        transform: Affine | None = None,
        **profile: Any,
    ) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path,
            "w",
            driver=profile.pop("driver", "GTiff"),
            count=values.shape[0],
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype,
            crs=crs,
            transform=transform or Affine(cell, 0, corner[0], 0, -cell, corner[1]),
            **{"tiled": True, "blockxsize": 32, "blockysize": 32, **profile},
        ) as dataset:
            dataset.write(values)
        return str(path)

    return _write


@pytest.fixture
def noise() -> NDArray[np.uint8]:
    """Pixels without a zero, (3, 150, 170)."""
    return np.random.default_rng(1).integers(1, 256, (3, 150, 170), dtype=np.uint8)
