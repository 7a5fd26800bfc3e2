"""Imagery and labels in, training chips out."""

from __future__ import annotations

from flows._parts import run_parts
from flows._tool import tool
from tasks.export.parameters import ExportParameters
from tasks.export.task import finish_export, is_part_done, plan_export


@tool(ExportParameters, run_name="export {output_location}")
def export_training_data(parameters: ExportParameters) -> dict[str, str]:
    """Cut training chips with labels from imagery, for deep learning."""
    plan = plan_export(parameters)
    if not plan["done"]:
        plan_uri = plan["plan_uri"]
        run_parts(
            "export_part",
            run_key=plan["work_key"],
            parts=[{"plan_uri": plan_uri, "part": part} for part in range(plan["parts"])],
            title=f"Cut {plan['chips']} chips",
            is_done=lambda part: is_part_done(plan_uri, part),
        )
    return finish_export(plan["plan_uri"], parameters)
