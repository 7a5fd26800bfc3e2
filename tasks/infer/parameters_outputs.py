"""Parameters of what is made of a package's answers: stitching, probabilities, polygons, formats."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.parameters import ToolParameters

Stitching = Literal["TRIM", "BLEND"]


class ScoreParameters(ToolParameters):
    """How tiles are put together, and whether their probabilities are kept."""

    stitching: Stitching = Field(
        default="TRIM",
        description="TRIM takes each pixel from the one tile whose inner part holds it; BLEND mixes the "
        "probabilities of neighbouring tiles within half the padding, which hides the seams of networks that "
        "see more than the padding. BLEND needs a package that offers scores (those trained here do)",
    )
    keep_probabilities: bool = Field(
        default=False,
        description="Publish the probabilities of the top classes (uint8, 255 is certain) beside the "
        "classified raster, so that refine_results can set other thresholds without running the model; "
        "needs a package that offers scores",
    )
    top_classes: int = Field(
        default=3,
        ge=1,
        le=16,
        description="Number of classes per pixel whose probabilities keep_probabilities keeps",
    )


FurtherFormat = Literal["FLATGEOBUF", "GEOJSON", "SHAPEFILE"]
PolygonShape = Literal["AS_FOUND", "SIMPLIFIED", "REGULARISED"]


class FormatParameters(ToolParameters):
    """In which formats a layer is written."""

    output_formats: list[FurtherFormat] = Field(
        default=[],
        description="Formats of the layer besides GeoParquet and GeoPackage, which are always written",
    )


class LayerParameters(FormatParameters):
    """What a layer of polygons holds and how it is written."""

    minimum_area: float = Field(
        default=0.0, ge=0, description="Polygons with a smaller area are left out, in square metres"
    )
    polygon_shape: PolygonShape = Field(
        default="AS_FOUND",
        description="AS_FOUND leaves polygons as they are; SIMPLIFIED takes away vertices within "
        "shape_tolerance; REGULARISED also gives them right angles along their main direction, as buildings "
        "have, where that keeps their shape",
    )
    shape_tolerance: float = Field(
        default=1.0, gt=0, description="How far polygon_shape may move an outline, in metres"
    )


class ClassPolygonParameters(LayerParameters):
    """Polygons of a classified raster."""

    output_polygons: bool = Field(
        default=False,
        description="Also give the classified raster as polygons, one per group of neighbouring pixels of a "
        "class; none is cut at the border of a tile or shard",
    )


class CandidateParameters(ToolParameters):
    """Objects below the threshold, kept for another one."""

    keep_candidates: bool = Field(
        default=False,
        description="Publish all objects down to candidate_threshold beside the layer, so that "
        "refine_results can set another threshold without running the model; needs a package whose "
        "function takes a threshold",
    )
    candidate_threshold: float = Field(
        default=0.1,
        ge=0.02,
        lt=1,
        description="Lowest confidence of the kept candidates, on the scale of the function's threshold",
    )
