"""Imagery on a real S3 server: the same answers as for local files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from tasks.errors import BadInputError, NotFoundError, RasterError
from tasks.imagery import GridReader, expand_rasters, grid_of_collection, inspect_raster, prefetch
from tasks.settings import settings
from tasks.store import ObjectStore
from tests.integration.store.conftest import BUCKET, Server, as_setting, server

__all__ = ["server"]  # the fixture


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setenv("CHIPLINE_STORES", as_setting(server.admin))
    monkeypatch.setenv("CHIPLINE_ROOT", f"s3://{BUCKET}/root")
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["s3://{BUCKET}/"]')
    settings.cache_clear()
    yield ObjectStore()
    settings.cache_clear()


@pytest.fixture
def values() -> Any:
    return np.random.default_rng(0).integers(1, 256, (3, 300, 320), dtype=np.uint8)


def write(path: Path, values: Any, column: int = 0) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=values.shape[1], width=values.shape[2], dtype="uint8",
        crs="EPSG:32612", transform=Affine(0.5, 0, 500_000 + column * 0.5, 0, -0.5, 5_000_000),
        tiled=True, blockxsize=64, blockysize=64,
    ) as dataset:  # fmt: skip
        dataset.write(values)
    return path


def test_a_prefix_is_a_collection(store: ObjectStore, tmp_path: Path, values: Any) -> None:
    prefix = f"s3://{BUCKET}/{tmp_path.name}/Luftbilder é/"
    store.upload(write(tmp_path / "1.tif", values[:, :, :100]), prefix + "a.tif")
    store.upload(write(tmp_path / "2.tif", values[:, :, 100:], 100), prefix + "sub/b.tif")
    store.put(prefix + "readme.txt", b"no raster")
    uris = expand_rasters([prefix])
    assert uris == [prefix + "a.tif", prefix + "sub/b.tif"]
    assert expand_rasters([prefix + "*/b.*"]) == uris[1:]
    infos = [inspect_raster(uri) for uri in uris]
    grid = grid_of_collection(infos)
    with GridReader(infos, grid) as reader:
        for window, pixels in prefetch(reader, grid.tiles(128, 128), threads=3):
            inside = window.intersection(grid.window)
            rows, cols = inside.slices_in(grid.window)
            np.testing.assert_array_equal(
                pixels.values[:, : inside.rows, : inside.cols], values[:, rows, cols]
            )


def test_identity_is_the_content(store: ObjectStore, tmp_path: Path, values: Any) -> None:
    uri, copy = (f"s3://{BUCKET}/{tmp_path.name}/{name}.tif" for name in "ab")
    path = write(tmp_path / "a.tif", values)
    store.upload(path, uri)
    store.upload(path, copy)
    before = inspect_raster(uri)
    assert inspect_raster(copy).identity == before.identity
    with GridReader([before], grid_of_collection([before])) as reader:
        np.testing.assert_array_equal(reader.read(reader.grid.window).values, values)
    # Replaced: the identity and the pixels are the new object's, in the same process too.
    store.upload(write(tmp_path / "b.tif", values[:, ::-1]), uri)
    after = inspect_raster(uri)
    assert after.identity != before.identity
    with GridReader([after], grid_of_collection([after])) as reader:
        np.testing.assert_array_equal(reader.read(reader.grid.window).values, values[:, ::-1])


def test_side_cars_are_seen(store: ObjectStore, tmp_path: Path, values: Any) -> None:
    path = write(tmp_path / "a.tif", values)
    mask = values[0] > 100
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    uri = f"s3://{BUCKET}/{tmp_path.name}/a.tif"
    store.upload(path, uri)
    store.upload(path.with_name("a.tif.msk"), uri + ".msk")
    info = inspect_raster(uri)
    with GridReader([info], grid_of_collection([info])) as reader:
        np.testing.assert_array_equal(reader.read(reader.grid.window).valid, mask)
    store.put(uri + ".msk", store.get(uri + ".msk") + b"\0")
    assert inspect_raster(uri).identity != info.identity


def test_a_vrt_reads_what_lies_beside_it_and_nothing_else(
    store: ObjectStore, tmp_path: Path, values: Any
) -> None:
    folder = f"s3://{BUCKET}/{tmp_path.name}"
    local = write(tmp_path / "a.tif", values)
    store.upload(local, f"{folder}/a.tif")

    def vrt(source: str, relative: int) -> bytes:
        return f"""<VRTDataset rasterXSize="320" rasterYSize="300"><SRS>EPSG:32612</SRS>
          <GeoTransform>500000,0.5,0,5000000,0,-0.5</GeoTransform>
          <VRTRasterBand dataType="Byte" band="1"><SimpleSource>
          <SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>2</SourceBand>
          </SimpleSource></VRTRasterBand></VRTDataset>""".encode()

    for source, relative in (("a.tif", 1), (f"/vsis3/{BUCKET}/{tmp_path.name}/a.tif", 0)):
        store.put(f"{folder}/{relative}.vrt", vrt(source, relative))
        info = inspect_raster(f"{folder}/{relative}.vrt")
        with GridReader([info], grid_of_collection([info])) as reader:
            np.testing.assert_array_equal(reader.read(reader.grid.window).values[0], values[1])
    for source in (str(local), "/vsis3/other/a.tif"):
        store.put(f"{folder}/a.vrt", vrt(source, 0))
        with pytest.raises(BadInputError, match="outside the allowed"):
            inspect_raster(f"{folder}/a.vrt")


def test_what_is_missing_or_broken_is_named(store: ObjectStore, tmp_path: Path, values: Any) -> None:
    folder = f"s3://{BUCKET}/{tmp_path.name}"
    with pytest.raises(NotFoundError, match=r"gone\.tif"):
        inspect_raster(f"{folder}/gone.tif")
    with pytest.raises(NotFoundError, match="No raster was found"):
        expand_rasters([f"{folder}/nothing/"])
    store.put(f"{folder}/text.tif", b"hello")
    with pytest.raises(RasterError, match="cannot be opened as a raster"):
        inspect_raster(f"{folder}/text.tif")
    data = write(tmp_path / "a.tif", values).read_bytes()
    store.put(f"{folder}/cut.tif", data[: len(data) // 2])
    info = inspect_raster(f"{folder}/cut.tif")
    with (
        GridReader([info], grid_of_collection([info])) as reader,
        pytest.raises(RasterError, match=r"cut\.tif could not be read at rows"),
    ):
        reader.read(reader.grid.window)
