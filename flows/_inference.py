"""What all inference tools do: plan, run the parts where the devices are, finish."""

from __future__ import annotations

from flows._parts import run_parts
from tasks.infer.parameters import InferenceTool, parts_at_once
from tasks.infer.task import estimate_inference, finish_inference, is_part_done, plan_inference


def run_inference(parameters: InferenceTool, *, verb: str) -> dict[str, str]:
    """Run an inference whose parts are leaf deployments; the addresses of its outputs.

    With ``dry_run`` only what it would take is said, and returned.

    Args:
        parameters: the tool's parameters.
        verb: what is done, for the log and the progress artifact.
    """
    if parameters.dry_run:
        return estimate_inference(parameters)
    plan = plan_inference(parameters)
    plan_uri = plan["plan_uri"]
    if not plan["done"]:
        run_parts(
            "infer_part",
            run_key=plan["work_key"],
            parts=[{"plan_uri": plan_uri, "part": part} for part in range(plan["parts"])],
            title=f"{verb}: {plan['shards']} shards",
            is_done=lambda part: is_part_done(plan_uri, part),
            at_once=parts_at_once(parameters.parallel_processing_factor),
        )
    return finish_inference(plan_uri)
