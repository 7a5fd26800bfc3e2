"""Parameters of ``export_training_data``: ArcGIS's names in snake_case.

Source of names and defaults: docs/formats/training-data.md, "Parameters".
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.parameters import ToolParameters, check_extent


class ExportParameters(ToolParameters):
    """Cut training chips from imagery and labels, in a layout that ArcGIS reads and writes."""

    input_raster: list[str] = Field(
        min_length=1,
        description="Imagery: URIs of rasters, a prefix or folder ending in '/', or patterns with '*'. "
        "Where rasters overlap, the first one in the list wins",
    )
    input_class_data: str = Field(
        min_length=1,
        description="Labels: URI of a GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet file, in any "
        "coordinate system; append |layername=... to pick a layer",
    )
    output_location: str = Field(
        min_length=1,
        description="Name of the training data, or the URI of a folder; every run writes a folder of its own "
        "below it",
    )
    chip_format: Literal["TIFF", "PNG", "JPEG"] = Field(
        default="TIFF",
        description="File format of the chips. PNG and JPEG take 8-bit imagery with 1 or 3 bands; JPEG loses "
        "detail",
    )
    tile_size: int = Field(default=256, ge=16, le=8192, description="Width and height of a chip, in pixels")
    stride_size: int = Field(
        default=128,
        ge=1,
        le=8192,
        description="Distance from one chip to the next, in pixels; the tile size gives chips side by side, "
        "half of it gives half overlap",
    )
    metadata_format: Literal["PASCAL_VOC_rectangles", "Classified_Tiles"] = Field(
        default="PASCAL_VOC_rectangles",
        description="Form of the labels: PASCAL_VOC_rectangles gives a box per object (object detection), "
        "Classified_Tiles a class per pixel (pixel classification)",
    )
    classvalue_field: str | None = Field(
        default=None,
        description="Integer field of the labels with the class value. Empty: a field named value, then "
        "classvalue; without either every label is class 1",
    )
    buffer_radius: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Grows every label, in the linear unit of the labels' coordinate system; turns points "
        "into circles",
    )
    output_nofeature_tiles: Literal["ONLY_TILES_WITH_FEATURES", "ALL_TILES"] = Field(
        default="ONLY_TILES_WITH_FEATURES",
        description="ALL_TILES also writes chips that no label touches",
    )
    min_polygon_overlap_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="A label is left out of a chip when less than this share of its area lies inside; 0 "
        "keeps all",
    )
    start_index: int = Field(
        default=0,
        ge=0,
        le=999_999_999,
        description="Number of the first chip, from which the files are named",
    )
    processing_mode: Literal["PROCESS_AS_MOSAICKED_IMAGE", "PROCESS_ITEMS_SEPARATELY"] = Field(
        default="PROCESS_AS_MOSAICKED_IMAGE",
        description="PROCESS_AS_MOSAICKED_IMAGE cuts all rasters together as one image; "
        "PROCESS_ITEMS_SEPARATELY cuts each raster on its own grid",
    )
    cell_size: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Cell size of the chips, in units of the imagery's coordinate system; empty: the "
        "imagery's own",
    )
    extent: list[float] | None = Field(
        default=None,
        description="Area to export, as xmin, ymin, xmax, ymax in the imagery's coordinate system; empty: "
        "all of the imagery",
    )
    chips_per_part: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Number of chips that one run of a worker cuts; it changes no result",
    )

    @model_validator(mode="after")
    def _extent_is_a_rectangle(self) -> ExportParameters:
        check_extent(self.extent)
        return self
