"""A published result in, the same with other thresholds, suppression and outlines out."""

from __future__ import annotations

from flows._tool import tool
from tasks.infer.parameters_refine import RefineParameters
from tasks.infer.task import refine_result


@tool(RefineParameters, run_name="refine {input_result}")
def refine_results(parameters: RefineParameters) -> dict[str, str]:
    """Set other thresholds, suppress, vectorise and shape again, from what a result kept; no model runs."""
    return refine_result(parameters)
