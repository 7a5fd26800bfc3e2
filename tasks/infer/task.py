"""The Prefect tasks of an inference: plan, one part, finish. Heavy modules are loaded inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypedDict

from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from tasks.infer.parameters import InferenceTool
from tasks.infer.parameters_collect import CollectParameters
from tasks.infer.parameters_refine import RefineParameters
from tasks.infer.parameters_suppression import SuppressionParameters
from tasks.infer.series_report import is_summary, series_markdown

if TYPE_CHECKING:
    from tasks.infer.finish import Finished
    from tasks.infer.leases import HeldLease
    from tasks.infer.planned import Plan
    from tasks.store import ObjectStore

_LINK_SECONDS = 7 * 24 * 3600
_REPORT_SECONDS = 10.0


class PlannedInference(TypedDict):
    """What the flow needs to know of a plan; ``work_key`` names the work and how it is cut into parts."""

    plan_uri: str
    work_key: str
    parts: int
    shards: int
    done: bool


@task(name="plan inference")
def plan_inference(parameters: InferenceTool, workers: int) -> PlannedInference:
    """Check imagery and package, cut the work into shards and parts, and put the plan into the store.

    Args:
        parameters: the tool's parameters.
        workers: that are there for parts; 0 where nobody knows.
    """
    from tasks.infer.finish import published
    from tasks.infer.part import load_plan, save_plan
    from tasks.infer.prepare import prepare
    from tasks.store import ObjectStore

    log = get_run_logger()
    store = ObjectStore()
    plan = prepare(parameters, store, workers=workers)
    log.info("Package %s, SHA-256 %s: %s", plan.package.name, plan.package.digest, plan.package.trust)
    for remark in plan.remarks:
        log.warning(remark)
    plan_uri = save_plan(store, plan)
    plan = load_plan(store, plan_uri)  # an earlier run of the same work may have chosen the parts
    planned = PlannedInference(
        plan_uri=plan_uri,
        work_key=f"{plan.run_key}-{plan.cut_name}",
        parts=len(plan.parts),
        shards=len(plan.shards),
        done=published(store, plan) is not None,
    )
    if planned["done"]:
        log.info("Already done: the same inputs and parameters gave %s", plan.folder)
        return planned
    log.info(
        "%d rasters, %s megapixels on %d grids: %d shards in %d parts, planned for the %s",
        len(plan.rasters),
        f"{plan.pixels / 1e6:,.1f}",
        len(plan.grids),
        len(plan.shards),
        len(plan.parts),
        plan.processor,
    )
    return planned


class PlannedCalibration(TypedDict):
    """What the flow needs to know of a dry run; ``why_not``: why no tile is timed."""

    plan_uri: str
    why_not: str


@task(name="plan dry run")
def plan_calibration(parameters: InferenceTool, token: str, workers: int) -> PlannedCalibration:
    """Plan, and leave the plan where the workers find it."""
    from tasks.infer.estimate import why_no_calibration
    from tasks.infer.prepare import prepare
    from tasks.store import ObjectStore, join

    log = get_run_logger()
    store = ObjectStore()
    plan = prepare(parameters, store, workers=workers)
    for remark in plan.remarks:
        log.warning(remark)
    uri = join(plan.folder, "calibrations", token, "plan.json")
    store.put(uri, plan.model_dump_json().encode(), content_type="application/json")
    return PlannedCalibration(plan_uri=uri, why_not=why_no_calibration(store, plan))


@task(name="calibrate")
def run_calibration(plan_uri: str) -> None:
    """Time a few tiles on this worker and leave the times beside the plan."""
    from tasks.infer.estimate import calibrate, save_calibration
    from tasks.infer.part import load_plan
    from tasks.package.fetch import fetch_package
    from tasks.store import ObjectStore

    store = ObjectStore()
    plan = load_plan(store, plan_uri)
    calibration = calibrate(store, plan, fetch_package(plan.package.uri, store))
    save_calibration(store, plan_uri, calibration)
    get_run_logger().info(
        "%d tiles on %s in %.2f s", calibration.tiles, calibration.device, calibration.seconds
    )


@task(name="estimate inference")
def estimate_inference(plan_uri: str, why_not: str) -> dict[str, str]:
    """Say what a run would take, from its plan and a worker's times; the dry run's plan is removed.

    Args:
        plan_uri: of the dry run.
        why_not: why there are no times; empty where there are.

    Returns:
        The fields of ``tasks.infer.estimate.Estimate`` that are known, as text.
    """
    from tasks.infer.estimate import estimate, load_calibration, remove_calibration
    from tasks.infer.part import load_plan
    from tasks.store import ObjectStore

    log = get_run_logger()
    store = ObjectStore()
    plan = load_plan(store, plan_uri)
    calibration = None if why_not else load_calibration(store, plan_uri)
    found = estimate(store, plan, calibration, why_not)
    remove_calibration(store, plan_uri)
    known = {
        name: f"{value:,}" if isinstance(value, int | float) else value
        for name, value in found.model_dump().items()
        if value not in (None, "")
    }
    for name, value in known.items():
        log.info("%s: %s", name, value)
    create_table_artifact(
        key=f"{plan.tool.replace('_', '-')}-estimate",
        table=[{"what": name.replace("_", " "), "value": value} for name, value in known.items()],
        description=f"What {plan.tool} **{plan.output}** would take on one worker (a dry run)",
    )
    return known


@task(name="infer part")
def run_part(plan_uri: str, part: int) -> None:
    """Compute the shards of one part that are not in the store yet."""
    import time

    from tasks.infer.part import compute_part, load_plan
    from tasks.package.fetch import fetch_package
    from tasks.store import ObjectStore

    log = get_run_logger()
    store = ObjectStore()
    plan = load_plan(store, plan_uri)
    package = fetch_package(plan.package.uri, store)
    reported = time.monotonic()

    def progress(done: int, in_all: int) -> None:
        nonlocal reported
        if done == in_all or time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            log.info("%d of %d shards done", done, in_all)

    report = compute_part(store, plan, part, package=package, progress=progress)
    for reason in report.execution.get("fell_back", []):
        log.warning("Another execution engine computes: %s", reason)
    if report.execution.get("kept_useless"):
        log.warning("A kept engine was of no use and is made anew: %(kept_useless)s", report.execution)
    for reason in report.batch.get("reasons", []):
        log.warning("Memory ran out: %s", reason)
    if report.batch.get("reasons"):
        log.warning("Computed with batches of %(used)d, where %(planned)d were planned", report.batch)
    if report.execution:
        log.info("Computed by %(execution_engine)s in %(precision)s", report.execution)
    log.info(
        "Ran on %s: %d tiles in %.1f s, after %.1f s of starting; %d shards were there already",
        report.device,
        report.counters["tiles"],
        report.seconds,
        report.seconds_starting,
        report.counters["shards_found"],
    )


def parts_done(plan_uri: str) -> Callable[[int], bool]:
    """Says of a part whether all its shards are in the store; the plan is read once."""
    from tasks.infer.part import is_done, load_plan
    from tasks.store import ObjectStore

    store = ObjectStore()
    plan = load_plan(store, plan_uri)
    return lambda part: is_done(store, plan, part)


def hold_lease(plan_uri: str) -> AbstractContextManager[HeldLease]:
    """Keep what a plan needs from being collected, while the block lasts; see ``tasks.infer.leases``."""
    from tasks.infer.leases import leased
    from tasks.store import ObjectStore

    return leased(ObjectStore(), plan_uri, flow_run=flow_run.get_id() or "")


def is_plan_whole(plan_uri: str) -> bool:
    """Whether a plan and the tables that it names are in the store."""
    from tasks.infer.mask import TABLE as MASK_TABLE
    from tasks.infer.part import load_plan
    from tasks.store import ObjectStore, join

    store = ObjectStore()
    if not store.exists(plan_uri):
        return False
    plan = load_plan(store, plan_uri)
    tables = [MASK_TABLE] if plan.mask else []
    if plan.crops is not None:
        tables.append(plan.crops.table)
    return all(store.exists(join(plan.folder, table)) for table in tables)


@task(name="collect")
def collect_garbage(parameters: CollectParameters) -> dict[str, Any]:
    """Look through the store, delete unless it is a dry run, and leave a table.

    Returns:
        ``bytes`` and ``objects`` that were deleted, or would be, and the records of ``Collection``.
    """
    from datetime import timedelta

    from tasks.infer.collect import Collector
    from tasks.store import ObjectStore

    log = get_run_logger()
    collector = Collector(
        ObjectStore(),
        older_than=timedelta(days=parameters.older_than_days),
        grace=timedelta(days=parameters.grace_days),
    )
    found = collector.run(parameters.what, dry_run=parameters.dry_run)
    for remark in found.remarks:
        log.warning(remark)
    verb = "would be deleted" if parameters.dry_run else "deleted"
    for kind in found.kinds:
        objects, size = (
            (kind.found, kind.found_bytes) if parameters.dry_run else (kind.deleted, kind.deleted_bytes)
        )
        log.info(
            "%s: %d objects of %.1f MB %s; %d are needed by runs under way, %d are not old enough",
            kind.what, objects, size / 1e6, verb, kind.needed, kind.young,
        )  # fmt: skip
    create_table_artifact(
        key="collect-shards",
        table=[kind.model_dump() for kind in found.kinds],
        description=f"What {verb}; {found.leases} runs hold leases",
    )
    return {"dry_run": parameters.dry_run, **found.model_dump()}


@task(name="finish inference")
def finish_inference(plan_uri: str) -> dict[str, str]:
    """Put the outputs together, make them visible and show them.

    Returns:
        ``uri``: the classified raster, or the folder (ending in '/') where there are several, or the layer
        as GeoParquet; ``folder``; ``geopackage`` for objects; ``run_key``; ``already_done``: "true" where an
        earlier run had published the same.
    """
    from datetime import UTC, datetime

    from tasks.infer.finish import finish
    from tasks.infer.part import load_plan
    from tasks.store import ObjectStore

    log = get_run_logger()
    store = ObjectStore()
    plan = load_plan(store, plan_uri)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    result = finish(store, plan, {"flow_run": flow_run.get_id(), "finished": finished})
    for remark in result.manifest.details["remarks"]:
        log.warning(remark)
    _leave_artifacts(store, plan, result)
    return {
        **addresses(plan, result),
        "folder": plan.folder,
        "run_key": plan.run_key,
        "already_done": str(result.already_done).lower(),
    }


@task(name="refine")
def refine_result(parameters: RefineParameters) -> dict[str, str]:
    """Refine a published result and publish what comes of it.

    Returns:
        ``uri`` of the first output, ``folder``, ``already_done``: "true" where an earlier run had published
        the same.
    """
    from tasks.infer.refine import refine
    from tasks.store import ObjectStore, join

    log = get_run_logger()
    store = ObjectStore()
    result = refine(store, parameters, {"flow_run": flow_run.get_id()})
    rows = []
    for output in result.details["outputs"]:
        uri = join(result.folder, output["path"])
        link = store.presign(uri, _LINK_SECONDS)
        content = f"{output['objects']} objects" if "objects" in output else f"{output['dtype']} raster"
        rows.append({"output": output["path"], "content": content, "URI": uri, "link": f"[open]({link})"})
        log.info("%s: %s", output["path"], content)
    state = "already done by an earlier run" if result.already_done else "done"
    create_table_artifact(
        key="refine-results-outputs", table=rows, description=f"**{parameters.output_name}**, {state}"
    )
    return {
        "uri": rows[0]["URI"],
        "folder": result.folder,
        "already_done": str(result.already_done).lower(),
    }


@task(name="suppress")
def suppress_features(parameters: SuppressionParameters) -> dict[str, str]:
    """Thin a layer out and publish what stays.

    Returns:
        ``uri`` of the layer as GeoParquet, ``geopackage``, ``folder``, ``already_done``: "true" where an
        earlier run had published the same.
    """
    from tasks.infer.suppress_layer import suppress_layer
    from tasks.store import ObjectStore, join

    log = get_run_logger()
    store = ObjectStore()
    result = suppress_layer(store, parameters, {"flow_run": flow_run.get_id()})
    before, after = result.details["objects_before_suppression"], result.details["objects"]
    log.info("%d of %d objects stay", after, before)
    rows = []
    for output in result.details["outputs"]:
        uri = join(result.folder, output["path"])
        link = store.presign(uri, _LINK_SECONDS)
        rows.append({"output": output["path"], "URI": uri, "link": f"[open]({link})"})
    state = "already done by an earlier run" if result.already_done else "done"
    create_table_artifact(
        key="non-maximum-suppression-outputs",
        table=rows,
        description=f"**{parameters.out_features}**, {state}: {after:,} of {before:,} objects stay",
    )
    return {
        "uri": rows[0]["URI"],
        "geopackage": rows[1]["URI"],
        "folder": result.folder,
        "already_done": str(result.already_done).lower(),
    }


def addresses(plan: Plan, result: Finished) -> dict[str, str]:
    """URIs of the outputs by name."""
    from tasks.store import join

    outputs = result.manifest.details["outputs"]
    if plan.finishing.get("series") is not None:
        return {"uri": plan.folder.rstrip("/") + "/"}
    if plan.tool in ("detect_objects", "classify_objects"):
        return {
            "uri": join(plan.folder, outputs[0]["path"]),
            "geopackage": join(plan.folder, outputs[1]["path"]),
        }
    if len(plan.grids) == 1:
        return {"uri": join(plan.folder, outputs[0]["path"])}
    return {"uri": plan.folder.rstrip("/") + "/"}


def _leave_artifacts(store: ObjectStore, plan: Plan, result: Finished) -> None:
    import base64

    from tasks.infer.items import MOST_PREVIEWS, preview_name
    from tasks.store import join

    tool = plan.tool.replace("_", "-")
    state = "already done by an earlier run" if result.already_done else "done"
    create_table_artifact(
        key=f"{tool}-outputs",
        table=outputs_table(store, plan, result),
        description=f"Outputs of {plan.tool} **{result.manifest.name}**, {state}: `{plan.folder}`",
    )
    shown = [] if plan.crops is not None and plan.crops.whole_images else plan.grids[:MOST_PREVIEWS]
    for planned in shown:
        image = base64.b64encode(store.get(join(plan.folder, preview_name(planned)))).decode("ascii")
        create_image_artifact(
            key=f"{tool}-picture",
            image_url=f"data:image/jpeg;base64,{image}",
            description=f"{planned.name}: the result over the imagery",
        )
    create_markdown_artifact(key=f"{tool}-summary", markdown=summary(plan, result))
    changes = next((item for item in result.manifest.details["outputs"] if is_summary(item)), None)
    if changes is not None:
        document = json.loads(store.get(join(plan.folder, changes["path"])))
        create_markdown_artifact(key=f"{tool}-changes", markdown=series_markdown(document))


def outputs_table(store: ObjectStore, plan: Plan, result: Finished) -> list[dict[str, Any]]:
    """The outputs with links that work for a week without credentials."""
    from tasks.store import join

    rows = []
    for output in result.manifest.details["outputs"]:
        uri = join(plan.folder, output["path"])
        if "objects" in output:
            content = f"{output['objects']} objects"
        elif "rows_in_table" in output:
            content = f"table of {output['rows_in_table']} rows"
        else:
            content = f"{output['rows']} x {output['cols']} pixels, {output['dtype']}"
        link = store.presign(uri, _LINK_SECONDS)
        rows.append({"output": output["path"], "content": content, "URI": uri, "link": f"[open]({link})"})
    return rows


def summary(plan: Plan, result: Finished) -> str:
    """What was computed from what, on what, for a run's page."""
    manifest = result.manifest
    execution = [part["execution"] for part in manifest.provenance["parts"] if part.get("execution")]
    engines = dict.fromkeys(f"{one['execution_engine']} in {one['precision']}" for one in execution)
    reasons = dict.fromkeys(reason for one in execution for reason in one.get("fell_back", []))
    lines = [
        f"**{plan.tool}** of {len(plan.rasters)} rasters by the package `{plan.package.name}` "
        f"(`{plan.package.digest[:12]}`): {plan.pixels:,} pixels in {len(plan.shards)} shards.",
        "",
        f"Computed on: {', '.join(manifest.provenance['devices'])}"
        + (f", by {' and '.join(engines)}." if engines else "."),
    ]
    for output in manifest.details["outputs"]:
        counts = output.get("objects_per_class") or _named(plan, output.get("pixels_per_class", {}), "pixels")
        if counts:
            listed = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
            lines += ["", f"`{output['path']}`: {listed}."]
        areas = _named(plan, output.get("area_m2_per_class", {}), "m²")
        if areas:
            listed = ", ".join(f"{name}: {area:,.1f}" for name, area in areas.items())
            lines += ["", f"Areas: {listed}."]
    lines += [f"\n> {remark}" for remark in manifest.details["remarks"]]
    lines += [f"\n> Another execution engine computed: {reason}" for reason in reasons]
    return "\n".join(lines)


def _named(plan: Plan, counts: dict[str, float], unit: str) -> dict[str, float]:
    names = {str(item.value): item.name for item in plan.package.classes}
    return {f"{names.get(value, value)} ({unit})": count for value, count in counts.items()}
