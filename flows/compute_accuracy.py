"""Results and truth in, accuracy with confidence intervals out."""

from __future__ import annotations

from typing import Any

from flows._tool import tool
from tasks.assess.parameters import AccuracyParameters
from tasks.assess.task import assess


@tool(AccuracyParameters, run_name="accuracy {out_accuracy_table}")
def compute_accuracy(parameters: AccuracyParameters) -> dict[str, Any]:
    """Score detected objects and classified pixels against labels, with confidence intervals."""
    return assess(parameters)
