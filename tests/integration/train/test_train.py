"""From exported chips to a package that predicts: both kinds, on real imagery, without a server."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from tasks.errors import BadInputError, NotFoundError, PackageError, RunError, TrainingDataError
from tasks.export import cut
from tasks.export import finish as export_finish
from tasks.export import plan as export_plan
from tasks.export.inputs import inspect_inputs
from tasks.export.parameters import ExportParameters
from tasks.package import read_definition
from tasks.package.fetch import fetch_package
from tasks.package.network_source import load_network
from tasks.settings import settings
from tasks.store import ObjectStore, current, iter_files
from tasks.tracking import Tracker
from tasks.train import checkpoints, plan, work
from tasks.train.event_file import FILE as EVENTS
from tasks.train.parameters import TrainParameters

EXAMPLES = Path(__file__).parents[3] / "examples" / "yellowstone_trees"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A local store with chips of both formats, cut from a corner of the western scene."""
    folder = tmp_path_factory.mktemp("root")
    scene = corner(folder / "scene.tif", 768, 512)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHIPLINE_ROOT", str(folder / "store"))
        patch.setenv("CHIPLINE_ALLOWED_ROOTS", json.dumps([str(folder), str(EXAMPLES)]))
        patch.setenv("CHIPLINE_CACHE", str(folder / "cache"))
        settings.cache_clear()
        for name, metadata_format in (("crowns", "PASCAL_VOC_rectangles"), ("cover", "Classified_Tiles")):
            export(scene, name, metadata_format)
        yield folder
    settings.cache_clear()


def corner(path: Path, width: int, height: int) -> Path:
    """A piece of the western scene with trees, of so many pixels."""
    with rasterio.open(EXAMPLES / "west.tif") as source:
        window = rasterio.windows.Window(col_off=512, row_off=1536, width=width, height=height)
        size = {"width": width, "height": height, "transform": source.window_transform(window)}
        profile = {**source.profile, **size, "compress": "deflate", "photometric": "rgb"}
        with rasterio.open(path, "w", **profile) as target:
            target.write(source.read(window=window))
    return path


def export(scene: Path, name: str, metadata_format: str) -> None:
    """Chips of 128 px of the scene, below the store's root."""
    parameters = ExportParameters.model_validate(
        {
            "input_raster": [str(scene)],
            "input_class_data": str(EXAMPLES / "trees.gpkg"),
            "output_location": name,
            "tile_size": 128,
            "stride_size": 128,
            "metadata_format": metadata_format,
            "output_nofeature_tiles": "ALL_TILES",
        }
    )
    store = ObjectStore()
    made = export_plan.make_plan(store, parameters, inspect_inputs(parameters))
    export_plan.save_plan(store, made)
    for part in range(len(made.parts)):
        cut.cut_part(store, made, part)
    export_finish.finish(store, made, {})


def parameters(**values: Any) -> TrainParameters:
    given = {
        "in_folder": ["crowns"],
        "output_name": "trees",
        "model_type": "FCOS",
        "max_epochs": 1,
        "batch_size": 4,
        "validation_percent": 20,
        "model_arguments": [{"name": "preset", "value": "light"}],
        **values,
    }
    return TrainParameters.model_validate(given)


def trained(given: TrainParameters) -> tuple[plan.TrainPlan, str, plan.TrainRecord]:
    torch.set_num_threads(1)
    store = ObjectStore()
    made = plan.make_plan(store, given)
    uri = plan.save_plan(store, made)
    record = work.run_training(
        store, uri, start=lambda _plan: Tracker.disabled(), progress=lambda _fraction, _what: None
    )
    return made, uri, record


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("model_type", "folder"),
    [
        ("FCOS", "crowns"),
        ("RETINANET", "crowns"),
        pytest.param("RTDETRV2", "crowns", marks=pytest.mark.slow),
        pytest.param("DFINE", "crowns", marks=pytest.mark.slow),
        ("UNET", "cover"),
    ],
)
def test_one_epoch_gives_a_package_that_predicts(model_type: str, folder: str) -> None:
    given = parameters(model_type=model_type, in_folder=[folder], output_name=f"one-{model_type.lower()}")
    made, uri, record = trained(given)
    published = work.finish(ObjectStore(), uri, {})
    assert not published.already_done
    assert {item.path for item in iter_files(ObjectStore(), made.folder_uri)} >= {
        "metrics.json",
        "model_metrics.html",
        "ModelCharacteristics/show_results.png",
        "ModelCharacteristics/loss_graph.png",
    }
    with zipfile.ZipFile(record.package) as archive:
        name = given.output_name
        definition = read_definition(archive.read(f"{name}.emd").decode())
        card = archive.read("MODEL_CARD.md").decode()
        network = load_network(
            archive.read("ChiplineNetwork.py").decode(),
            torch.load(archive.open(f"{name}.pth"), weights_only=True),
        )
    assert (definition.image_height, definition.model_name) == (128, model_type)
    assert [item.name for item in definition.classes or []] == ["Tree"]
    assert [band["BandName"] for band in definition.extras["AllTilesStats"]] == definition.bands
    assert f"| data set {folder} | {made.inputs[0].identity} |" in card
    assert f"| chips: validation | {record.metrics['chips']['validation']} |" in card
    assert record.tags["chipline.classes"].endswith(" Tree")
    assert made.inputs[0].identity in record.tags["chipline.training_data"]
    image = torch.randn(3, 192, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if model_type == "UNET":
            assert network(image[None]).shape == (1, 2, 192, 128)
            assert record.metrics["miou"] is not None
        else:
            found = network([image])[0]
            assert set(found["labels"].tolist()) <= {0, 1}  # 0 is the background, which functions drop
            assert record.metrics["average_precision"] is not None
            assert 0 < record.metrics["threshold"] < 1
    assert record.metrics["chips"]["validation"] >= 4
    assert math.isfinite(record.metrics["valid_loss"])


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("model_type", "folder"),
    [("FCOS", "crowns"), pytest.param("DFINE", "crowns", marks=pytest.mark.slow), ("UNET", "cover")],
)
def test_the_same_seed_gives_the_same_package(
    model_type: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = parameters(model_type=model_type, in_folder=[folder], output_name=f"twin-{model_type.lower()}")
    _, _, first = trained(given)
    monkeypatch.setattr(plan, "SEMANTICS", 2)  # another run key: the second training really happens
    _, _, second = trained(given)
    assert first.started <= second.started
    assert first.digest == second.digest
    monkeypatch.setattr(plan, "SEMANTICS", 3)
    _, _, other = trained(given.model_copy(update={"seed": 2}))
    assert other.digest != first.digest


@pytest.mark.usefixtures("root")
def test_the_same_training_again_does_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    given = parameters(output_name="again")
    made, uri, record = trained(given)
    # The training vouches for its package, so it runs here before its outputs are published.
    trust = fetch_package(record.package, ObjectStore()).trust
    assert trust is not None
    assert trust.text.startswith(f"made here by {made.folder_uri}")
    work.finish(ObjectStore(), uri, {})

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(work, "train_model", never)
    assert trained(given)[2] == record
    assert work.finish(ObjectStore(), uri, {}).already_done
    assert current(ObjectStore(), plan.KIND, "again") == made.folder_uri
    # Another name, seed or argument is another run.
    keys = {
        plan.make_plan(ObjectStore(), given.model_copy(update=change)).run_key
        for change in ({}, {"seed": 9}, {"max_epochs": 2}, {"in_folder": ["crowns", "crowns"]})
    }
    assert len(keys) == 4


@pytest.mark.usefixtures("root")
def test_a_failed_training_leaves_nothing_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    given = parameters(output_name="broken")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    ended: list[str] = []
    tracker = Tracker.disabled()
    monkeypatch.setattr(tracker, "finish", lambda status="FINISHED": ended.append(status))
    monkeypatch.setattr(work, "train_model", fails)
    store = ObjectStore()
    uri = plan.save_plan(store, plan.make_plan(store, given))
    with pytest.raises(RuntimeError, match="out of memory"):
        work.run_training(store, uri, start=lambda _plan: tracker, progress=lambda _fraction, _what: None)
    assert ended == ["FAILED"]
    with pytest.raises(RunError, match="left no result"):
        work.finish(store, uri, {})
    assert current(store, plan.KIND, "broken") is None


@pytest.mark.usefixtures("root")
def test_a_killed_training_goes_on_in_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {"max_epochs": 2, "checkpoint_minutes": 0, "tensorboard": True}
    given = parameters(model_type="UNET", in_folder=["cover"], output_name="killed", **values)
    store = ObjectStore()
    uri = plan.save_plan(store, plan.make_plan(store, given))
    runs: list[tuple[str, ...]] = []

    def start(_plan: plan.TrainPlan, *run_id: str) -> Tracker:
        runs.append(run_id)
        tracker = Tracker.disabled()
        tracker.run_id = "run 1"
        return tracker

    keep = checkpoints.StoredCheckpoints.keep

    def last_words(self: checkpoints.StoredCheckpoints, path: Path) -> None:
        keep(self, path)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.StoredCheckpoints, "keep", last_words)
        with pytest.raises(RuntimeError, match="killed"):
            work.run_training(store, uri, start=start, progress=lambda _fraction, _what: None)
    record = work.run_training(store, uri, start=start, progress=lambda _fraction, _what: None)
    assert runs == [(), ("run 1",)]
    assert record.metrics["epochs"] == 2
    assert EVENTS in {item["path"] for item in record.files}
    folder = Path(uri).parent
    assert not list((folder / checkpoints.FOLDER).iterdir())


@pytest.mark.usefixtures("root")
def test_a_training_goes_on_with_a_package_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore()
    _, _, first = trained(parameters(output_name="base", learning_rate=1e-6))
    given = parameters(output_name="tuned", pretrained_model="base", seed=2, validation_percent=40)
    made, uri, record = trained(given)
    assert made.pretrained is not None
    assert (made.pretrained.uri, made.pretrained.identity) == (first.package, first.digest)
    assert record.metrics["first_weights"] == f"all weights of the package base (SHA-256 {first.digest})"
    assert record.tags["chipline.pretrained_model"] == first.package
    manifest = work.finish(store, uri, {}).manifest
    assert {"role": "pretrained model", "uri": first.package, "identity": first.digest} in manifest.inputs
    # Another seed, so that what validates here may be what the base learnt from.
    assert any("base has learnt from" in doubt for doubt in record.metrics["doubts"])
    data = [{"uri": item.uri, "identity": item.identity} for item in made.inputs]
    assert record.metrics["training_data"] == first.metrics["training_data"] == data
    inherited = {"role": "training data of the pretrained model", **data[0]}
    assert inherited in manifest.inputs
    # A further package knows its grandparents' data, which the registry's tag says, too.
    third = plan.make_plan(store, given.model_copy(update={"pretrained_model": record.package, "seed": 3}))
    assert third.lineage == [(one["uri"], one["identity"]) for one in data]
    assert data[0]["identity"] in record.tags["chipline.training_data"]
    # By address it is the same training; from another start it is another.
    same = plan.make_plan(store, given.model_copy(update={"pretrained_model": first.package}))
    other = plan.make_plan(store, given.model_copy(update={"pretrained_model": None}))
    assert (same.run_key == made.run_key, other.run_key == made.run_key) == (True, False)
    # A registered model is asked of the registry.
    monkeypatch.setattr("tasks.tracking.resolve_model", lambda uri: {"models:/base/1": first.package}[uri])
    registered = plan.make_plan(store, given.model_copy(update={"pretrained_model": "models:/base/1"}))
    assert registered.run_key == made.run_key
    # Whoever changes a byte of it makes another package, for which nobody vouches.
    stranger = Path(first.package).parents[3] / "stranger.dlpk"
    stranger.write_bytes(Path(first.package).read_bytes() + b"x")
    with pytest.raises(PackageError, match="neither made nor approved"):
        plan.make_plan(store, given.model_copy(update={"pretrained_model": str(stranger)}))


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"in_folder": ["nowhere"]}, NotFoundError, "Run export_training_data"),
        ({"in_folder": ["cover"]}, TrainingDataError, "PASCAL_VOC_rectangles"),
        ({"chip_size": 256}, BadInputError, "smaller chip_size"),
        ({"model_arguments": [{"name": "widht", "value": "1"}]}, BadInputError, "widht"),
        ({"in_folder": ["/etc"]}, BadInputError, "allowed"),
        ({"pretrained_model": "nobody"}, NotFoundError, "no package of the name 'nobody'"),
        ({"pretrained_model": "/etc/x.dlpk"}, BadInputError, "allowed"),
        ({"pretrained_model": "s3://b/model.emd"}, BadInputError, "Name the .dlpk"),
        ({"encoder_weights": "package:none/w.pth"}, NotFoundError, "not installed"),
        ({"model_type": "CUSTOM", "custom_model": "pixels.none"}, BadInputError, "No installed package"),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan.make_plan(ObjectStore(), parameters(**values))


def test_chips_of_an_unfinished_export_are_refused(root: Path) -> None:
    folder = root / "unfinished"
    (folder / "images").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    with pytest.raises(TrainingDataError, match="not finished"):
        plan.make_plan(ObjectStore(), parameters(in_folder=[str(folder)]))


@pytest.mark.usefixtures("root")
def test_a_time_limit_ends_the_training_and_the_last_weights_are_measured() -> None:
    _, _, record = trained(
        parameters(output_name="hurried", max_epochs=1000, time_limit_minutes=0.05, stop_training=False)
    )
    assert 2.5 <= record.effort["train_seconds"] < 20
    assert record.metrics["epochs"] < 1000
    assert record.metrics["average_precision"] is not None


def test_training_beats_no_training(root: Path) -> None:
    del root
    values: dict[str, Any] = {"model_type": "UNET", "in_folder": ["cover"], "validation_percent": 25}
    _, _, untrained = trained(parameters(**values, output_name="none", learning_rate=1e-9))
    _, _, learned = trained(parameters(**values, output_name="some", max_epochs=8))
    assert np.isfinite(untrained.metrics["miou"])
    assert learned.metrics["miou"] > untrained.metrics["miou"] + 0.1
