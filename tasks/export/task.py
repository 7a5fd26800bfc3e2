"""The Prefect tasks of an export: plan, one part, finish. Heavy modules are loaded inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from prefect import task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from tasks.export.parameters import ExportParameters

if TYPE_CHECKING:
    from tasks.export.plan import ExportPlan
    from tasks.store import Manifest, ObjectStore

_LINK_SECONDS = 7 * 24 * 3600
_REPORT_EVERY = 500


class PlannedExport(TypedDict):
    """What the flow needs to know of a plan.

    ``work_key`` is one for every output folder: exports of the same content under two names share no runs.
    """

    plan_uri: str
    work_key: str
    parts: int
    chips: int
    done: bool


@task(name="plan export")
def plan_export(parameters: ExportParameters) -> PlannedExport:
    """Check the inputs, number the chips and put the plan into the store; no pixel is read."""
    from tasks.export.finish import published
    from tasks.export.inputs import inspect_inputs
    from tasks.export.plan import PLAN, plan_in_force, save_plan
    from tasks.store import ObjectStore, join, run_key

    log = get_run_logger()
    store = ObjectStore()
    inputs = inspect_inputs(parameters)
    work_key = run_key(inputs.folder_uri)
    manifest = published(store, inputs.folder_uri)
    if manifest is not None:
        log.info("Already done: the same inputs and parameters gave %s", inputs.folder_uri)
        return PlannedExport(
            plan_uri=join(inputs.folder_uri, PLAN),
            work_key=work_key,
            parts=0,
            chips=int(manifest.details["chips"]),
            done=True,
        )
    plan = plan_in_force(store, parameters, inputs)
    plan_uri = save_plan(store, plan)
    for note in plan.notes:
        log.warning("%s", note)
    log.info("%d chips in %d parts; %s", plan.chips, len(plan.parts), _labels_text(plan.labels))
    return PlannedExport(
        plan_uri=plan_uri, work_key=work_key, parts=len(plan.parts), chips=plan.chips, done=False
    )


@task(name="cut chips")
def run_part(plan_uri: str, part: int) -> None:
    """Cut the chips of one part, unless they are in the store already."""
    from tasks.export.crew import Crew

    # First of all: the other processes load what they need while this one does.
    with Crew() as crew:
        from tasks.export.cut import cut_part
        from tasks.export.plan import load_plan
        from tasks.store import ObjectStore

        log = get_run_logger()
        store = ObjectStore()
        reported = 0

        def progress(written: int, total: int) -> None:
            nonlocal reported
            if written - reported >= _REPORT_EVERY or written == total:
                reported = written
                log.info("%d of %d chips written", written, total)

        cut_part(store, load_plan(store, plan_uri), part, crew=crew, progress=progress)


def is_part_done(plan_uri: str, part: int) -> bool:
    """Whether all chips of a part are in the store."""
    from tasks.export.cut import result_uri
    from tasks.store import ObjectStore

    return ObjectStore().exists(result_uri(plan_uri.rsplit("/", 1)[0], part))


@task(name="finish export")
def finish_export(plan_uri: str, parameters: ExportParameters) -> dict[str, str]:
    """Write the side files, make the training data visible and show it.

    Returns:
        ``training_data``: URI of the published folder; ``chips``: their number; ``already_done``:
        "true" where an earlier run had published it.
    """
    from tasks.export.finish import finish
    from tasks.export.plan import load_plan
    from tasks.store import ObjectStore

    store = ObjectStore()
    # The name that points at the folder is today's, also where the folder is an earlier run's.
    plan = load_plan(store, plan_uri, today=parameters)
    result = finish(store, plan, {"flow_run": flow_run.get_id(), "finished": _now()})
    _leave_artifacts(store, plan, result.manifest, already_done=result.already_done)
    return {
        "training_data": plan.folder_uri,
        "chips": str(result.manifest.details["chips"]),
        "already_done": str(result.already_done).lower(),
    }


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")


def _leave_artifacts(store: ObjectStore, plan: ExportPlan, manifest: Manifest, *, already_done: bool) -> None:
    import base64

    from tasks.export.preview import contact_sheet, footprints

    state = "already done by an earlier run" if already_done else "done"
    create_table_artifact(
        key="export-outputs",
        table=outputs_table(store, plan, manifest),
        description=f"Training data **{manifest.name}**, {state}: `{plan.folder_uri}`",
    )
    balance = class_table(manifest)
    if balance:
        create_table_artifact(
            key="export-classes",
            table=balance,
            description=f"Class balance. {_labels_text(manifest.details['labels']).capitalize()}.",
        )
    for key, picture, description in (
        (
            "export-chips",
            contact_sheet(store, plan),
            "Chips with their labels, spread evenly over the export",
        ),
        ("export-footprint", footprints(store, plan), "Where the chips lie on the imagery"),
    ):
        create_image_artifact(
            key=key,
            image_url=f"data:image/jpeg;base64,{base64.b64encode(picture).decode('ascii')}",
            description=description,
        )


def outputs_table(store: ObjectStore, plan: ExportPlan, manifest: Manifest) -> list[dict[str, Any]]:
    """The outputs with links that work for a week without credentials."""
    from tasks.store import join
    from tasks.training_data import layout
    from tasks.training_data.formats import format_of

    rows: list[dict[str, Any]] = [
        {
            "output": "training data",
            "content": f"{manifest.details['chips']} chips, {manifest.files} files, {manifest.bytes:,} bytes",
            "link": plan.folder_uri,
        }
    ]
    side = f"{plan.sides[0]}/" if plan.sides[0] else ""
    for name, content in (
        (layout.STATS, "statistics, as text"),
        (layout.MAP, "list of chips and labels"),
        (layout.ACCUMULATED_STATS, "statistics, as JSON"),
        (layout.DEFINITION, "template of the model definition"),
    ):
        if name == layout.MAP and not format_of(plan.parameters.metadata_format).has_map:
            continue
        link = store.presign(join(plan.folder_uri, side + name), _LINK_SECONDS)
        rows.append({"output": side + name, "content": content, "link": f"[open]({link})"})
    return rows


def class_table(manifest: Manifest) -> list[dict[str, Any]]:
    """The balance of the classes; no rows for formats that count nothing."""
    classes = manifest.details["classes"] if manifest.details["counts"] != "nothing" else []
    tiles = manifest.details["counts"] == "pixels"
    total = sum(item["count"] for item in classes) or 1
    unit = "pixels" if tiles else "features"
    return [
        {
            "class": item["name"],
            "value": item["value"],
            "chips": item["chips"],
            unit: item["count"],
            "share": f"{100 * item['count'] / total:.1f} %",
            "mean size": f"{item['mean_size']:.2f}" + (" px" if tiles else " squared map units"),
        }
        for item in classes
    ]


def _labels_text(labels: Mapping[str, Any]) -> str:
    """What was read of the labels, as a phrase."""
    if not labels:
        return "no labels"
    if "raster" in labels:
        return f"labels from the classified raster {labels['raster']}"
    return (
        f"{labels['features']} labels were read; {labels['repaired']} had invalid rings that were repaired, "
        f"{labels['empty']} were left out without geometry, {labels['unprojectable']} because they lie "
        "outside the imagery's projection"
    )
