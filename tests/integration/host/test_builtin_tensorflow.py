"""Built-in functions run real models: TensorFlow and Keras, in their own environment, contained.

The oracle is the framework itself, called directly on the same pixels (``make_tensorflow_models.py``). The
Mask R-CNN is a double that keeps the contract of Matterport's (``load_weights(by_name=True)``, ``detect``):
that code was written for TensorFlow 1 and does not run in what can be installed today.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage

from tasks.host import FunctionFailure, HostLimits, HostProcess
from tasks.host.interpreters import found_environment, framework_of
from tasks.imagery import Window
from tasks.infer.describe import describe
from tasks.infer.operators import read_pixels
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.part import compute_part
from tasks.infer.plan import inspect_collection, make_plan
from tasks.infer.shards import ShardStore
from tasks.package import Package, open_package, package_problems, read_definition, write_dlpk
from tasks.settings import settings
from tasks.store import ObjectStore

# Each child imports TensorFlow.
pytestmark = pytest.mark.slow

LIMITS = HostLimits(start_timeout_s=280.0, block_timeout_s=120.0, memory_mb=4000)
CLASSES = [{"Value": value, "Name": name} for value, name in ((5, "red"), (3, "green"), (9, "blue"))]
DEFINITIONS: dict[str, dict[str, Any]] = {
    "detector": {
        "Framework": "TensorFlow",
        "ModelConfiguration": "ObjectDetectionAPI",
        "ModelType": "ObjectDetection",
        "ModelFile": ".\\model.pb",
        "ImageHeight": 64,
        "ImageWidth": 64,
        "Classes": CLASSES,
    },
    "segmenter": {
        "Framework": "TensorFlow",
        "ModelConfiguration": "DeepLab",
        "InferenceFunction": "[Functions]System\\DeepLearning\\ImageClassifier.py",
        "ModelType": "ImageClassification",
        "ModelFile": ".\\model.pb",
        "ImageHeight": 64,
        "ImageWidth": 80,
        "BatchSize": 4,
        "Classes": [{"Value": value, "Name": f"class {value}"} for value in range(4)],
    },
    "classifier": {
        "Framework": "Keras",
        "ModelConfiguration": {"Name": "KerasClassifier"},
        "ModelType": "ObjectClassification",
        "ModelFile": ".\\model.h5",
        "ImageHeight": 64,
        "ImageWidth": 64,
        "CropSizeFixed": 1,
        "Classes": CLASSES,
    },
    "masks": {
        "Framework": "Keras",
        "ModelConfiguration": {
            "Name": "MaskRCNN",
            "Architecture": ".\\mrcnn\\network",
            "Config": ".\\mrcnn\\network",
        },
        "ModelType": "ObjectDetection",
        "ModelFile": ".\\model.h5",
        "ImageHeight": 64,
        "ImageWidth": 64,
        "Classes": CLASSES,
    },
}


@pytest.fixture(autouse=True)
def any_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containment is asserted where it is tested; elsewhere a kernel that has less will do."""
    monkeypatch.setattr(settings(), "allow_uncontained", True)


@pytest.fixture(scope="module")
def tiles() -> dict[str, NDArray[Any]]:
    """A tile and a scene (3, rows, cols) uint8, and chips of features (n, 3, rows, cols)."""
    generator = np.random.default_rng(20)

    def smooth(*shape: int) -> NDArray[np.uint8]:
        rough = ndimage.gaussian_filter(generator.random(shape), (0,) * (len(shape) - 2) + (4, 4))
        rough -= rough.min()
        scaled: NDArray[np.uint8] = (255 * rough / rough.max()).astype(np.uint8)
        return scaled

    def tinted(*shape: int) -> NDArray[np.uint8]:
        """Chips of which each has another strongest band."""
        chips = smooth(*shape) // 2
        for number, chip in enumerate(chips):
            chip[number % 3] *= 2
        return chips

    return {
        "tile": smooth(3, 64, 64),
        "scene": smooth(3, 150, 200),
        "squares": tinted(5, 3, 64, 64),
        "oblongs": tinted(3, 3, 96, 40),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiles: dict[str, NDArray[Any]]) -> Path:
    """A folder with the models, as unpacked packages, and the frameworks' own answers."""
    framework = framework_of("TensorFlow")
    assert framework is not None
    python = found_environment(framework)
    if python is None:
        pytest.fail("TensorFlow's environment is not there: make tensorflow (make test-all builds it)")
    folder = tmp_path_factory.mktemp("models")
    np.savez(folder / "tiles.npz", **tiles)  # type: ignore[arg-type] # numpy's stub takes the names for flags
    script = Path(__file__).with_name("make_tensorflow_models.py")
    done = subprocess.run([python, script, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, definition in DEFINITIONS.items():
        (folder / name / f"{name}.emd").write_text(json.dumps(definition))
    return folder


@pytest.fixture(scope="module")
def answers(models: Path) -> dict[str, NDArray[Any]]:
    """What the frameworks say when they are called directly."""
    with np.load(models / "answers.npz") as stored:
        return dict(stored)


def _package(models: Path, name: str, **changes: Any) -> Package:
    folder = models / name
    assert package_problems(folder) == []
    definition = read_definition(json.dumps({**DEFINITIONS[name], **changes}))
    (folder / f"{name}.emd").write_text(definition.to_json())
    return Package(folder=folder, definition=definition, digest="0" * 64, name=name)


def test_object_detection_api_gives_the_graphs_boxes(
    models: Path, tiles: dict[str, NDArray[Any]], answers: dict[str, NDArray[Any]]
) -> None:
    scores = answers["scores"][0]  # falling
    threshold = float(scores[11] + scores[10]) / 2
    arguments = {"padding": "8", "score_threshold": str(threshold), "batch_size": "1"}
    with HostProcess(_package(models, "detector"), arguments=arguments, limits=LIMITS) as host:
        assert (host.configuration["tx"], host.configuration["padding"]) == (48, 8)
        assert host.geometry_type == 4
        found = host.run("vectorize", tiles["tile"], shape=(48, 48))
        # Of pixels that are masked out the graph sees 0.
        mask = np.ones(tiles["tile"].shape, np.uint8)
        mask[:, :, 8:] = 0
        strip = host.run("vectorize", tiles["tile"], mask, shape=(48, 48))
    kept = scores > threshold
    assert kept.sum() == 11
    boxes = answers["boxes"][0][kept].astype(float) * 64 - 8  # ymin, xmin, ymax, xmax
    names = [CLASSES[int(index) - 1]["Name"] for index in answers["classes"][0][kept]]
    assert [item.class_name for item in found] == names
    np.testing.assert_allclose([item.confidence_raw for item in found], scores[kept], rtol=1e-6)
    rings = np.array([item.rings[0] for item in found])  # upper left, upper right, lower right, lower left
    np.testing.assert_allclose(rings[:, 0], boxes[:, [1, 0]], atol=1e-4)
    np.testing.assert_allclose(rings[:, 2], boxes[:, [3, 2]], atol=1e-4)
    np.testing.assert_allclose(rings[:, 1], boxes[:, [3, 0]], atol=1e-4)
    assert all(point[0] < 0.1 for item in strip for ring in item.rings for point in ring)


def test_deeplab_runs_contained_and_gives_the_graphs_classes(
    models: Path, tiles: dict[str, NDArray[Any]], answers: dict[str, NDArray[Any]]
) -> None:
    package = _package(models, "segmenter", ImageWidth=64)
    with HostProcess(package, arguments={"padding": "4"}, limits=LIMITS) as host:
        # Four chips of 64 in one block, which has to be larger than the tile: 112 + 2 * 4.
        block = np.zeros((3, 120, 120), np.uint8)
        block[:, :64, :64] = tiles["tile"]
        given = host.run("updatePixels", block, shape=(112, 112))
        with pytest.raises(FunctionFailure, match=r"uint8.*3000.*rescale the raster"):
            host.run("updatePixels", np.full((3, 120, 120), 3000, np.uint16), shape=(112, 112))
        containment = host.containment
        assert json.loads(host.output_info["rasterAttributeTable"])["features"][3]["attributes"]["Value"] == 3
    # The first chip is the tile itself.
    np.testing.assert_array_equal(given[0, :56, :56], answers["tile_classes"][0, 4:-4, 4:-4])
    assert len(np.unique(given)) == 4
    if containment["kernel"]:
        assert containment["files"]
        assert containment["network"]
        assert not containment["user"].startswith("user 0,")


@pytest.mark.parametrize("weights", ["model.h5", "model.keras"])
def test_keras_classifier_gives_the_networks_labels(
    models: Path, tiles: dict[str, NDArray[Any]], answers: dict[str, NDArray[Any]], weights: str
) -> None:
    with HostProcess(_package(models, "classifier", ModelFile=weights), limits=LIMITS) as host:
        assert host.takes_batches
        assert (host.scalars["resampled_image_size"], host.configuration["CropSizeFixed"]) == ("64", 1)
        found = {name: host.run("vectorize", tiles[name]) for name in ("squares", "oblongs")}
    for name, labels in found.items():
        expected = answers[name]
        assert [item.label for item in labels] == [CLASSES[best]["Name"] for best in expected.argmax(1)]
        np.testing.assert_allclose([item.confidence_raw for item in labels], expected.max(1), rtol=1e-4)
        assert len({item.label for item in labels}) == 3


def test_mask_rcnn_gives_the_outlines_and_classes_of_its_masks(
    models: Path, tiles: dict[str, NDArray[Any]], answers: dict[str, NDArray[Any]]
) -> None:
    package = _package(models, "masks")
    with HostProcess(package, arguments={"padding": "8"}, limits=LIMITS) as host:
        found = host.run("vectorize", tiles["tile"], shape=(48, 48))
        assert host.run("vectorize", np.zeros_like(tiles["tile"]), shape=(48, 48)) == []
    masks, ids = answers["mask_masks"], answers["mask_class_ids"]
    assert len(ids) > 2
    assert [item.class_name for item in found] == [CLASSES[number - 1]["Name"] for number in ids]
    np.testing.assert_allclose([item.confidence_raw for item in found], answers["mask_scores"], rtol=1e-6)
    rows, cols = np.mgrid[:64, :64] - 8  # pixel centres, from the inner block's corner
    for item, mask in zip(found, np.moveaxis(masks, 2, 0), strict=True):
        inside = np.zeros(mask.shape, bool)
        for ring in item.rings:
            assert ring[0] != ring[-1]
            inside ^= shapely.contains_xy(shapely.Polygon(ring), cols.ravel(), rows.ravel()).reshape(64, 64)
        np.testing.assert_array_equal(inside, mask)


def test_mask_rcnn_paints_its_objects_for_a_pixel_classifier(
    models: Path, tiles: dict[str, NDArray[Any]], answers: dict[str, NDArray[Any]]
) -> None:
    package = _package(models, "masks", ModelType="ImageClassification")
    with HostProcess(package, arguments={"padding": "8"}, limits=LIMITS) as host:
        given = host.run("updatePixels", tiles["tile"], shape=(48, 48))
    painted = (answers["mask_masks"] * answers["mask_class_ids"]).max(axis=2)
    np.testing.assert_array_equal(given[0], painted[8:-8, 8:-8])


def test_the_engine_tiles_a_scene_as_the_graph_sees_it_whole(
    models: Path,
    tiles: dict[str, NDArray[Any]],
    answers: dict[str, NDArray[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHIPLINE_ALLOWED_ROOTS", f'["{tmp_path}"]')
    monkeypatch.setenv("CHIPLINE_HOST_START_TIMEOUT_S", "280")
    settings.cache_clear()
    monkeypatch.setattr(settings(), "allow_uncontained", True)
    scene, store = tiles["scene"], ObjectStore()
    path = str(tmp_path / "scene.tif")
    place = {"crs": "EPSG:32612", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 4_900_000)}
    size = {"count": 3, "height": scene.shape[1], "width": scene.shape[2]}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", **size, **place) as dataset:
        dataset.write(scene)
    write_dlpk(
        tmp_path / "segmenter.dlpk",
        read_definition(json.dumps(DEFINITIONS["segmenter"])),
        {"model.pb": models / "segmenter" / "model.pb"},
    )
    package = open_package(tmp_path / "segmenter.dlpk", tmp_path / "unpacked")
    values = {"input_raster": [path], "model": "m.dlpk", "output_classified_raster": "out", "shard_size": 100}
    plan = make_plan(
        ClassifyPixelsParameters.model_validate(values),
        rasters=inspect_collection([path]),
        package=package,
        package_uri="m.dlpk",
        description=describe(package, {}, store, foreign=True),
        processor="CPU",
    )
    assert len(plan.shards) > 1
    for part in range(len(plan.parts)):
        compute_part(store, plan, part, package=package)
    result = np.full(scene.shape[1:], 255, np.uint8)
    sink = ShardStore(store, settings().root)
    for shard in plan.shards:
        result[shard.target.slices_in(Window(0, 0, 150, 200))] = read_pixels(sink.get(shard))
    settings.cache_clear()
    # At the scene's own edge the second convolution sees what the first makes of the fill, not 0.
    np.testing.assert_array_equal(result[1:-1, 1:-1], answers["scene_classes"][0, 1:-1, 1:-1])
