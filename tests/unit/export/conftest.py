"""A raster with random pixels, a crowd of labels, and an export of both without any server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
import shapely.affinity
from affine import Affine

from tasks.export import cut, finish, inputs, plan
from tasks.export.crew import Crew
from tasks.export.parameters import ExportParameters
from tasks.settings import settings
from tasks.store import Manifest, ObjectStore
from tasks.training_data import TrainingData, open_training_data
from tests.conftest import fast_folder
from tests.unit.export.oracle import Truth

CRS = "EPSG:32612"
NAMES = {1: "Tree", 2: "Bush", 3: "Rock"}
TRANSFORM = Affine(0.5, 0, 500_000.0, 0, -0.5, 5_000_000.0)
ROWS, COLS = 150, 210


@dataclass(frozen=True)
class Scene:
    """A raster on disk and its labels, with the whole raster's pixels and masks as the oracle.

    Label coordinates are multiples of 1/1024 pixel, so that the export's own rounding moves none of them.
    """

    raster: str
    labels: str
    pixels: npt.NDArray[Any]  # (bands, rows, cols)
    mask: npt.NDArray[np.uint8]  # (rows, cols)
    frame: geopandas.GeoDataFrame
    truth: Truth


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


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is some: this room's tests write thousands of small files."""
    folder = Path(tempfile.mkdtemp(prefix="chipline-export-", dir=fast_folder()))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    settings.cache_clear()
    yield
    settings.cache_clear()


def write_raster(path: Path, pixels: npt.NDArray[Any], transform: Affine, **profile: Any) -> str:
    """A tiled GeoTIFF; ``profile`` goes to rasterio."""
    count, rows, cols = pixels.shape
    options = {"tiled": True, "blockxsize": 32, "blockysize": 48, "crs": CRS, "transform": transform}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=rows,
        width=cols,
        dtype=pixels.dtype,
        **options | profile,
    ) as dataset:
        dataset.write(pixels)
    return str(path)


def random_polygons(
    random: np.random.Generator, count: int, shape: tuple[int, int]
) -> list[shapely.Geometry]:
    """Stars over the raster's edges and over each other; some with a hole, some in two pieces."""
    found: list[shapely.Geometry] = []
    while len(found) < count:
        centre = random.uniform((0, 0), shape[::-1])
        angles = np.sort(random.uniform(0, 2 * np.pi, 8))
        radii = random.uniform(3, 16, 8)
        ring = centre + np.column_stack([radii * np.cos(angles), radii * np.sin(angles)])
        star: Any = shapely.make_valid(shapely.Polygon(ring)).buffer(0)
        if len(found) % 5 == 1:
            star = star.difference(shapely.Point(centre).buffer(2.5))
        if len(found) % 5 == 2:
            star = star.union(shapely.affinity.translate(star, 30, 5))
        star = shapely.set_precision(star, 1 / 1024)
        if star.area > 0:
            found.append(star)
    return found


def frame_of(truth: Truth) -> geopandas.GeoDataFrame:
    """The labels on the map, with class values and names."""
    a, b, c, d, e, f = tuple(truth.transform)[:6]

    def move(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
        x, y = points.T
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    frame = geopandas.GeoDataFrame(
        {"classvalue": truth.values}, geometry=list(shapely.transform(truth.polygons, move)), crs=CRS
    )
    frame["classname"] = frame["classvalue"].map(lambda value: NAMES.get(value, f"Class {value}"))
    return frame


@pytest.fixture
def make_scene(tmp_path: Path) -> MakeScene:
    """Writes a scene; ``polygons`` in pixels take the place of random ones, ``profile`` goes to rasterio."""

    def _make(
        seed: int = 1,
        *,
        bands: int = 3,
        dtype: str = "uint8",
        rows: int = ROWS,
        cols: int = COLS,
        count: int = 25,
        labels_crs: str | None = None,
        name: str = "scene",
        transform: Affine = TRANSFORM,
        pixels: npt.NDArray[Any] | None = None,
        polygons: Sequence[shapely.Geometry] | None = None,
        values: Sequence[int] | None = None,
        **profile: Any,
    ) -> Scene:
        random = np.random.default_rng(seed)
        if pixels is None:
            pixels = random.uniform(1, 255, (bands, rows, cols)).astype(dtype)
        raster = write_raster(tmp_path / f"{name}.tif", pixels, transform, **profile)
        shapes = random_polygons(random, count, (rows, cols)) if polygons is None else list(polygons)
        drawn = np.array(random.integers(1, 4, len(shapes)) if values is None else values, dtype=np.int64)
        truth = Truth(np.array(shapes, dtype=object), drawn, (rows, cols), transform)
        frame = frame_of(truth)
        labels = tmp_path / f"{name}.gpkg"
        (frame if labels_crs is None else frame.to_crs(labels_crs)).to_file(labels, engine="pyogrio")
        return Scene(raster, str(labels), pixels, truth.mask().astype(np.uint8), frame, truth)

    return _make


@pytest.fixture
def export() -> Export:
    """Runs plan, parts and finish, and opens the result."""

    def _export(
        scene: Scene,
        *,
        crew: Crew | None = None,
        progress: Callable[[int, int], None] | None = None,
        **values: Any,
    ) -> Exported:
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
            cut.cut_part(store, made, part, crew=crew, progress=progress)
        manifest = finish.finish(store, made, {}).manifest
        folder = Path(made.folder_uri)
        return Exported(made, manifest, open_training_data(folder), folder)

    return _export
