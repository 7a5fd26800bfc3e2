"""Parameters of ``non_maximum_suppression``: ArcGIS's names in snake_case.

Source of names and defaults: ``docs/formats/tools.md`` §4.
"""

from __future__ import annotations

from pydantic import Field

from tasks.infer.parameters_outputs import FormatParameters


class SuppressionParameters(FormatParameters):
    """Parameters of ``non_maximum_suppression``."""

    in_features: str = Field(
        min_length=1,
        description="Layer of polygons: URI of any vector file (GeoParquet, GeoPackage, GeoJSON, FlatGeobuf, "
        "Shapefile …; …|layername=trees picks a layer), or an output's folder, which stands for its newest "
        "layer",
    )
    confidence_score_field: str = Field(
        default="Confidence", description="Field with the confidence; a number for every feature"
    )
    out_features: str = Field(
        min_length=1,
        description="Name of the output, or the URI of a folder; holds the layer as GeoParquet and as "
        "GeoPackage",
    )
    class_value_field: str | None = Field(
        default=None,
        description="Field with the class; empty: Classvalue or Value where there is one, else all features "
        "are one class",
    )
    max_overlap_ratio: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Largest overlap, as intersection over union, that is left; 0: none",
    )
