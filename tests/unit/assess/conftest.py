"""A little world: a raster's footprint, labels on it, and a store in a local folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from tasks.settings import settings

WriteLayer = Callable[..., str]
WriteRaster = Callable[..., str]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "root").mkdir()
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps([str(tmp_path)]))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.fixture
def write_layer(world: Path) -> WriteLayer:
    """``(name, boxes, crs="EPSG:32612", to_crs=None, **fields)`` writes boxes as a layer, gives its path."""

    def write(
        name: str,
        boxes: Sequence[tuple[float, float, float, float]],
        *,
        crs: str = "EPSG:32612",
        to_crs: str | None = None,
        **fields: Any,
    ) -> str:
        frame = geopandas.GeoDataFrame(fields, geometry=[shapely.box(*box) for box in boxes], crs=crs)
        if to_crs:
            frame = frame.to_crs(to_crs)
        path = world / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_file(path, engine="pyogrio")
        return str(path)

    return write


@pytest.fixture
def write_raster(world: Path) -> WriteRaster:
    """``(name, values, left, top, cell=1, nodata=None, crs=...)`` writes a GeoTIFF, gives its path."""

    def write(
        name: str,
        values: np.ndarray,
        left: float,
        top: float,
        *,
        cell: float = 1.0,
        nodata: float | None = None,
        crs: str | None = "EPSG:32612",
    ) -> str:
        values = values if values.ndim == 3 else values[None]
        path = world / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=values.shape[2],
            height=values.shape[1],
            count=values.shape[0],
            dtype=values.dtype,
            crs=crs,
            transform=Affine(cell, 0, left, 0, -cell, top),
            nodata=nodata,
        ) as target:
            target.write(values)
        return str(path)

    return write
