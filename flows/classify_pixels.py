"""Imagery and a package in, classified rasters out."""

from __future__ import annotations

from flows._parts import run_parts
from flows._tool import tool
from tasks.infer.parameters import ClassifyPixelsParameters
from tasks.infer.task import finish_inference, is_part_done, plan_inference


@tool(ClassifyPixelsParameters, run_name="classify {output_classified_raster}")
def classify_pixels(parameters: ClassifyPixelsParameters) -> dict[str, str]:
    """Classify every pixel of imagery with a deep learning package."""
    plan = plan_inference(parameters)
    plan_uri = plan["plan_uri"]
    if not plan["done"]:
        run_parts(
            "infer_part",
            run_key=plan["work_key"],
            parts=[{"plan_uri": plan_uri, "part": part} for part in range(plan["parts"])],
            title=f"Classify pixels: {plan['shards']} shards",
            is_done=lambda part: is_part_done(plan_uri, part),
        )
    return finish_inference(plan_uri)
