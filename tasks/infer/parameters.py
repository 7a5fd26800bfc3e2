"""Parameters of the tools that apply a package: ArcGIS's names in snake_case.

Source of names and defaults: ``docs/formats/tools.md`` §2 to §6.
"""

from __future__ import annotations

import os
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tasks.infer.parameters_outputs import (
    CandidateParameters,
    ClassPolygonParameters,
    FormatParameters,
    LayerParameters,
    ScoreParameters,
)
from tasks.infer.parameters_series import ObjectSeriesParameters, PixelSeriesParameters
from tasks.parameters import ModelArgument, ToolParameters, check_extent

ProcessingMode = Literal[
    "PROCESS_AS_MOSAICKED_IMAGE", "PROCESS_ITEMS_SEPARATELY", "PROCESS_CANDIDATE_ITEMS_ONLY"
]
ProcessorType = Literal["AUTO", "CPU", "GPU"]
ExecutionEngine = Literal["AUTO", "TORCH", "COMPILED", "ONNXRUNTIME", "OPENVINO"]
Precision = Literal["AUTO", "FLOAT32", "BFLOAT16"]
Tool = Literal["classify_pixels", "detect_objects", "detect_change", "classify_objects"]

WHAT_IMAGERY_IS = (
    "URIs of rasters, a prefix or folder ending in '/', patterns with '*', STAC items, ItemCollections or "
    "GeoParquet of items, perhaps with #asset"
)


class EngineParameters(ToolParameters):
    """What every tool takes: a package, where and how to compute."""

    tool: ClassVar[Tool]

    dry_run: bool = Field(
        default=False,
        description="Only say what the run would take: tiles, shards, parts, size of the output, memory, and "
        "the time, from a few tiles that a worker computes; nothing is published",
    )
    model: str = Field(
        min_length=1,
        description="Deep learning package (.dlpk): its URI, or a registered model as models:/name/3 or "
        "models:/name@alias",
    )
    model_arguments: list[ModelArgument] = Field(
        default=[],
        description="Arguments of the package's inference function, as names and values, such as padding, "
        "batch_size or threshold; what is not given keeps the package's own default",
    )
    cell_size: float | None = Field(
        default=None,
        gt=0,
        description="Cell size to compute on, in units of the output's coordinate system: of out_sr where it "
        "is given (degrees for EPSG:4326), else of the imagery's; empty: the imagery's own",
    )
    extent: list[float] | None = Field(
        default=None,
        description="Area to compute, as xmin, ymin, xmax, ymax in the coordinates of the target grid; "
        "empty: all of the imagery",
    )
    out_sr: int | None = Field(
        default=None,
        ge=1,
        description="EPSG code of the output's coordinate system. A mosaic of rasters in several coordinate "
        "systems needs it; separate items keep their own grids and only features are reprojected",
    )
    mask: str | None = Field(
        default=None,
        description="Polygons that bound the results: URI of any vector file. Pixels outside stay nodata, "
        "and objects count whose centre lies inside",
    )
    snap_raster: str | None = Field(
        default=None,
        description="Raster whose corner the cells of the output are aligned to, in the output's coordinate "
        "system; imagery that does not lie on them is resampled",
    )
    processor_type: ProcessorType = Field(
        default="AUTO",
        description="AUTO takes a GPU where the workers have one; GPU insists on one and fails without; CPU",
    )
    execution_engine: ExecutionEngine = Field(
        default="AUTO",
        description="What computes the network of a pixel classifier or detector made here. AUTO takes the "
        "fastest there is on CPUs, and torch for less than 20 megapixels; COMPILED is torch.compile, for "
        "long work on GPUs. An engine whose classes or objects are not torch's (IoU of 0.999 on some tiles) "
        "gives way to it, and the run says so",
    )
    precision: Precision = Field(
        default="AUTO",
        description="Numbers that the network computes with. AUTO takes BFLOAT16 where a CPU has it and its "
        "classes or objects are those of FLOAT32 (IoU of 0.999 on some tiles)",
    )
    shard_size: int = Field(
        default=2048,
        ge=64,
        le=32768,
        description="Edge of a shard, the unit of results, in pixels (rounded to whole tiles); it changes no "
        "result, only how the work is cut",
    )
    shards_per_part: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Number of shards that one run of a worker computes; it changes no result. Empty: so "
        "many that its start is worth it, and fewer at the end, so that all workers finish together",
    )

    parallel_processing_factor: str | None = Field(
        default=None,
        pattern=r"^\s*\d{1,4}\s*%?\s*$",
        description="Parts of this run that are computed at the same time: a number, such as 2, or a share "
        "of the processor's cores, such as 80%; as far as there are workers. Empty: all that there are",
    )

    @model_validator(mode="after")
    def _extent_is_a_rectangle(self) -> EngineParameters:
        check_extent(self.extent)
        return self


class ImageryParameters(ToolParameters):
    """One collection, and how its rasters are taken together."""

    input_raster: list[str] = Field(
        min_length=1,
        description=f"Imagery: {WHAT_IMAGERY_IS}. Where rasters overlap, the first one in the list wins",
    )
    processing_mode: ProcessingMode = Field(
        default="PROCESS_AS_MOSAICKED_IMAGE",
        description="PROCESS_AS_MOSAICKED_IMAGE computes all rasters together as one image; "
        "PROCESS_ITEMS_SEPARATELY computes each raster on its own grid; PROCESS_CANDIDATE_ITEMS_ONLY does "
        "so for the items whose attribute Candidate is 1 or 2 (of STAC items or GeoParquet of items)",
    )

    @property
    def imagery(self) -> list[str]:
        """All imagery as it was named, in order."""
        return self.input_raster


class ChangeImageryParameters(ToolParameters):
    """Two collections of the same ground."""

    from_raster: list[str] = Field(
        min_length=1,
        description=f"Imagery before the change: {WHAT_IMAGERY_IS}. It decides the grid of the output",
    )
    to_raster: list[str] = Field(
        min_length=1,
        description=f"Imagery after the change: {WHAT_IMAGERY_IS}. It is resampled to the grid of "
        "from_raster; coordinate system and cell size may differ",
    )

    @property
    def imagery(self) -> list[str]:
        """All imagery as it was named, in order."""
        return [*self.from_raster, *self.to_raster]


def parts_at_once(factor: str | None) -> int | None:
    """How many parts ``parallel_processing_factor`` lets run at the same time; None: as many as there are.

    A share counts the cores of the machine that asks; at least one part runs.
    """
    if factor is None:
        return None
    number = int(factor.strip().removesuffix("%"))
    if "%" in factor:
        number = round((os.cpu_count() or 1) * number / 100)
    return max(1, number)


# Bases in this order: the form shows the fields of the last one first.
class ClassifyPixelsParameters(
    ClassPolygonParameters, ScoreParameters, PixelSeriesParameters, EngineParameters, ImageryParameters
):
    """Parameters of ``classify_pixels``."""

    tool: ClassVar[Tool] = "classify_pixels"

    output_classified_raster: str = Field(
        min_length=1,
        description="Name of the output, or the URI of a folder; holds one classified raster (COG) for a "
        "mosaic, or one per input raster",
    )
    use_pixelspace: bool = Field(
        default=False,
        description="Classify the raw images, as they lie in their files, and put the classes onto the map "
        "by each image's RPCs, control points or affine; an image that does not say where it lies gets a "
        "raster in its own pixels. Several images need PROCESS_ITEMS_SEPARATELY",
    )

    @property
    def output(self) -> str:
        """The output's name or URI."""
        return self.output_classified_raster


class DetectObjectsParameters(
    CandidateParameters, LayerParameters, ObjectSeriesParameters, EngineParameters, ImageryParameters
):
    """Parameters of ``detect_objects``."""

    tool: ClassVar[Tool] = "detect_objects"

    output_objects: str = Field(
        min_length=1,
        description="Name of the output, or the URI of a folder; holds one layer of polygons as GeoParquet "
        "and as GeoPackage",
    )
    use_pixelspace: bool = Field(
        default=False,
        description="Detect in the raw images, as they lie in their files, and carry the objects onto the "
        "map by each image's RPCs, control points or affine; several images need PROCESS_ITEMS_SEPARATELY",
    )
    run_nms: bool = Field(
        default=False,
        description="Run Non Maximum Suppression over the complete layer: of objects that overlap more than "
        "max_overlap_ratio, the one with the higher confidence stays",
    )
    confidence_score_field: str = Field(
        default="Confidence", description="Field with the confidence, used by run_nms"
    )
    class_value_field: str = Field(default="Class", description="Field with the class, used by run_nms")
    max_overlap_ratio: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Largest overlap, as intersection over union, that run_nms leaves; 0: none",
    )

    @property
    def output(self) -> str:
        """The output's name or URI."""
        return self.output_objects


class DetectChangeParameters(
    ClassPolygonParameters, ScoreParameters, EngineParameters, ChangeImageryParameters
):
    """Parameters of ``detect_change``."""

    tool: ClassVar[Tool] = "detect_change"

    output_classified_raster: str = Field(
        min_length=1,
        description="Name of the output, or the URI of a folder; holds one raster (COG) of the changes where "
        "both dates have imagery",
    )

    @property
    def output(self) -> str:
        """The output's name or URI."""
        return self.output_classified_raster


class ClassifyObjectsParameters(FormatParameters, EngineParameters, ImageryParameters):
    """Parameters of ``classify_objects``."""

    tool: ClassVar[Tool] = "classify_objects"

    in_features: str | None = Field(
        default=None,
        description="Polygons, lines or points, one row per object: URI of any vector file (GeoParquet, "
        "GeoPackage, GeoJSON, FlatGeobuf, Shapefile …; …|layername=trees picks a layer), or an output's "
        "folder, which stands for its newest layer; empty: each raster is one object",
    )
    out_feature_class: str = Field(
        min_length=1,
        description="Name of the output, or the URI of a folder; holds the features with their labels as "
        "GeoParquet and as GeoPackage",
    )
    class_label_field: str = Field(
        default="ClassLabel",
        min_length=1,
        description="Field that takes the label; the features must not have it",
    )
    caption_field: str = Field(
        default="Caption",
        min_length=1,
        description="Field that takes the captions of a package whose function announces a field Caption; "
        "with any other package it is not written",
    )

    @property
    def output(self) -> str:
        """The output's name or URI."""
        return self.out_feature_class


InferenceTool = (
    ClassifyPixelsParameters | DetectObjectsParameters | DetectChangeParameters | ClassifyObjectsParameters
)
