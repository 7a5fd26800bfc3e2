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
        description="Imagery: URIs of rasters or image services, a prefix or folder ending in '/', or "
        "patterns with '*'. Where rasters overlap, the first one in the list wins",
    )
    input_class_data: str | None = Field(
        default=None,
        description="Labels: URI of a vector file in any coordinate system (GeoPackage, GeoJSON, Shapefile, "
        "FlatGeobuf, GeoParquet, file geodatabase; append |layername=... to pick a layer), or of a "
        "classified raster. Only Export_Tiles and CycleGAN do without",
    )
    output_location: str = Field(
        min_length=1,
        description="Name of the training data, or the URI of a folder; every run writes a folder of its own "
        "below it",
    )
    chip_format: Literal["TIFF", "PNG", "JPEG", "MRF"] = Field(
        default="TIFF",
        description="File format of the chips. PNG takes 1 or 3 bands of 8 or 16 bits, JPEG 1 or 3 bands of "
        "8 bits and loses detail; TIFF and MRF take any number of bands",
    )
    tile_size: int = Field(
        default=256,
        ge=16,
        le=8192,
        description="Width of a chip, in pixels; also its height, unless tile_size_y is given",
    )
    tile_size_y: int | None = Field(
        default=None, ge=16, le=8192, description="Height of a chip, in pixels; empty: as tile_size"
    )
    stride_size: int = Field(
        default=128,
        ge=1,
        le=8192,
        description="Distance from one chip to the next, in pixels; the tile size gives chips side by side, "
        "half of it gives half overlap",
    )
    stride_size_y: int | None = Field(
        default=None,
        ge=1,
        le=8192,
        description="Distance from one row of chips to the next, in pixels; empty: as stride_size",
    )
    metadata_format: Literal[
        "PASCAL_VOC_rectangles",
        "KITTI_rectangles",
        "Classified_Tiles",
        "RCNN_Masks",
        "Labeled_Tiles",
        "MultiLabeled_Tiles",
        "Export_Tiles",
        "CycleGAN",
        "Imagenet",
        "Panoptic_Segmentation",
        "COCO_rectangles",
        "YOLO_rectangles",
    ] = Field(
        default="PASCAL_VOC_rectangles",
        description="Form of the labels. A box per object: PASCAL_VOC, KITTI, COCO, YOLO. A mask per object: "
        "RCNN_Masks. A class per pixel: Classified_Tiles; with instances: Panoptic_Segmentation. A class per "
        "chip: Labeled_Tiles, Imagenet; several: MultiLabeled_Tiles. Pictures alone: Export_Tiles, CycleGAN",
    )
    classvalue_field: str | None = Field(
        default=None,
        description="Integer field of the labels with the class value. Empty: a field named value, then "
        "classvalue; without either every label is class 1",
    )
    class_schema: str | None = Field(
        default=None,
        description="URI of a class schema (JSON) that gives the classes' values, names and colours. Empty: "
        "they are read from the labels",
    )
    buffer_radius: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Grows every label, in the linear unit of the labels' coordinate system; turns points "
        "into circles and lines into strips",
    )
    input_mask_polygons: str | None = Field(
        default=None,
        description="URI of polygons; only chips that lie completely inside are written",
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
    rotation_angle: float = Field(
        default=0.0,
        ge=0,
        lt=360,
        allow_inf_nan=False,
        description="Degrees; every chip is written again at each multiple of it below 360, turned about its "
        "centre. 0 turns nothing",
    )
    reference_system: Literal["MAP_SPACE", "PIXEL_SPACE", "IMAGE_SPACE"] = Field(
        default="MAP_SPACE",
        description="MAP_SPACE: chips lie north-up in the map. PIXEL_SPACE: chips are cut from the raw "
        "image, labels are brought there. IMAGE_SPACE: as PIXEL_SPACE, turned so that heights point up",
    )
    processing_mode: Literal["PROCESS_AS_MOSAICKED_IMAGE", "PROCESS_ITEMS_SEPARATELY"] = Field(
        default="PROCESS_AS_MOSAICKED_IMAGE",
        description="PROCESS_AS_MOSAICKED_IMAGE cuts all rasters together as one image; "
        "PROCESS_ITEMS_SEPARATELY cuts each raster on its own grid",
    )
    fix_chip_size: bool = Field(
        default=True,
        description="Labeled_Tiles and Imagenet: true gives chips of tile_size around each feature, false "
        "crops to the feature's bounding box",
    )
    blacken_around_feature: bool = Field(
        default=False,
        description="Labeled_Tiles and Imagenet: pixels outside of the feature become 0",
    )
    additional_input_raster: list[str] | None = Field(
        default=None,
        description="A second image: the later date (Classified_Tiles, change detection), the other kind of "
        "picture (Export_Tiles, CycleGAN)",
    )
    input_instance_data: str | None = Field(
        default=None, description="Panoptic_Segmentation: labels of single objects, as input_class_data"
    )
    instance_class_value_field: str | None = Field(
        default=None,
        description="Panoptic_Segmentation: integer field of the instance data with the class value",
    )
    start_index: int = Field(
        default=0,
        ge=0,
        le=999_999_999,
        description="Number of the first chip, from which the files are named",
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
        description="About how many chips one run of a worker cuts; it changes no result",
    )

    @model_validator(mode="after")
    def _extent_is_a_rectangle(self) -> ExportParameters:
        check_extent(self.extent)
        return self

    @property
    def tile(self) -> tuple[int, int]:
        """(rows, cols) of a chip."""
        return (self.tile_size_y or self.tile_size, self.tile_size)

    @property
    def stride(self) -> tuple[int, int]:
        """(rows, cols) from one chip to the next."""
        return (self.stride_size_y or self.stride_size, self.stride_size)

    @property
    def angles(self) -> tuple[float, ...]:
        """Degrees by which each chip is turned: 0 and every multiple of ``rotation_angle`` below 360."""
        if not self.rotation_angle:
            return (0.0,)
        count = -(-360 // self.rotation_angle)
        return tuple(turn for k in range(int(count)) if (turn := k * self.rotation_angle) < 360)
