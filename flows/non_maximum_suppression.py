"""A layer of overlapping objects in, the surest of them out."""

from __future__ import annotations

from flows._tool import tool
from tasks.infer.parameters_suppression import SuppressionParameters
from tasks.infer.task import suppress_features


@tool(SuppressionParameters, run_name="suppress {out_features}")
def non_maximum_suppression(parameters: SuppressionParameters) -> dict[str, str]:
    """Of objects that overlap too much, keep the one with the highest confidence."""
    return suppress_features(parameters)
