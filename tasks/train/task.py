"""The Prefect tasks of ``train_deep_learning_model``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from prefect import task
from prefect.artifacts import (
    create_image_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from tasks.train.parameters import TrainParameters

if TYPE_CHECKING:
    from tasks.store import Manifest, ObjectStore
    from tasks.train.parameters_search import SearchParameters
    from tasks.train.plan import TrainPlan
    from tasks.train.study import Search

ALIAS = "current"
_RUN_KEY_TAG = "chipline.run_key"
_LINK_SECONDS = 7 * 24 * 3600
_PICTURE_BYTES = 200_000
_SECONDS_BETWEEN_REPORTS = 5.0


class PlannedTraining(TypedDict):
    """What the flow needs to know of a plan; ``work_key`` is one for every output folder."""

    plan_uri: str
    work_key: str
    done: bool


@task(name="plan training")
def plan_training(parameters: TrainParameters) -> PlannedTraining:
    """Check the inputs and put the plan into the store; no chip is read."""
    from tasks.store import ObjectStore, join, read_manifest, run_key
    from tasks.train.plan import PLAN, make_plan, save_plan

    log = get_run_logger()
    store = ObjectStore()
    plan = make_plan(store, parameters)
    planned = PlannedTraining(
        plan_uri=join(plan.folder_uri, PLAN), work_key=run_key(plan.folder_uri), done=False
    )
    if read_manifest(store, plan.folder_uri) is not None:
        log.info("Already done: the same training data and parameters gave %s", plan.folder_uri)
        return {**planned, "done": True}
    save_plan(store, plan)
    log.info("%s on %s", parameters.model_type, ", ".join(item.uri for item in plan.inputs))
    return planned


@task(name="train")
def run_part(plan_uri: str) -> None:
    """Train, and put the package and its record into the store, unless they are there."""
    from tasks.store import ObjectStore
    from tasks.train.work import run_training, start_tracker

    log = get_run_logger()
    artifact, progress = _progress()
    record = run_training(ObjectStore(), plan_uri, start=start_tracker, progress=progress)
    update_progress_artifact(artifact, progress=100.0)
    log.info("Trained on %s: %s", record.metrics["device"], record.package)


@task(name="train on a node")
def run_node(plan_uri: str, node: int) -> None:
    """Run this node's processes of a training, unless its package and record are in the store."""
    from tasks.store import ObjectStore
    from tasks.train.launch import train_on_node
    from tasks.train.plan import load_record

    log = get_run_logger()
    store = ObjectStore()
    artifact, progress = _progress()
    train_on_node(store, plan_uri, node, progress=progress)
    update_progress_artifact(artifact, progress=100.0)
    record = load_record(store, plan_uri.rsplit("/", 1)[0])
    assert record is not None
    metrics = record.metrics
    log.info("Trained with %s processes on %s: %s", metrics["processes"], metrics["device"], record.package)


def _progress() -> tuple[Any, Any]:
    """A progress artifact, and what reports to it and to the log every few seconds."""
    import time

    log = get_run_logger()
    artifact: Any = create_progress_artifact(progress=0.0, description="Training")
    reported = time.monotonic()

    def progress(fraction: float, what: str) -> None:
        nonlocal reported
        # What is told before the first step is told once.
        if fraction == 0.0 or time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            log.info("%3.0f %%: %s", 100 * fraction, what)
            update_progress_artifact(artifact, progress=100.0 * fraction)

    return artifact, progress


def is_trained(plan_uri: str) -> bool:
    """Whether the worker has left its package and record."""
    from tasks.store import ObjectStore
    from tasks.train.plan import load_record

    return load_record(ObjectStore(), plan_uri.rsplit("/", 1)[0]) is not None


@task(name="finish training")
def finish_training(plan_uri: str) -> dict[str, str]:
    """Make the outputs visible, register the package in MLflow and show both.

    Returns:
        ``package``: URI of the .dlpk; ``model``: its name in the registry (``models:/<name>/<version>``);
        ``outputs``: URI of the published folder; ``already_done``: "true" where an earlier run had
        published it.
    """
    from tasks.store import ObjectStore
    from tasks.tracking import register_package
    from tasks.train.plan import load_plan
    from tasks.train.work import finish

    store = ObjectStore()
    plan = load_plan(store, plan_uri)
    result = finish(store, plan_uri, {"flow_run": flow_run.get_id()})
    details = result.manifest.details
    for doubt in details["metrics"].get("doubts", []):
        get_run_logger().warning(doubt)
    version = register_package(
        plan.name,
        details["package"],
        details["digest"],
        tags={
            **details.get("tags", {}),
            "chipline.run_key": plan.run_key,
            "chipline.model_type": plan.parameters.model_type,
        },
        run_id=result.manifest.provenance.get("mlflow_run") or None,
        alias=ALIAS,
    )
    model = f"models:/{plan.name}/{version}"
    _leave_artifacts(store, plan, result.manifest, model=model, already_done=result.already_done)
    return {
        "package": details["package"],
        "model": model,
        "outputs": plan.folder_uri,
        "already_done": str(result.already_done).lower(),
    }


def _leave_artifacts(
    store: ObjectStore, plan: TrainPlan, manifest: Manifest, *, model: str, already_done: bool
) -> None:
    import base64

    state = "already done by an earlier run" if already_done else "done"
    create_table_artifact(
        key="train-outputs",
        table=outputs_table(store, plan, manifest, model),
        description=f"Model **{plan.name}** ({plan.parameters.model_type}), {state}",
    )
    create_table_artifact(
        key="train-accuracy",
        table=accuracy_table(manifest),
        description="Values on the validation chips, which no training chip overlaps",
    )
    picture = base64.b64encode(_picture(store, plan)).decode("ascii")
    create_image_artifact(
        key="train-samples",
        image_url=f"data:image/jpeg;base64,{picture}",
        description="Validation chips: the labels above, the predictions below",
    )


def outputs_table(
    store: ObjectStore, plan: TrainPlan, manifest: Manifest, model: str
) -> list[dict[str, Any]]:
    """The outputs with links that work for a week without credentials."""
    from tasks.store import join
    from tasks.train.work import PAGE

    def link(uri: str) -> str:
        return f"[open]({store.presign(uri, _LINK_SECONDS)})"

    details = manifest.details
    rows: list[dict[str, Any]] = [
        {"output": "package", "content": details["package"], "link": link(details["package"])},
        {"output": "registered model", "content": f"{model} (alias {ALIAS})", "link": "-"},
        {
            "output": "accuracy",
            "content": "curves, sample predictions, values per class",
            "link": link(join(plan.folder_uri, PAGE)),
        },
    ]
    url = manifest.provenance.get("mlflow_url")
    if url:
        rows.append({"output": "MLflow run", "content": "parameters, curves", "link": f"[open]({url})"})
    return rows


def accuracy_table(manifest: Manifest) -> list[dict[str, Any]]:
    """One row per class."""
    return [
        {
            "class": name,
            **{key: "-" if value is None else f"{value:.4g}" for key, value in values.items()},
        }
        for name, values in manifest.details["metrics"]["per_class"].items()
    ]


def _picture(store: ObjectStore, plan: TrainPlan) -> bytes:
    """The sample predictions as a JPEG that fits into an artifact."""
    import io

    from PIL import Image

    from tasks.store import join
    from tasks.train.work import PICTURES

    data = store.get(join(plan.folder_uri, PICTURES, "show_results.png"))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for quality in (85, 70, 50, 30):
        stream = io.BytesIO()
        image.save(stream, format="JPEG", quality=quality)
        if stream.tell() <= _PICTURE_BYTES:
            break
    return stream.getvalue()


def begin_search(parameters: SearchParameters) -> tuple[Search, str]:
    """Open the search, or the one that was begun before, and its MLflow run; returns the run's id too."""
    from tasks.store import ObjectStore
    from tasks.tracking import Tracker, find_run
    from tasks.train.study import Search

    search = Search(ObjectStore(), parameters)
    name = parameters.output_name
    begun = find_run(name, _RUN_KEY_TAG, search.key)
    if begun is not None:
        return search, Tracker.resume(name, begun).run_id
    tags = {_RUN_KEY_TAG: search.key, "chipline.outputs": search.folder_uri}
    tracker = Tracker.start(name, f"search {search.key[:8]}", parameters.model_dump(mode="json"), tags)
    return search, tracker.run_id


def trial_curve(name: str, run_key: str, monitor: str, parent_run: str) -> list[tuple[float, int, float]]:
    """The monitored value of a training so far, whose run is put below that of the search.

    Returns:
        seconds since its start, epoch, value; empty where it has not begun.
    """
    from tasks.tracking import find_run, read_curve, tag_run

    run = find_run(name, _RUN_KEY_TAG, run_key)
    if run is None:
        return []
    tag_run(run, {"mlflow.parentRunId": parent_run})
    return read_curve(run, monitor.lower())


def note_trial(name: str, run_key: str, why: str) -> None:
    """Say in MLflow why a training was given up; MLflow that is away ends no search."""
    from tasks.errors import TrackingError
    from tasks.tracking import find_run, tag_run

    try:
        run = find_run(name, _RUN_KEY_TAG, run_key)
        if run is not None:
            tag_run(run, {"chipline.given_up": why}, status="KILLED")
    except TrackingError as error:
        get_run_logger().warning("MLflow was not told that a training was given up: %s", error)


def finish_search(search: Search, parent_run: str) -> dict[str, str]:
    """Publish the trials and show them.

    Returns:
        ``search``: URI of the published folder; ``plan_uri`` of the best training; ``best_trial``,
        ``best_value``.
    """
    from tasks.store import join
    from tasks.tracking import Tracker
    from tasks.train.search_record import DATA, TABLE, publish_search

    store, parameters = search.store, search.parameters
    best, value = search.best
    folder = publish_search(store, search, {"flow_run": flow_run.get_id(), "mlflow_run": parent_run})
    tracker = Tracker.resume(parameters.output_name, parent_run)
    tracker.metrics({f"best_{parameters.monitor.lower()}": value, "best_trial": best.number})
    for name in (TABLE, DATA):
        tracker.text(store.get(join(folder, name)).decode(), name)
    tracker.finish()
    shown = [
        {
            key: "-" if item is None else f"{item:.4g}" if isinstance(item, float) else item
            for key, item in row.items()
        }
        for row in search.rows()
    ]
    create_table_artifact(
        key="search-trials",
        table=shown,
        description=f"Trials of **{parameters.output_name}** by {parameters.monitor}; the best is "
        f"trial {best.number} with {value:.4g}. `{folder}`",
    )
    return {
        "search": folder,
        "plan_uri": best.plan_uri,
        "best_trial": str(best.number),
        "best_value": f"{value:.6g}",
    }
