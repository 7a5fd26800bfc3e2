"""Imagery and a package in, classified rasters out."""

from __future__ import annotations

from flows._inference import run_inference
from flows._tool import tool
from tasks.infer.parameters import ClassifyPixelsParameters


@tool(ClassifyPixelsParameters, run_name="classify {output_classified_raster}")
def classify_pixels(parameters: ClassifyPixelsParameters) -> dict[str, str]:
    """Classify every pixel of imagery with a deep learning package."""
    return run_inference(parameters, verb="Classify pixels")
