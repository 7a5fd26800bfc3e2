"""Parameters of ``train_deep_learning_model``: ArcGIS's names in snake_case.

Source of names and defaults: ``docs/formats/tools.md`` §1. Where a default differs from ArcGIS's, the
description says what ours does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tasks.parameters import ModelArgument, ToolParameters
from tasks.train.models.backbones import BACKBONES, check_backbone

ModelType = Literal[
    "UNET",
    "UNETPLUSPLUS",
    "MANET",
    "LINKNET",
    "FPN",
    "PSPNET",
    "DEEPLAB",
    "UPERNET",
    "SEGFORMER",
    "FCOS",
    "RETINANET",
    "SSD",
    "FASTERRCNN",
    "MASKRCNN",
    "FEATURE_CLASSIFIER",
    "CHANGEDETECTOR",
]
# A text, not a Literal: timm's encoders are too many for a list, and a form still takes them.
BackboneModel = Annotated[str, AfterValidator(check_backbone)]
Monitor = Literal["VALID_LOSS", "AVERAGE_PRECISION", "F1_SCORE", "ACCURACY", "MIOU"]

Kind = Literal["pixels", "objects", "instances", "labels", "change"]

PIXEL_MODELS = frozenset(
    {"UNET", "UNETPLUSPLUS", "MANET", "LINKNET", "FPN", "PSPNET", "DEEPLAB", "UPERNET", "SEGFORMER"}
)
_OTHER_KINDS: dict[str, Kind] = {
    "MASKRCNN": "instances",
    "FEATURE_CLASSIFIER": "labels",
    "CHANGEDETECTOR": "change",
}
_MONITORS: dict[Kind, frozenset[str]] = {
    "pixels": frozenset({"VALID_LOSS", "ACCURACY", "F1_SCORE", "MIOU"}),
    "objects": frozenset({"VALID_LOSS", "AVERAGE_PRECISION", "F1_SCORE"}),
    "instances": frozenset({"VALID_LOSS", "AVERAGE_PRECISION", "F1_SCORE"}),
    "labels": frozenset({"VALID_LOSS", "ACCURACY", "F1_SCORE"}),
    "change": frozenset({"VALID_LOSS", "ACCURACY", "F1_SCORE", "MIOU"}),
}


def kind_of(model_type: str) -> Kind:
    """What a model type predicts."""
    return "pixels" if model_type in PIXEL_MODELS else _OTHER_KINDS.get(model_type, "objects")


class TrainParameters(ToolParameters):
    """Parameters of ``train_deep_learning_model``."""

    in_folder: list[str] = Field(
        min_length=1,
        description="Training data: URIs of folders that export_training_data (or ArcGIS) wrote. Several "
        "folders must agree in format, classes, bands and tile size",
    )
    output_name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        description="Name of the model, of its package and of its entry in the model registry",
    )
    model_type: ModelType = Field(
        description="UNET, UNETPLUSPLUS, MANET, LINKNET, FPN, PSPNET, DEEPLAB, UPERNET, SEGFORMER classify "
        "pixels (Classified_Tiles and other formats with masks); FCOS, RETINANET, SSD and FASTERRCNN detect "
        "objects (PASCAL_VOC_rectangles and other formats with boxes); MASKRCNN outlines them (RCNN_Masks); "
        "FEATURE_CLASSIFIER names the class of an object (Labeled_Tiles, Imagenet), or several "
        "(MultiLabeled_Tiles); CHANGEDETECTOR finds what differs between two dates (Classified_Tiles of two "
        "rasters)",
    )
    backbone_model: BackboneModel = Field(
        default="EFFICIENTNET_LITE0",
        description=f"Encoder of the network: {', '.join(BACKBONES)}, or an encoder of timm's such as "
        "timm:convnext_tiny. The ImageNet weights of EFFICIENTNET_LITE0 are installed; those of the others "
        "are fetched from the Hugging Face hub",
    )
    weight_init_scheme: Literal["RANDOM", "RED_BAND", "ALL_RANDOM"] = Field(
        default="RANDOM",
        description="First layer over bands other than red, green and blue (told by their names, else the "
        "first three): RANDOM weights; those of red (RED_BAND); or random weights for all bands (ALL_RANDOM)",
    )
    max_epochs: int = Field(
        default=20, ge=1, le=100_000, description="Passes over the training chips, one crop of each per pass"
    )
    batch_size: int | None = Field(
        default=8,
        ge=1,
        le=1024,
        description="Chips per training step; empty: as many as the memory of the GPU holds (8 on a CPU)",
    )
    accumulate_batches: int = Field(
        default=1, ge=1, le=256, description="Batches whose gradients are added up before a training step"
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Largest learning rate of the one-cycle schedule; empty: found by a test over rising "
        "rates (0.004 with preset = light). The encoder learns with half of it",
    )
    validation_percent: float = Field(
        default=10.0,
        gt=0,
        lt=90,
        description="Share of the chips, in percent, that is kept aside, as compact areas: no training chip "
        "overlaps a validation chip",
    )
    validation_folder: list[str] = Field(
        default=[],
        description="Training data to validate on, in place of validation_percent; refused where it shows "
        "ground or pixels of in_folder",
    )
    chip_size: int | None = Field(
        default=None,
        ge=64,
        le=4096,
        multiple_of=32,
        description="Edge in pixels of the crop that training takes from each chip; empty: the whole chip. "
        "FEATURE_CLASSIFIER: edge that whole chips are scaled to",
    )
    model_arguments: list[ModelArgument] = Field(
        default=[],
        description="Arguments of the model, as names and values. preset = light trains on a CPU in minutes; "
        "further: pretrained, downscale; models of pixels: class_balancing, focal_loss, dice_loss, "
        "ignore_classes, decoder, width; "
        "detectors: stride, levels, width, anchor_size, nms_overlap, detect_min_iou; "
        "FEATURE_CLASSIFIER: dropout, label_smoothing; CHANGEDETECTOR: those of pixels, and fusion",
    )
    stop_training: bool = Field(
        default=True,
        description="Stop in the second half of the schedule when the monitored value has not improved in "
        "5 validations",
    )
    freeze_model: bool = Field(
        default=False, description="Leave the encoder's ImageNet weights as they are and train the rest"
    )
    augmentation: Literal["DEFAULT", "NONE"] = Field(
        default="DEFAULT",
        description="DEFAULT turns and mirrors chips, shifts crops and varies brightness, contrast and scale",
    )
    monitor: Monitor = Field(
        default="VALID_LOSS",
        description="Value that early stopping watches and the best weights are chosen by. Pixels, change: "
        "VALID_LOSS, ACCURACY, F1_SCORE, MIOU; objects, outlines: VALID_LOSS, AVERAGE_PRECISION, F1_SCORE; "
        "classes of objects: VALID_LOSS, ACCURACY, F1_SCORE",
    )
    time_limit_minutes: float | None = Field(
        default=None,
        gt=0,
        le=100_000,
        description="Time for training; the learning rate's schedule fits into it. Empty: max_epochs decides",
    )
    seed: int = Field(
        default=1, ge=0, le=2**31 - 1, description="Seed of the split, the weights and the crops"
    )
    precision: Literal["AUTO", "FLOAT32", "BFLOAT16", "FLOAT16"] = Field(
        default="AUTO",
        description="Arithmetic of training: AUTO is FLOAT32 on a CPU and mixed precision on a GPU",
    )
    processor_type: Literal["AUTO", "CPU", "GPU"] = Field(
        default="AUTO", description="AUTO takes a GPU where there is one; GPU insists; CPU"
    )

    @property
    def kind(self) -> Kind:
        """What the model type predicts."""
        return kind_of(self.model_type)

    @model_validator(mode="after")
    def _monitor_fits_the_model(self) -> TrainParameters:
        if self.monitor not in _MONITORS[self.kind]:
            raise ValueError(
                f"monitor {self.monitor} does not exist for {self.model_type}; choose one of "
                + ", ".join(sorted(_MONITORS[self.kind]))
            )
        return self
