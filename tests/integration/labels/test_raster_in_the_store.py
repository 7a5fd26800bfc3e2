"""Label rasters, their tables and class schema files on a real S3 server: as local ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyogrio
import pytest
import rasterio
from affine import Affine

from tasks.errors import NotFoundError
from tasks.imagery import Window, grid_of_raster, inspect_raster
from tasks.labels.raster import is_raster_labels, open_raster_labels, raster_classes
from tasks.labels.schema_file import read_schema_file
from tasks.settings import settings
from tasks.store import ObjectStore
from tests.integration.store.conftest import BUCKET, Server, as_setting, server

__all__ = ["server"]  # the fixture


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setenv("CHIPLINE_STORES", as_setting(server.admin))
    monkeypatch.setenv("CHIPLINE_ROOT", f"s3://{BUCKET}/root")
    settings.cache_clear()
    yield ObjectStore()
    settings.cache_clear()


def write(path: Path, values: Any, column: int = 0) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=values.shape[0], width=values.shape[1], dtype="uint8",
        crs="EPSG:32612", transform=Affine(0.5, 0, 500_000 + column * 0.5, 0, -0.5, 5_000_000),
        tiled=True, blockxsize=16, blockysize=16,
    ) as dataset:  # fmt: skip
        dataset.write(values, 1)
    return path


def test_a_prefix_of_rasters_with_tables_is_one_set_of_labels(store: ObjectStore, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4, (60, 80), dtype=np.uint8)
    prefix = f"s3://{BUCKET}/{tmp_path.name}/Bäume/"
    store.upload(write(tmp_path / "1.tif", values[:, :40]), prefix + "a.tif")
    store.upload(write(tmp_path / "2.tif", values[:, 40:], 40), prefix + "b.tif")
    store.upload(write(tmp_path / "all.tif", values), f"s3://{BUCKET}/{tmp_path.name}/all.tif")
    grid = grid_of_raster(inspect_raster(f"s3://{BUCKET}/{tmp_path.name}/all.tif"))
    assert is_raster_labels(prefix)
    assert raster_classes([prefix]).names == ("1", "2", "3")

    dbase = tmp_path / "table.dbf"
    pyogrio.write_dataframe(
        pandas.DataFrame({"Value": [1, 2, 3], "Class_name": ["Ahorn", "Bäume", "Straße"]}),
        dbase, driver="ESRI Shapefile", encoding="UTF-8",
    )  # fmt: skip
    store.upload(dbase, prefix + "a.tif.vat.dbf")
    store.upload(tmp_path / "table.cpg", prefix + "a.tif.vat.cpg")
    store.put(
        prefix + "b.tif.aux.xml",
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category/><Category>Ahorn</Category>'
        "<Category>Bäume</Category><Category>Straße</Category></CategoryNames></PAMRasterBand></PAMDataset>".encode(),
    )
    with open_raster_labels([prefix], grid) as labels:
        assert labels.schema.names == ("Ahorn", "Bäume", "Straße")
        np.testing.assert_array_equal(labels.read(Window(0, 0, 60, 80)), values)
        first = labels.identity
    store.delete(prefix + "a.tif.vat.dbf")
    with open_raster_labels([prefix], grid) as labels:
        assert labels.identity != first


def test_a_class_schema_file_is_an_object(store: ObjectStore, tmp_path: Path) -> None:
    uri = f"s3://{BUCKET}/{tmp_path.name}/classes.json"
    with pytest.raises(NotFoundError, match=r"classes\.json"):
        read_schema_file(uri)
    store.put(uri, b'{"classes": [{"value": 1, "name": "Tree"}]}')
    assert read_schema_file(uri).names == ("Tree",)
