"""Two versions of a model on the same ground; the alias moves only when the interval says so."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from flows._parts import run_parts
from flows._tool import tool
from flows.classify_pixels import classify_pixels
from flows.detect_objects import detect_objects
from tasks.assess.parameters_compare import ComparisonParameters
from tasks.assess.task import (
    PlannedComparison,
    chips_done,
    compare_and_decide,
    find_versions,
    plan_on_chips,
)
from tasks.infer.parameters import DetectObjectsParameters, ProcessorType
from tasks.parameters import ModelArgument, inherited


class CompareModelsParameters(ComparisonParameters):
    """Parameters of ``compare_models``: those of the comparison, and how both versions are applied."""

    model_arguments: list[ModelArgument] = inherited(DetectObjectsParameters, "model_arguments")
    processing_mode: Literal["PROCESS_AS_MOSAICKED_IMAGE", "PROCESS_ITEMS_SEPARATELY"] = Field(
        default="PROCESS_ITEMS_SEPARATELY",
        description="How the rasters are taken: each on its own grid, or as one mosaic",
    )
    cell_size: float | None = inherited(DetectObjectsParameters, "cell_size")
    processor_type: ProcessorType = inherited(DetectObjectsParameters, "processor_type")

    @model_validator(mode="after")
    def _chips_are_as_they_are(self) -> CompareModelsParameters:
        if self.evaluation_data is not None and self.cell_size is not None:
            raise ValueError("chips of evaluation_data have their own cells: leave cell_size empty")
        return self


@tool(CompareModelsParameters, run_name="compare versions of {model_name}")
def compare_models(parameters: CompareModelsParameters) -> dict[str, str]:
    """Compare a new version of a model with the champion on a fixed evaluation set, and crown the better."""
    planned = find_versions(parameters)
    if planned["over"]:
        return {"champion": planned["contest"]["champion"]["uri"], "moved": "false"}
    if parameters.evaluation_data is not None:
        return compare_and_decide(parameters, planned, _apply_to_chips(parameters, planned))
    results = {
        role: _apply(parameters, planned["tool"], package, planned["outputs"][role])["uri"]
        for role, package in planned["packages"].items()
    }
    return compare_and_decide(parameters, planned, results)


def _apply_to_chips(parameters: CompareModelsParameters, planned: PlannedComparison) -> dict[str, str]:
    plans = plan_on_chips(parameters, planned, parameters.model_arguments, parameters.processor_type)
    uris = list(plans.values())
    run_parts(
        "assess_chips",
        run_key="-".join(uri.split("/")[-2][:32] for uri in uris),
        parts=[{"plan_uri": uri} for uri in uris],
        title=f"Apply {len(uris)} versions of {parameters.model_name} to chips",
        is_done=lambda part: chips_done(uris[part]),
    )
    return plans


def _apply(parameters: CompareModelsParameters, tool_name: str, package: str, output: str) -> dict[str, Any]:
    inference: dict[str, Any] = {
        "input_raster": parameters.input_raster,
        "model": package,
        "model_arguments": parameters.model_arguments,
        "processing_mode": parameters.processing_mode,
        "cell_size": parameters.cell_size,
        "processor_type": parameters.processor_type,
    }
    if tool_name == "classify_pixels":
        found: dict[str, Any] = classify_pixels(output_classified_raster=output, **inference)
        return found
    if parameters.threshold is not None:
        least = ModelArgument(name="threshold", value=str(parameters.threshold))
        inference["model_arguments"] = [*parameters.model_arguments, least]
    detected: dict[str, Any] = detect_objects(output_objects=output, **inference)
    return detected  # a flow's own result is Any
