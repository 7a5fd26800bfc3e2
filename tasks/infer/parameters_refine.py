"""Parameters of ``refine_results``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tasks.infer.parameters_outputs import ClassPolygonParameters


class ClassThreshold(BaseModel):
    """The threshold of one class."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="name of the class")
    threshold: float = Field(ge=0, le=1, description="lowest confidence, from 0 to 1")


class RefineParameters(ClassPolygonParameters):
    """Parameters of ``refine_results``."""

    input_result: str = Field(
        min_length=1,
        description="Result of classify_pixels or detect_change (with keep_probabilities where thresholds "
        "are set) or of detect_objects: the URI of its folder, or of its name, such as "
        "s3://bucket/outputs/detect_objects/trees, for the newest",
    )
    output_name: str = Field(min_length=1, description="Name of the output, or the URI of a folder")
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Lowest confidence, from 0 to 1. Objects below it go; a pixel takes the first of its "
        "top classes that reaches it, and none makes it nodata; empty: as it was",
    )
    class_thresholds: list[ClassThreshold] = Field(
        default=[], description="Thresholds of single classes, which go before the common one"
    )
    run_nms: bool = Field(
        default=False,
        description="Run Non Maximum Suppression over the objects: of those that overlap more than "
        "max_overlap_ratio, the one with the higher confidence stays",
    )
    max_overlap_ratio: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Largest overlap, as intersection over union, that run_nms leaves; 0: none",
    )
