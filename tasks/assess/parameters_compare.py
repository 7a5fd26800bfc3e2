"""Parameters of ``compare_models``: which versions, on what ground, and when the alias moves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tasks.assess.parameters import AccuracyParameters
from tasks.parameters import ToolParameters, inherited

Measure = Literal["AUTO", "AP", "F1_SCORE", "PRECISION", "RECALL", "IOU"]


class ComparisonParameters(ToolParameters):
    """Champion and challenger on a fixed evaluation set."""

    model_name: str = Field(
        min_length=1, description="Name of the model in the registry, whose versions are compared"
    )
    evaluation_data: str | None = Field(
        default=None,
        description="Chips to evaluate on: name or URI of a folder of training data, ours or ArcGIS's, "
        "which no version may have learnt from. With it, input_raster and ground_truth_features do not count",
    )
    input_raster: list[str] = Field(
        default=[],
        description="Imagery to evaluate on, which no version may have learnt from: URIs of rasters, "
        "prefixes ending in '/', patterns. Both versions are applied to it",
    )
    ground_truth_features: str | None = Field(
        default=None,
        description="Truth of input_raster: URI of a GeoPackage, GeoJSON, Shapefile, FlatGeobuf or "
        "GeoParquet file with polygons, in any coordinate system; append |layername=... to pick a layer",
    )
    challenger: str = Field(
        default="current",
        pattern=r"^[A-Za-z0-9][\w.-]*$",
        description="Number or alias of the version that challenges; current is the newest one",
    )
    champion_alias: str = Field(
        default="champion",
        pattern=r"^[A-Za-z][\w-]*$",
        description="Alias of the champion, which moves to the challenger when that is better: "
        "models:/<model_name>@champion. A model without it gets it on its challenger",
    )
    move_alias: bool = Field(
        default=True, description="Off: only say what would be decided; the registry stays as it is"
    )
    measure: Measure = Field(
        default="AUTO",
        description="Value that decides, over all classes. AUTO is AP (mean over the classes) for objects, "
        "IOU (mean over the classes without background) for pixels and F1_SCORE (mean over the classes) for "
        "classes of chips",
    )
    least_gain: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The alias moves only when the whole interval of the difference lies above this",
    )
    threshold: float | None = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Detectors: least confidence of the objects that both give, low so that AP sees the "
        "whole curve. Empty: each package's own, which F1_SCORE, PRECISION and RECALL are better measured "
        "with",
    )
    min_iou: float = inherited(AccuracyParameters, "min_iou")
    ground_truth_class_value_field: str | None = inherited(
        AccuracyParameters, "ground_truth_class_value_field"
    )
    mask_features: str | None = inherited(AccuracyParameters, "mask_features")
    mask_rule: Literal["INTERSECTS", "WITHIN"] = inherited(AccuracyParameters, "mask_rule")
    block_size: float = inherited(AccuracyParameters, "block_size")
    bootstrap_replicates: int = Field(
        default=1000,
        ge=100,
        le=100_000,
        description="Number of resamplings; every one draws the same blocks of ground for both versions",
    )
    confidence_level: float = inherited(AccuracyParameters, "confidence_level")
    seed: int = inherited(AccuracyParameters, "seed")

    @model_validator(mode="after")
    def _two_different_aliases(self) -> ComparisonParameters:
        if self.challenger == self.champion_alias:
            raise ValueError("challenger and champion_alias name the same version")
        return self

    @model_validator(mode="before")
    @classmethod
    def _chips_in_place_of_imagery(cls, values: Any) -> Any:
        """A deployment has imagery for a sample: who names chips need not take it out."""
        if isinstance(values, dict) and values.get("evaluation_data"):
            return {**values, "input_raster": [], "ground_truth_features": None}
        return values

    @model_validator(mode="after")
    def _one_evaluation_set(self) -> ComparisonParameters:
        of_imagery = {
            "input_raster": self.input_raster,
            "ground_truth_features": self.ground_truth_features,
        }
        missing = [name for name, value in of_imagery.items() if not value]
        if self.evaluation_data is None and missing:
            raise ValueError(f"give {' and '.join(missing)}, or evaluation_data in place of both")
        bounds = {
            "mask_features": self.mask_features,
            "ground_truth_class_value_field": self.ground_truth_class_value_field,
        }
        given = [name for name, value in bounds.items() if value]
        if self.evaluation_data is not None and given:
            raise ValueError(f"chips bring their own bounds and truth: leave {' and '.join(given)} empty")
        return self

    @property
    def truth(self) -> str:
        """The truth of the imagery; chips bring their own."""
        assert self.ground_truth_features is not None
        return self.ground_truth_features

    @property
    def evaluated_on(self) -> str:
        """The evaluation set, in one word."""
        return self.evaluation_data or self.truth
