"""The worker's part of a training, and what makes its outcome visible."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.errors import BadInputError, RunError
from tasks.package import file_digest
from tasks.package.fetch import fetch_package
from tasks.package.publish import publish_package
from tasks.package.tags import lineage_tags, package_tags
from tasks.store import (
    FileRecord,
    Manifest,
    ObjectStore,
    Publication,
    join,
    read_manifest,
    set_current,
)
from tasks.tracking import Tracker
from tasks.train.beginning import Beginning
from tasks.train.callbacks import Progress
from tasks.train.checkpoints import StoredCheckpoints
from tasks.train.environment import requirements
from tasks.train.event_file import FILE as EVENTS
from tasks.train.models.encoder_weights import EncoderStart
from tasks.train.origins import Origin, local_encoder
from tasks.train.plan import KIND, RESULT, TrainPlan, TrainRecord, load_plan, load_record
from tasks.train.train import fit, train_model
from tasks.training_data import TrainingData
from tasks.training_data.address import DataFolder, open_folder

StartTracker = Callable[..., Tracker]

METRICS = "metrics.json"
PAGE = "model_metrics.html"
REQUIREMENTS = "requirements.txt"
PICTURES = "ModelCharacteristics"


@dataclass(frozen=True)
class Published:
    """A published training.

    Attributes:
        manifest: its root manifest.
        already_done: whether an earlier run had published it.
    """

    manifest: Manifest
    already_done: bool


def start_tracker(plan: TrainPlan, run_id: str = "") -> Tracker:
    """An MLflow run in the model's experiment, with parameters and lineage.

    Args:
        run_id: of an interrupted training, whose run goes on.

    Raises:
        TrackingError: there is no MLflow, or it refuses.
    """
    if run_id:
        return Tracker.resume(plan.name, run_id)
    values = plan.parameters.model_dump(mode="json", exclude={"model_arguments"})
    values.update({f"model_argument.{item.name}": item.value for item in plan.parameters.model_arguments})
    tracker = Tracker.start(
        plan.name,
        f"{plan.parameters.model_type} {plan.run_key[:8]}",
        values,
        {"chipline.run_key": plan.run_key, "chipline.outputs": plan.folder_uri},
    )
    tracker.tags(_start_tags(plan))
    for item in plan.inputs:
        tracker.dataset(item.name, item.uri, item.identity)
    for item in plan.validation:
        tracker.dataset(item.name, item.uri, item.identity, context="validation")
    return tracker


def _start_tags(plan: TrainPlan) -> dict[str, str]:
    """Where the first weights lie and what they are, for the run and for the package's version."""
    tags: dict[str, str] = {}
    for name, origin in (("pretrained_model", plan.pretrained), ("encoder_weights", plan.encoder)):
        if origin is not None:
            tags |= {f"chipline.{name}": origin.uri, f"chipline.{name}_identity": origin.identity}
    return tags


def open_beginning(store: ObjectStore, plan: TrainPlan, work: Path) -> Beginning:
    """What the training starts from, on this machine.

    Args:
        work: a local folder for a file of weights.

    Raises:
        BadInputError, PackageError: it is no longer what it was, or nobody vouches for the package any more.
    """
    package = None
    if plan.pretrained is not None:
        package = fetch_package(plan.pretrained.uri, store)
        if package.digest != plan.pretrained.identity:
            raise BadInputError(
                f"The package at {plan.pretrained.uri} is not the one that the training was planned with.",
                "Start the training again.",
            )
    allowed = plan.parameters.allow_random_encoder
    if plan.encoder is None:
        return Beginning(package, EncoderStart(or_random=allowed))
    file = local_encoder(store, plan.encoder, work)
    return Beginning(package, EncoderStart(file, plan.encoder.uri, or_random=allowed))


def run_training(
    store: ObjectStore, plan_uri: str, *, start: StartTracker, progress: Progress
) -> TrainRecord:
    """Train what the plan says and publish the package, unless that has been done.

    Args:
        start: opens the tracker; called when there is work to do, with the plan and, where a killed worker
            has left a checkpoint, the run that it wrote to.
    """
    plan = load_plan(store, plan_uri)
    done = load_record(store, plan.folder_uri)
    if done is not None:
        return done
    started = _now()
    data = open_inputs(store, plan.inputs)
    apart = open_inputs(store, plan.validation)
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        work = Path(folder)
        checkpoints = StoredCheckpoints(store, plan.folder_uri, work)
        begun = checkpoints.run_id
        tracker = start(plan, begun) if begun else start(plan)
        try:
            if tracker.run_id:
                checkpoints.note_run(tracker.run_id)
            record = _train(store, plan, data, apart, work, tracker, started, progress, checkpoints)
        except BaseException:
            tracker.finish("FAILED")
            raise
    tracker.tags({"chipline.package": record.package, "chipline.sha256": record.digest})
    tracker.finish()
    # Last: whoever finds it finds all that it names. A second worker on the same plan changes nothing.
    store.put(
        join(plan.folder_uri, RESULT),
        record.model_dump_json(indent=1).encode(),
        content_type="application/json",
    )
    checkpoints.clear()
    return record


def follow_training(store: ObjectStore, plan_uri: str) -> None:
    """Take part in a training whose first process tracks, keeps checkpoints and publishes."""
    plan = load_plan(store, plan_uri)
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        work = Path(folder)
        fit(
            plan.parameters,
            open_inputs(store, plan.inputs),
            work,
            tracker=Tracker.disabled(),
            progress=lambda _fraction, _what: None,
            apart=open_inputs(store, plan.validation),
            checkpoints=StoredCheckpoints(store, plan.folder_uri, work),
            beginning=open_beginning(store, plan, work),
        )


def open_inputs(store: ObjectStore, inputs: Sequence[DataFolder]) -> list[TrainingData]:
    """Local copies of the training data, opened."""
    return [open_folder(store, item) for item in inputs]


def finish(store: ObjectStore, plan_uri: str, provenance: dict[str, Any]) -> Published:
    """Make the outputs visible.

    Args:
        provenance: times and run ids.

    Raises:
        RunError: the worker has not finished.
    """
    plan = load_plan(store, plan_uri)
    existing = read_manifest(store, plan.folder_uri)
    if existing is not None:
        set_current(store, KIND, plan.name, plan.folder_uri)
        return Published(existing, already_done=True)
    record = load_record(store, plan.folder_uri)
    if record is None:
        raise RunError(f"The training of {plan.folder_uri} has left no result.", "Start the run again.")
    publication = Publication(store, plan.folder_uri)
    part = publication.put_part("outputs", [FileRecord(**item) for item in record.files])
    manifest = publication.finish(
        Manifest(
            kind=KIND,
            name=plan.name,
            run_key=plan.run_key,
            parameters=plan.parameters.model_dump(mode="json"),
            inputs=[{"role": role, "uri": i.uri, "identity": i.identity} for role, i in _inputs(plan)],
            versions=record.metrics["versions"],
            parts=[part],
            details={
                "package": record.package,
                "digest": record.digest,
                "tags": record.tags,
                "metrics": record.metrics,
            },
            provenance={
                "effort": record.effort,
                "mlflow_run": record.mlflow_run,
                "mlflow_url": record.mlflow_url,
                "started": record.started,
                "finished": record.finished,
                **provenance,
            },
        )
    )
    set_current(store, KIND, plan.name, plan.folder_uri)
    return Published(manifest, already_done=False)


def _inputs(plan: TrainPlan) -> Iterator[tuple[str, DataFolder | Origin]]:
    yield from (("training data", item) for item in plan.inputs)
    yield from (("validation data", item) for item in plan.validation)
    if plan.pretrained is not None:
        yield "pretrained model", plan.pretrained
        for uri, identity in plan.pretrained.learnt:
            yield "training data of the pretrained model", Origin(uri=uri, identity=identity, name="")
    if plan.encoder is not None:
        yield "encoder weights", plan.encoder


def _train(
    store: ObjectStore,
    plan: TrainPlan,
    data: list[TrainingData],
    apart: list[TrainingData],
    work: Path,
    tracker: Tracker,
    started: str,
    progress: Progress,
    checkpoints: StoredCheckpoints,
) -> TrainRecord:
    inputs = [(item.name, item.identity) for item in plan.inputs]
    result = train_model(
        plan.parameters,
        data,
        work,
        tracker=tracker,
        progress=progress,
        inputs=inputs,
        lineage=plan.lineage,
        known_data=plan.known_data,
        validation=apart,
        checkpoints=checkpoints,
        beginning=open_beginning(store, plan, work),
    )
    publication = Publication(store, plan.folder_uri)
    metrics = json.dumps(result.metrics, indent=1, allow_nan=False).encode()
    files = [
        publication.put_file(METRICS, metrics, "application/json"),
        publication.put_file(PAGE, result.metrics_html.encode(), "text/html"),
        *(
            publication.put_file(f"{PICTURES}/{name}", picture, "image/png")
            for name, picture in result.pictures.items()
        ),
    ]
    # All that was installed where it was trained, for whoever wants to train it again.
    lock = requirements()
    tracker.text(lock, REQUIREMENTS)
    files.append(publication.put_file(REQUIREMENTS, lock.encode(), "text/plain"))
    if result.events is not None:
        files.append(publication.put_file(EVENTS, result.events, "application/octet-stream"))
    return TrainRecord(
        package=publish_package(store, result.package, made_by=plan.folder_uri),
        digest=file_digest(result.package),
        tags=package_tags(result.package) | lineage_tags(plan.lineage) | _start_tags(plan),
        metrics=result.metrics,
        effort=result.effort,
        files=[record.model_dump() for record in files],
        mlflow_run=tracker.run_id,
        mlflow_url=tracker.run_url,
        started=started,
        finished=_now(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
