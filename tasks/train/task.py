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
    from tasks.train.plan import TrainPlan

ALIAS = "current"
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
    import time

    from tasks.store import ObjectStore
    from tasks.train.work import run_training, start_tracker

    log = get_run_logger()
    artifact: Any = create_progress_artifact(progress=0.0, description="Training")
    reported = time.monotonic()

    def progress(fraction: float, what: str) -> None:
        nonlocal reported
        if time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            log.info("%3.0f %%: %s", 100 * fraction, what)
            update_progress_artifact(artifact, progress=100.0 * fraction)

    record = run_training(ObjectStore(), plan_uri, start=start_tracker, progress=progress)
    update_progress_artifact(artifact, progress=100.0)
    log.info("Trained on %s: %s", record.metrics["device"], record.package)


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
