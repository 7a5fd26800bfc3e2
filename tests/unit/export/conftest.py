"""A raster with random pixels, a crowd of labels, and an export of both without any server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize

from tasks.export import cut, finish, inputs, plan
from tasks.export.parameters import ExportParameters
from tasks.settings import settings
from tasks.store import Manifest, ObjectStore
from tasks.training_data import TrainingData, open_training_data

TRANSFORM = Affine(0.5, 0, 500_000.0, 0, -0.5, 5_000_000.0)
ROWS, COLS = 150, 210


@dataclass(frozen=True)
class Scene:
    """A raster on disk and its labels, with the whole raster's pixels and masks as the oracle."""

    raster: str
    labels: str
    pixels: npt.NDArray[Any]  # (bands, rows, cols)
    mask: npt.NDArray[np.uint8]  # (rows, cols)
    frame: geopandas.GeoDataFrame


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    plan: plan.ExportPlan
    manifest: Manifest
    data: TrainingData
    folder: Path

    def files(self) -> dict[str, bytes]:
        """The published files but the manifests, by path."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
            and path.parent.name != "parts"
            and path.name not in ("manifest.json", "plan.json")
        }


MakeScene = Callable[..., Scene]
Export = Callable[..., Exported]


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def make_scene(tmp_path: Path) -> MakeScene:
    """Writes a scene; ``profile`` goes to rasterio."""

    def _make(
        seed: int = 1,
        *,
        bands: int = 3,
        dtype: str = "uint8",
        rows: int = ROWS,
        cols: int = COLS,
        count: int = 25,
        labels_crs: str | None = "EPSG:32612",
        name: str = "scene",
        transform: Affine = TRANSFORM,
        pixels: npt.NDArray[Any] | None = None,
        **profile: Any,
    ) -> Scene:
        random = np.random.default_rng(seed)
        if pixels is None:
            pixels = random.uniform(1, 255, (bands, rows, cols)).astype(dtype)
        raster = tmp_path / f"{name}.tif"
        options = {"tiled": True, "blockxsize": 32, "blockysize": 48, "crs": "EPSG:32612", **profile}
        with rasterio.open(
            raster,
            "w",
            driver="GTiff",
            count=pixels.shape[0],
            height=rows,
            width=cols,
            dtype=pixels.dtype,
            transform=transform,
            **options,
        ) as dataset:
            dataset.write(pixels)
        blobs = []
        for _ in range(count):
            centre = random.uniform((0, 0), (cols, rows))
            angles = np.sort(random.uniform(0, 2 * np.pi, 8))
            radii = random.uniform(3, 16, 8)
            ring = centre + np.column_stack([radii * np.cos(angles), radii * np.sin(angles)])
            blob = shapely.make_valid(shapely.Polygon(ring)).buffer(0)
            blobs.append(
                shapely.transform(
                    blob, lambda xy: xy * (transform.a, transform.e) + (transform.c, transform.f)
                )
            )
        frame = geopandas.GeoDataFrame(
            {"classvalue": random.integers(1, 4, count)}, geometry=blobs, crs="EPSG:32612"
        )
        frame["classname"] = frame["classvalue"].map({1: "Tree", 2: "Bush", 3: "Rock"})
        mask = rasterize(
            zip(frame.geometry, frame["classvalue"], strict=True),
            out_shape=(rows, cols),
            transform=transform,
            dtype="uint8",
        )
        labels = tmp_path / f"{name}.gpkg"
        written = frame if labels_crs is None else frame.to_crs(labels_crs)
        written.to_file(labels, engine="pyogrio")
        return Scene(str(raster), str(labels), pixels, mask, frame)

    return _make


@pytest.fixture
def export() -> Export:
    """Runs plan, parts and finish, and opens the result."""

    def _export(scene: Scene, **values: Any) -> Exported:
        parameters = ExportParameters(
            **{
                "input_raster": [scene.raster],
                "input_class_data": scene.labels,
                "output_location": "chips",
                "tile_size": 64,
                "stride_size": 40,
                **values,
            }
        )
        store = ObjectStore()
        made = plan.plan_in_force(store, parameters, inputs.inspect_inputs(parameters))
        plan.save_plan(store, made)
        for part in range(len(made.parts)):
            cut.cut_part(store, made, part)
        manifest = finish.finish(store, made, {}).manifest
        folder = Path(made.folder_uri)
        return Exported(made, manifest, open_training_data(folder), folder)

    return _export
