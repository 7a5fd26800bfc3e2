"""Imagery of two dates and a package in, a raster of the changes out."""

from __future__ import annotations

from flows._inference import run_inference
from flows._tool import tool
from tasks.infer.parameters import DetectChangeParameters


@tool(DetectChangeParameters, run_name="changes {output_classified_raster}")
def detect_change(parameters: DetectChangeParameters) -> dict[str, str]:
    """Find what changed between two dates with a deep learning package made for pairs of images."""
    return run_inference(parameters, verb="Detect change")
