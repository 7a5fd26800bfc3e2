"""Label files made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import geopandas
import pytest
import shapely

from tasks.settings import settings

LabelWriter = Callable[..., str]


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def write_labels(tmp_path: Path) -> LabelWriter:
    """Writes geometries with fields to a file and returns its path."""

    def _write(
        geometries: Sequence[shapely.Geometry | None],
        name: str = "labels.gpkg",
        crs: str | None = "EPSG:32612",
        layer: str | None = None,
        **fields: Sequence[Any],
    ) -> str:
        path = tmp_path / name
        frame = geopandas.GeoDataFrame(dict(fields), geometry=list(geometries), crs=crs)
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_file(path, engine="pyogrio", layer=layer or path.stem)
        return str(path)

    return _write
