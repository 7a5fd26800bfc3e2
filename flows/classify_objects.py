"""Imagery, features and a package in, labelled features out."""

from __future__ import annotations

from flows._inference import run_inference
from flows._tool import tool
from tasks.infer.parameters import ClassifyObjectsParameters


@tool(ClassifyObjectsParameters, run_name="classify objects {out_feature_class}")
def classify_objects(parameters: ClassifyObjectsParameters) -> dict[str, str]:
    """Label polygons, lines, points or whole images with a deep learning package."""
    return run_inference(parameters, verb="Classify objects")
