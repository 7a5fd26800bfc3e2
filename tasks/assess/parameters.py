"""Parameters of ``compute_accuracy``: ArcGIS's names in snake_case, and what pixels need on top.

Source of names and definitions: docs/formats/tools.md, "Compute Accuracy For Object Detection".
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.parameters import ToolParameters


class AccuracyParameters(ToolParameters):
    """Score detected objects, classified pixels or both against labels."""

    ground_truth_features: str = Field(
        min_length=1,
        description="Truth: URI of a GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet file with "
        "polygons, in any coordinate system; append |layername=... to pick a layer. Pixels are compared with "
        "the filled polygons",
    )
    out_accuracy_table: str = Field(
        min_length=1,
        description="Name of the output, or the URI of a folder; holds accuracy.csv, accuracy.json and "
        "report.html",
    )
    out_accuracy_report: Literal["HTML", "HTML_AND_PDF"] = Field(
        default="HTML", description="Form of the report: a page, or a page and report.pdf"
    )
    detected_features: list[str] = Field(
        default=[],
        description="Detected objects: URIs of vector files, or of folders that detect_objects published",
    )
    classified_raster: list[str] = Field(
        default=[],
        description="Classified rasters: URIs, folders, or patterns with '*'. The value 0 and a "
        "NoData value of 0 mean background",
    )
    extent_rasters: list[str] = Field(
        default=[],
        description="Rasters that bound what is assessed: objects whose centre lies in one of their "
        "footprints, and pixels where they hold data. Empty: all truth and all results",
    )
    detected_class_value_field: str | None = Field(
        default=None,
        description="Field of the detected objects with the class, as a value or a name. Empty: Classvalue, "
        "Value, Class or ClassName; without any, every object is of class 1",
    )
    ground_truth_class_value_field: str | None = Field(
        default=None,
        description="Integer field of the truth with the class value. Empty: Classvalue, then Value; without "
        "either, every record is of class 1",
    )
    min_iou: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Least overlap, as intersection over union, at which a detected object counts as found",
    )
    further_iou: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[],
        max_length=20,
        description="Further overlaps at which objects are scored as well, such as 0.25 and 0.75; COCO's "
        "mean over 0.50 to 0.95 is always there",
    )
    mask_features: str | None = Field(
        default=None,
        description="Polygons that bound what is assessed: objects as mask_rule says, pixels inside of them; "
        "empty: no mask",
    )
    mask_rule: Literal["INTERSECTS", "WITHIN"] = Field(
        default="INTERSECTS",
        description="INTERSECTS assesses objects that touch the mask, WITHIN only those that lie inside",
    )
    block_size: float = Field(
        default=25.0,
        gt=0,
        allow_inf_nan=False,
        description="Edge of the blocks of ground that are resampled for the confidence intervals, in metres",
    )
    bootstrap_replicates: int = Field(
        default=1000, ge=0, le=100_000, description="Number of resamplings; 0 gives no intervals"
    )
    confidence_level: float = Field(
        default=0.95, gt=0, lt=1, description="Share of the resamplings inside an interval"
    )
    seed: int = Field(default=0, ge=0, description="Seed of the resampling")

    @model_validator(mode="after")
    def _something_to_assess(self) -> AccuracyParameters:
        if not self.detected_features and not self.classified_raster:
            raise ValueError("give detected_features, classified_raster or both")
        return self
