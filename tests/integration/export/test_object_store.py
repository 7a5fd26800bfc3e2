"""An export on a real S3 server is the export on a disk, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from tasks.export import cut, finish, inputs, plan
from tasks.export.crew import Crew
from tasks.export.parameters import ExportParameters
from tasks.settings import settings
from tasks.store import ObjectStore, current, iter_files, read_manifest, sync_folder
from tasks.training_data import open_training_data
from tests.integration.store.conftest import BUCKET, Server, as_setting, server

__all__ = ["server"]  # the fixture

TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


def _scene(folder: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(4)
    raster, labels = folder / "scene.tif", folder / "labels.gpkg"
    with rasterio.open(
        raster, "w", driver="GTiff", count=3, height=200, width=260, dtype="uint8", crs="EPSG:32612",
        transform=TRANSFORM, tiled=True, blockxsize=64, blockysize=64,
    ) as dataset:  # fmt: skip
        dataset.write(random.integers(1, 255, (3, 200, 260), dtype=np.uint8))
    centres = random.uniform((500_000, 4_999_900), (500_130, 5_000_000), (40, 2))
    geopandas.GeoDataFrame(
        {"classvalue": random.integers(1, 4, 40), "classname": None},
        geometry=shapely.buffer(shapely.points(centres), random.uniform(1, 6, 40)),
        crs="EPSG:32612",
    ).drop(columns="classname").to_file(labels)
    return raster, labels


def _exported(raster: str, labels: str, metadata_format: str, *, processes: int) -> str:
    parameters = ExportParameters(
        input_raster=[raster],
        input_class_data=labels,
        output_location="chips",
        metadata_format=metadata_format,
        tile_size=64,
        stride_size=32,
        chips_per_part=9,
    )
    store = ObjectStore()
    made = plan.plan_in_force(store, parameters, inputs.inspect_inputs(parameters))
    uri = plan.save_plan(store, made)
    with Crew(processes) as crew:
        assert all(helper.connection.poll(60) for helper in crew._helpers)
        for part in reversed(range(len(made.parts))):
            cut.cut_part(store, plan.load_plan(store, uri), part, crew=crew)
    assert len(made.parts) > 1
    finish.finish(store, plan.load_plan(store, uri), {})
    return made.folder_uri


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "parts" and path.name not in ("manifest.json", "plan.json")
    }


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Settings for a root, on disk or in the store."""

    def become(root: str, stores: str | None = None) -> None:
        monkeypatch.setenv("CHIPLINE_ROOT", root)
        monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{root}", "{tmp_path}"]')
        monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / f"cache-{stores is None}"))
        if stores is not None:
            monkeypatch.setenv("CHIPLINE_STORES", stores)
        settings.cache_clear()

    return become


@pytest.mark.parametrize("metadata_format", ["RCNN_Masks", "COCO_rectangles"])
def test_in_the_store_as_on_disk(
    server: Server, at: Callable[..., None], tmp_path: Path, metadata_format: str
) -> None:
    raster, labels = _scene(tmp_path)
    at(str(tmp_path / "root"))
    on_disk = Path(_exported(str(raster), str(labels), metadata_format, processes=1))

    root = f"s3://{BUCKET}/{tmp_path.name}"
    at(root, as_setting(server.admin))
    try:
        store = ObjectStore()
        for path in (raster, labels):
            store.upload(path, f"{root}/imagery/{path.name}")
        inside = f"{root}/imagery"
        uri = _exported(f"{inside}/scene.tif", f"{inside}/labels.gpkg", metadata_format, processes=3)
        manifest = read_manifest(store, uri)
        assert manifest is not None
        assert current(store, "training-data", "chips") == uri
        copy = sync_folder(store, uri, tmp_path / "copy")
        listed = {record.path for record in iter_files(store, uri)}
        # Nothing that was only needed on the way is left behind.
        assert not [found.uri for found in store.list(f"{root}/") if found.uri.endswith(".fgb")]
    finally:
        settings.cache_clear()
    expected = _files(on_disk)
    assert listed == expected.keys()
    found = {path: data for path, data in _files(copy).items() if path in listed}
    assert sorted(path for path in expected if found[path] != expected[path]) == []
    assert len(open_training_data(copy).chips) == manifest.details["chips"] > 20
