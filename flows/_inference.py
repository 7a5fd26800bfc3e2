"""What all inference tools do: plan, run the parts where the devices are, finish."""

from __future__ import annotations

from uuid import uuid4

from flows._parts import run_leaf, run_parts, workers_of
from tasks.infer.both import check_tells_both, with_classes
from tasks.infer.parameters import InferenceTool, parts_at_once
from tasks.infer.task import (
    estimate_inference,
    finish_inference,
    hold_lease,
    is_plan_whole,
    parts_done,
    plan_calibration,
    plan_inference,
)

CALIBRATION_BEGINS_WITHIN_S = 120.0


def run_inference(parameters: InferenceTool, *, verb: str) -> dict[str, str]:
    """Run an inference whose parts are leaf deployments; the addresses of its outputs.

    With ``dry_run`` only what it would take is said, and returned. Where Detect Objects is to give a
    classified raster, too, both are computed, and the names of the raster's addresses have
    ``classified_raster_`` before them.

    Args:
        parameters: the tool's parameters.
        verb: what is done, for the log and the progress artifact.
    """
    parameters, classes = with_classes(parameters)
    if classes is not None:
        check_tells_both(classes)
        raster = run_inference(classes, verb="Classify pixels")
        found = run_inference(parameters, verb=verb)
        return {**found, **{f"classified_raster_{name}": value for name, value in raster.items()}}
    if parameters.dry_run:
        return estimate_run(parameters)
    plan = plan_inference(parameters, workers_of("infer_part"))
    plan_uri = plan["plan_uri"]
    if plan["done"]:
        return finish_inference(plan_uri)
    with hold_lease(plan_uri) as lease:
        if not is_plan_whole(plan_uri):  # an old run's folder that was collected just before the lease
            plan = plan_inference(parameters, workers_of("infer_part"))
        while True:
            run_parts(
                "infer_part",
                run_key=plan["work_key"],
                parts=[{"plan_uri": plan_uri, "part": part} for part in range(plan["parts"])],
                title=f"{verb}: {plan['shards']} shards",
                is_done=parts_done(plan_uri),
                at_once=parts_at_once(parameters.parallel_processing_factor),
                keep=lease.keep,
            )
            if lease.held_all_along():
                return finish_inference(plan_uri)


def estimate_run(parameters: InferenceTool) -> dict[str, str]:
    """What a run would take; a few tiles are timed by a worker of the pool that would compute it.

    Args:
        parameters: the tool's parameters.
    """
    token = uuid4().hex
    plan = plan_calibration(parameters, token, workers_of("infer_part"))
    why_not = plan["why_not"]
    if not why_not and not run_leaf(
        "infer_calibration",
        {"plan_uri": plan["plan_uri"]},
        key=token,
        begin_within_s=CALIBRATION_BEGINS_WITHIN_S,
    ):
        why_not = f"no worker of the pool was free within {CALIBRATION_BEGINS_WITHIN_S:.0f} s"
    return estimate_inference(plan["plan_uri"], why_not)
