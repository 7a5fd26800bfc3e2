"""The chain in one run: export, train, apply, assess."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from flows._tool import tool
from flows.classify_pixels import classify_pixels
from flows.compute_accuracy import compute_accuracy
from flows.detect_objects import detect_objects
from flows.export_training_data import export_training_data
from flows.train_deep_learning_model import train_deep_learning_model
from tasks.assess.parameters import AccuracyParameters
from tasks.export.parameters import ExportParameters
from tasks.infer.parameters import DetectObjectsParameters, ProcessorType
from tasks.parameters import ModelArgument, ToolParameters, inherited
from tasks.train.parameters import (
    IMAGE_KINDS,
    LINE_KINDS,
    PIXEL_KINDS,
    BackboneModel,
    Kind,
    ModelType,
    Monitor,
    TrainParameters,
    kind_of,
)

_FORMATS: dict[Kind, str] = {
    **dict.fromkeys(["pixels", *LINE_KINDS], "Classified_Tiles"),
    "objects": "PASCAL_VOC_rectangles",
    **dict.fromkeys(["instances", "panoptic"], "RCNN_Masks"),
}
# What else than imagery and one layer of labels the other kinds need.
_NEEDS: dict[Kind, str] = {
    "labels": "names the class of given objects",
    "change": "compares two dates",
    **dict.fromkeys(IMAGE_KINDS, "learns from pairs of pictures"),
    "custom": "is a model of your own, which custom_model names",
}


class BuildAndApplyParameters(ToolParameters):
    """Parameters of ``build_and_apply``: those of its steps that matter most, under their own names."""

    output_name: str = inherited(TrainParameters, "output_name")
    input_raster: list[str] = Field(
        min_length=1, description="Imagery to train on: URIs of rasters, prefixes ending in '/', patterns"
    )
    input_class_data: str = inherited(ExportParameters, "input_class_data")
    apply_raster: list[str] = Field(
        min_length=1, description="Imagery to apply the model to: URIs of rasters, prefixes, patterns"
    )
    assess_raster: list[str] = Field(
        default=[],
        description="Those rasters of apply_raster whose results are scored against test_class_data",
    )
    test_class_data: str | None = Field(
        default=None, description="Labels to score the results against; empty: nothing is scored"
    )
    classvalue_field: str | None = inherited(ExportParameters, "classvalue_field")
    tile_size: int = inherited(ExportParameters, "tile_size")
    stride_size: int = inherited(ExportParameters, "stride_size")
    output_nofeature_tiles: Literal["ONLY_TILES_WITH_FEATURES", "ALL_TILES"] = inherited(
        ExportParameters, "output_nofeature_tiles"
    )
    model_type: ModelType = inherited(TrainParameters, "model_type")
    backbone_model: BackboneModel = inherited(TrainParameters, "backbone_model")
    max_epochs: int = inherited(TrainParameters, "max_epochs")
    time_limit_minutes: float | None = inherited(TrainParameters, "time_limit_minutes")
    batch_size: int | None = inherited(TrainParameters, "batch_size")
    learning_rate: float | None = inherited(TrainParameters, "learning_rate")
    validation_percent: float = inherited(TrainParameters, "validation_percent")
    chip_size: int | None = inherited(TrainParameters, "chip_size")
    model_arguments: list[ModelArgument] = inherited(TrainParameters, "model_arguments")
    stop_training: bool = inherited(TrainParameters, "stop_training")
    monitor: Monitor = inherited(TrainParameters, "monitor")
    seed: int = inherited(TrainParameters, "seed")
    inference_arguments: list[ModelArgument] = inherited(DetectObjectsParameters, "model_arguments")
    processing_mode: Literal["PROCESS_AS_MOSAICKED_IMAGE", "PROCESS_ITEMS_SEPARATELY"] = inherited(
        DetectObjectsParameters, "processing_mode"
    )
    run_nms: bool = inherited(DetectObjectsParameters, "run_nms")
    max_overlap_ratio: float = inherited(DetectObjectsParameters, "max_overlap_ratio")
    min_iou: float = inherited(AccuracyParameters, "min_iou")
    processor_type: ProcessorType = inherited(DetectObjectsParameters, "processor_type")

    @model_validator(mode="after")
    def _the_chain_applies_the_model(self) -> BuildAndApplyParameters:
        if needed := _NEEDS.get(kind_of(self.model_type)):
            raise ValueError(
                f"{self.model_type} {needed}, and this chain has imagery and labels alone; run "
                "export_training_data, train_deep_learning_model and the tool that applies it"
            )
        return self


@tool(BuildAndApplyParameters, run_name="build and apply {output_name}")
def build_and_apply(parameters: BuildAndApplyParameters) -> dict[str, Any]:
    """Cut chips, train a model, apply its package to imagery, and score the result: one run."""
    pixels = (kind := kind_of(parameters.model_type)) in PIXEL_KINDS
    data = export_training_data(
        input_raster=parameters.input_raster,
        input_class_data=parameters.input_class_data,
        output_location=parameters.output_name,
        metadata_format=_FORMATS[kind],
        **_same(parameters, "classvalue_field", "tile_size", "stride_size", "output_nofeature_tiles"),
    )
    model = train_deep_learning_model(
        in_folder=[data["training_data"]],
        **_same(
            parameters,
            *("output_name", "model_type", "backbone_model", "max_epochs", "time_limit_minutes"),
            *("batch_size", "learning_rate", "validation_percent", "chip_size", "model_arguments"),
            *("stop_training", "monitor", "seed", "processor_type"),
        ),
    )
    inference = {
        "input_raster": parameters.apply_raster,
        "model": model["package"],
        "model_arguments": parameters.inference_arguments,
        **_same(parameters, "processing_mode", "processor_type"),
    }
    if pixels:
        result = classify_pixels(output_classified_raster=parameters.output_name, **inference)
    else:
        nms = _same(parameters, "run_nms", "max_overlap_ratio")
        result = detect_objects(output_objects=parameters.output_name, **nms, **inference)
    outcome: dict[str, Any] = {"training_data": data, "model": model, "result": result}
    if parameters.test_class_data:
        outcome["accuracy"] = _assess(parameters, result, pixels=pixels)
    return outcome


def _assess(parameters: BuildAndApplyParameters, result: dict[str, Any], *, pixels: bool) -> Any:
    scored = "classified_raster" if pixels else "detected_features"
    return compute_accuracy(
        **{scored: [result["uri"]]},
        ground_truth_features=parameters.test_class_data,
        extent_rasters=parameters.assess_raster or parameters.apply_raster,
        out_accuracy_table=parameters.output_name,
        min_iou=parameters.min_iou,
    )


def _same(parameters: BuildAndApplyParameters, *names: str) -> dict[str, Any]:
    return {name: getattr(parameters, name) for name in names}
