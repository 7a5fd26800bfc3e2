"""Imagery and a package in, one layer of objects out."""

from __future__ import annotations

from flows._inference import run_inference
from flows._tool import tool
from tasks.infer.parameters import DetectObjectsParameters


@tool(DetectObjectsParameters, run_name="detect {output_objects}")
def detect_objects(parameters: DetectObjectsParameters) -> dict[str, str]:
    """Find objects in imagery with a deep learning package."""
    return run_inference(parameters, verb="Detect objects")
