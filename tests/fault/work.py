"""Work to be killed: a small Classify Pixels whose parts run in processes of their own.

    python -m tests.fault.work part PLAN_URI        computes all shards, then puts the output together

``Work`` makes it, starts such processes and judges what is left. Every shard that a process begins is a line
in ``begun``, so that it can be told how often a shard was computed.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tasks.host.link import tree

FUNCTION = '''
import time
import numpy as np


class Slow:
    """2 where the mean around a pixel is above a threshold, 1 elsewhere; takes its time."""

    def initialize(self, **kwargs):
        pass

    def getParameterInfo(self):
        return [
            {"name": "raster", "dataType": "raster", "required": True},
            {"name": "seconds", "dataType": "numeric", "value": 0.01},
        ]

    def getConfiguration(self, **scalars):
        self.seconds = float(scalars["seconds"])
        return {"extractBands": (0,), "padding": 8, "tx": 32, "ty": 32, "fixedTileSize": 1}

    def updateRasterInfo(self, **kwargs):
        kwargs["output_info"].update(bandCount=1, pixelType="u1")
        return kwargs

    def updatePixels(self, tlc, shape, props, **blocks):
        time.sleep(self.seconds)
        padded = np.pad(blocks["raster_pixels"][0].astype(np.int64), 3)
        rows, cols = padded.shape[0] - 6, padded.shape[1] - 6
        total = sum(padded[r : r + rows, c : c + cols] for r in range(7) for c in range(7))
        return {"output_pixels": np.where(total > 49 * 128, 2, 1).astype(np.uint8)[None, 8:-8, 8:-8]}
'''

# What a killed process may have in its hands: a shard being cut, tiles of another, results being written.
SHARDS_IN_FLIGHT = 5
BEGUN = "CHIPLINE_TEST_BEGUN"


def expected(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The function on the whole array  # (rows, cols)."""
    from scipy import ndimage

    total = image[0].astype(np.int64)
    for axis in (0, 1):
        total = ndimage.correlate1d(total, np.ones(7, np.int64), axis=axis, mode="constant")
    return np.where(total > 49 * 128, 2, 1).astype(np.uint8)


@dataclass
class Work:
    """One plan, and the processes that work on it.

    Attributes:
        folder: holds package, imagery, logs and ``begun``.
        environment: of the processes.
    """

    folder: Path
    environment: dict[str, str]
    image: NDArray[np.uint8]
    plan_uri: str = ""
    logs: int = 0

    def start(self, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """A process that computes what is missing and puts the output together."""
        log = self.next_log().open("wb")
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.fault.work", "part", self.plan_uri],
            env={**os.environ, **self.environment},
            cwd=Path(__file__).parents[2],
            stdout=log,
            stderr=log,
        )
        log.close()
        return process

    def next_log(self) -> Path:
        """Where the next process says what it does."""
        self.logs += 1
        return self.folder / f"log-{self.logs - 1}"

    def wait_begun(self, count: int, *, within_s: float = 60) -> None:
        """Until so many shards have been begun in all."""
        end = time.monotonic() + within_s
        while sum(self.begun().values()) < count:
            if time.monotonic() > end:
                raise TimeoutError(self.log())
            time.sleep(0.02)

    def begun(self) -> Counter[str]:
        """How often each shard was begun, by its key."""
        return Counter(self.begun_list())

    def begun_list(self) -> list[str]:
        """The keys of the shards that were begun, in that order."""
        path = self.folder / "begun"
        return path.read_text().split() if path.exists() else []

    def log(self) -> str:
        """What the last process said."""
        return (self.folder / f"log-{self.logs - 1}").read_text()[-3000:]

    def check_finished(self, *, interruptions: int) -> None:
        """One object per shard, the pixels of the whole array, and little computed twice."""
        from tasks.infer.finish import published
        from tasks.infer.part import load_plan
        from tasks.infer.shards import ShardStore
        from tasks.settings import settings
        from tasks.store import ObjectStore, gdal_path, join

        store = ObjectStore()
        plan = load_plan(store, self.plan_uri)
        assert all(ShardStore(store, settings().root).exists(shard) for shard in plan.shards)
        manifest = published(store, plan)
        assert manifest is not None, self.log()
        import rasterio

        from tasks.imagery.raster import raster_environment

        uri = join(plan.folder, manifest.details["outputs"][0]["path"])
        with raster_environment(uri), rasterio.open(gdal_path(uri)) as dataset:
            np.testing.assert_array_equal(dataset.read(1), expected(self.image))
        begun = self.begun()
        assert set(begun) == {shard.key for shard in plan.shards}
        twice = sum(begun.values()) - len(begun)
        assert twice <= SHARDS_IN_FLIGHT * interruptions, f"{twice} shards computed again"


def rough_image(edge: int) -> NDArray[np.uint8]:
    """Smooth noise  # (1, edge, edge)."""
    from scipy import ndimage

    rough = ndimage.gaussian_filter(np.random.default_rng(5).random((edge, edge)), 3)
    image: NDArray[np.uint8] = (255 * (rough - rough.min()) / np.ptp(rough)).astype(np.uint8)
    return image[None]


def write_scene(path: Path, image: NDArray[np.uint8]) -> None:
    """The image as a tiled GeoTIFF with cells of 0.5 m."""
    import rasterio
    from affine import Affine

    _, rows, cols = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=rows, width=cols, dtype="uint8", crs="EPSG:32612",
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 4_900_000), tiled=True, blockxsize=64, blockysize=64,
    ) as dataset:  # fmt: skip
        dataset.write(image)


def definition_of_slow() -> Any:
    """The definition of the package with ``FUNCTION``."""
    from tasks.package import ModelDefinition

    return ModelDefinition.model_validate(
        {
            "ModelType": "ImageClassification",
            "InferenceFunction": "Slow.py",
            "ImageHeight": 48,
            "ImageWidth": 48,
            "ExtractBands": [0],
            "Classes": [{"Value": 1, "Name": "Dark"}, {"Value": 2, "Name": "Bright"}],
        }
    )


def make_work(folder: Path, *, root: str | None = None, edge: int = 256, seconds: float = 0.01) -> Work:
    """A plan over a random image; the settings of this process must fit ``root`` already."""
    from tasks.infer.describe import describe
    from tasks.infer.parameters import ClassifyPixelsParameters
    from tasks.infer.part import save_plan
    from tasks.infer.plan import inspect_collection, make_plan
    from tasks.package import open_package, write_dlpk
    from tasks.parameters import ModelArgument
    from tasks.store import ObjectStore, join

    image, scene = rough_image(edge), folder / "scene.tif"
    write_scene(scene, image)
    write_dlpk(folder / "slow.dlpk", definition_of_slow(), {"Slow.py": FUNCTION.encode()})
    package = open_package(folder / "slow.dlpk", folder / "slow")
    store = ObjectStore()
    uri = str(scene)
    if root is not None:
        uri = join(root, "imagery", "scene.tif")
        store.upload(scene, uri)
    parameters = ClassifyPixelsParameters(
        input_raster=[uri],
        model=str(folder / "slow.dlpk"),
        model_arguments=[ModelArgument(name="seconds", value=str(seconds))],
        output_classified_raster="slow",
        shard_size=64,
        shards_per_part=10_000,
    )
    plan = make_plan(
        parameters,
        rasters=inspect_collection([uri]),
        package=package,
        package_uri=str(folder / "slow.dlpk"),
        description=describe(package, {"seconds": str(seconds)}, store, foreign=False),
        processor="CPU",
    )
    environment = {BEGUN: str(folder / "begun"), "OMP_NUM_THREADS": "1"}
    return Work(folder, environment, image, save_plan(store, plan))


def functions_of(worker: int) -> Iterator[psutil.Process]:
    """The processes of the inference function that a worker has started, the guardians among them."""
    # By the kernel's lists of children: psutil would read every process there is, and this is asked often.
    for pid in tree(worker)[1:]:
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def lives(process: psutil.Process) -> bool:
    """Whether a process is there, and not only waits to be buried."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal and wait for the end."""
    process.send_signal(number)
    process.wait(30)


def run_part(plan_uri: str, log: str) -> None:
    """``main`` in a process that was forked, with what it says in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    main(plan_uri)


def main(plan_uri: str) -> None:
    """One process: the part, then the output. On SIGUSR1 it says where all of its threads are."""
    faulthandler.register(signal.SIGUSR1)
    from tasks.infer import part
    from tasks.infer.finish import finish
    from tasks.infer.operators import PixelOperator
    from tasks.package import open_package
    from tasks.store import ObjectStore

    begun = os.environ[BEGUN]
    begin = PixelOperator.begin

    def noted(self: PixelOperator, shard: Any) -> Any:
        # One write of a short line to a file opened for appending: whole, whatever happens.
        descriptor = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, f"{shard.key}\n".encode())
        os.close(descriptor)
        return begin(self, shard)

    changed: Mapping[str, Any] = {"begin": noted}
    for name, value in changed.items():
        setattr(PixelOperator, name, value)
    store = ObjectStore()
    plan = part.load_plan(store, plan_uri)
    folder = Path(begun).parent
    package = open_package(folder / "slow.dlpk", folder / "slow")
    report = part.compute_part(store, plan, 0, package=package)
    finish(store, plan, {})
    sys.stdout.write(f"{report.counters}\n")


if __name__ == "__main__":
    main(sys.argv[2])
