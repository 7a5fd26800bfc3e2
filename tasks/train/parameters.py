"""Parameters of ``train_deep_learning_model``: ArcGIS's names in snake_case.

Source of names and defaults: ``docs/formats/tools.md`` §1. Where a default differs from ArcGIS's, the
description says what ours does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from tasks.parameters import ModelArgument, ToolParameters
from tasks.train.models.backbones import BACKBONES, check_backbone
from tasks.train.recipes import steps_of

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
    "RTDETRV2",
    "DFINE",
    "MASKRCNN",
    "MASK2FORMER",
    "FEATURE_CLASSIFIER",
    "CHANGEDETECTOR",
    "HED_EDGEDETECTOR",
    "BDCN_EDGEDETECTOR",
    "MULTITASK_ROADEXTRACTOR",
    "CONNECTNET",
    "SUPERRESOLUTION",
    "PIX2PIX",
    "PIX2PIXHD",
    "CYCLEGAN",
    "CUSTOM",
]
# A text, not a Literal: timm's encoders are too many for a list, and a form still takes them.
BackboneModel = Annotated[str, AfterValidator(check_backbone)]
Monitor = Literal[
    "VALID_LOSS",
    "AVERAGE_PRECISION",
    "F1_SCORE",
    "ACCURACY",
    "MIOU",
    "DICE",
    "PRECISION",
    "RECALL",
    "MULTI_LABEL_FBETA",
    "PANOPTIC_QUALITY",
]

Kind = Literal[
    "pixels",
    "objects",
    "instances",
    "panoptic",
    "labels",
    "change",
    "edges",
    "roads",
    "connected roads",
    "resolution",
    "translation",
    "fine translation",
    "cycle",
    "custom",
]
# What is thin; and classes of pixels, in whatever way they are learnt.
LINE_KINDS: frozenset[Kind] = frozenset({"edges", "roads", "connected roads"})
PIXEL_KINDS: frozenset[Kind] = frozenset({"pixels", "change", *LINE_KINDS})
# Pictures from others of the same place; what has a network that judges; and all that makes pictures.
TRANSLATIONS: frozenset[Kind] = frozenset({"translation", "fine translation"})
ADVERSARIAL: frozenset[Kind] = frozenset({*TRANSLATIONS, "cycle"})
IMAGE_KINDS: frozenset[Kind] = frozenset({*ADVERSARIAL, "resolution"})

PIXEL_MODELS = frozenset(
    {"UNET", "UNETPLUSPLUS", "MANET", "LINKNET", "FPN", "PSPNET", "DEEPLAB", "UPERNET", "SEGFORMER"}
)
# Detectors that answer a fixed number of queries.
QUERY_MODELS = frozenset({"RTDETRV2", "DFINE"})
_OTHER_KINDS: dict[str, Kind] = {
    "MASKRCNN": "instances",
    "MASK2FORMER": "panoptic",
    "FEATURE_CLASSIFIER": "labels",
    "CHANGEDETECTOR": "change",
    "HED_EDGEDETECTOR": "edges",
    "BDCN_EDGEDETECTOR": "edges",
    "MULTITASK_ROADEXTRACTOR": "roads",
    "CONNECTNET": "connected roads",
    "SUPERRESOLUTION": "resolution",
    "PIX2PIX": "translation",
    "PIX2PIXHD": "fine translation",
    "CYCLEGAN": "cycle",
    "CUSTOM": "custom",  # its name says what it predicts, see TrainParameters.kind
}
_ALL_MONITOR = frozenset({"VALID_LOSS", "F1_SCORE", "PRECISION", "RECALL"})
_MONITORS: dict[Kind, frozenset[str]] = {
    **dict.fromkeys(PIXEL_KINDS, _ALL_MONITOR | {"ACCURACY", "MIOU", "DICE"}),
    **dict.fromkeys(("objects", "instances"), _ALL_MONITOR | {"AVERAGE_PRECISION"}),
    "panoptic": _ALL_MONITOR | {"AVERAGE_PRECISION", "ACCURACY", "MIOU", "PANOPTIC_QUALITY"},
    "labels": _ALL_MONITOR | {"ACCURACY", "MULTI_LABEL_FBETA"},
    **dict.fromkeys(IMAGE_KINDS, frozenset({"VALID_LOSS"})),
}


# ArcGIS's types that there is no network of here, but another one that learns from the same data.
_INSTEAD = {"MAXDEEPLAB": "MASK2FORMER"}
# Model arguments in ArcGIS, parameters of the tool here.
_PARAMETERS_IN_ARCGIS = ("chip_size", "monitor")

_CUSTOM_KINDS: dict[str, Kind] = {"pixels": "pixels", "labels": "labels"}


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
        "pixels (Classified_Tiles and other formats with masks); FCOS, RETINANET, SSD, FASTERRCNN, RTDETRV2 "
        "and DFINE detect objects (PASCAL_VOC_rectangles and other formats with boxes); MASKRCNN outlines "
        "them (RCNN_Masks); MASK2FORMER does so and tells the class of every pixel (Panoptic_Segmentation); "
        "FEATURE_CLASSIFIER names the class of an object (Labeled_Tiles, Imagenet), or "
        "several (MultiLabeled_Tiles); CHANGEDETECTOR finds what differs between two dates (Classified_Tiles "
        "of two rasters); HED_EDGEDETECTOR and BDCN_EDGEDETECTOR find edges, MULTITASK_ROADEXTRACTOR and "
        "CONNECTNET roads (Classified_Tiles of one class); SUPERRESOLUTION makes finer pictures, PIX2PIX "
        "and PIX2PIXHD other ones (Export_Tiles), CYCLEGAN learns both ways from pictures that are no pairs "
        "(CycleGAN); CUSTOM is a model of your own, see custom_model",
    )
    custom_model: str | None = Field(
        default=None,
        pattern=r"^(pixels|labels)\.[A-Za-z0-9_-]{1,80}$",
        description="CUSTOM: name of the entry point (group chipline.models) of an installed Python package, "
        "such as pixels.my_net or labels.my_net",
    )
    backbone_model: BackboneModel = Field(
        default="EFFICIENTNET_LITE0",
        description=f"Encoder of the network: {', '.join(BACKBONES)}, or an encoder of timm's such as "
        "timm:convnext_tiny. The ImageNet weights of EFFICIENTNET_LITE0 are installed; those of the others "
        "are fetched from the Hugging Face hub, see encoder_weights",
    )
    weight_init_scheme: Literal["RANDOM", "RED_BAND", "ALL_RANDOM"] = Field(
        default="RANDOM",
        description="First layer over bands other than red, green and blue (told by their names, else the "
        "first three): RANDOM weights; those of red (RED_BAND); or random weights for all bands (ALL_RANDOM)",
    )
    encoder_weights: str | None = Field(
        default=None,
        description="Weights that the encoder starts from: a file (.pth, .safetensors) as an s3:// address "
        "or a path, or package:NAME/FILE of an installed Python package. Empty: those that are installed, "
        "else the hub's",
    )
    allow_random_encoder: bool = Field(
        default=False,
        description="Start from random weights where the hub's cannot be fetched; otherwise that is an error",
    )
    pretrained_model: str | None = Field(
        default=None,
        description="Package to go on with (fine-tuning): models:/name/3, models:/name@alias, the name of a "
        "model that was trained here, or the address of a .dlpk; of the same model_type and backbone_model. "
        "Classes may differ",
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
        "rates (0.004 with preset = light; 0.0005 for RTDETRV2, DFINE, MASK2FORMER). The encoder learns with "
        "half of it",
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
        "mixup, ignore_classes, and decoder (UNET, UNETPLUSPLUS, MANET) or width (FPN, PSPNET, DEEPLAB, "
        "UPERNET, SEGFORMER); detectors: stride, levels, width, anchor_size, nms_overlap, detect_min_iou; of "
        "these RETINANET, SSD, FASTERRCNN, MASKRCNN: ratios; RETINANET, SSD: scales; RTDETRV2, DFINE: "
        "layers, queries, denoising, expansion; MASK2FORMER: n_masks, width, layers, detect_min_iou; "
        "FEATURE_CLASSIFIER: dropout, label_smoothing, mixup; CHANGEDETECTOR: those of UNET, and fusion; "
        "MULTITASK_ROADEXTRACTOR, CONNECTNET: those of pixels, and mtl_model, gaussian_thresh, "
        "orient_bin_size, orient_theta, direction_weight, connectivity_weight (CONNECTNET); "
        "SUPERRESOLUTION: downsample_factor; PIX2PIX: l1_weight, discriminator; PIX2PIXHD: these, and "
        "discriminators, feature_weight, global_blocks, local_blocks, width; CYCLEGAN: cycle_weight, "
        "identity_weight, discriminator",
    )
    stop_training: bool = Field(
        default=True,
        description="Stop in the last three tenths of the schedule when the monitored value has not improved "
        "in 5 validations",
    )
    freeze_model: bool = Field(
        default=False, description="Leave the encoder's ImageNet weights as they are and train the rest"
    )
    unfreeze_after_epochs: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="With freeze_model: the encoder learns, too, after so many epochs. Empty: it never does",
    )
    augmentation: Literal["DEFAULT", "NONE", "CUSTOM", "FILE"] = Field(
        default="DEFAULT",
        description="DEFAULT turns and mirrors chips, shifts crops, varies brightness, contrast and scale; "
        "CUSTOM does what augmentation_parameters say, FILE what transforms.json in the training data says",
    )
    augmentation_parameters: list[list[str]] = Field(
        default=[],
        description="CUSTOM: steps in their order, each a name and value;probability; (a,b) is a range: "
        '[["rotate", "30.0;0.5"], ["brightness", "(0.4,0.6);1.0"], ["contrast", "(0.75,1.5);1.0"], '
        '["zoom", "(1.0,1.2);1.0"], ["crop", "224;1.0;(0,1);(0,1)"], ["dihedral", "1.0"]]',
    )
    resize_to: int | None = Field(
        default=None,
        ge=32,
        le=4096,
        description="Edge in pixels that chips are scaled to before chip_size is cut out of them (models of "
        "boxes, FEATURE_CLASSIFIER, SUPERRESOLUTION); the package scales imagery alike",
    )
    monitor: Monitor = Field(
        default="VALID_LOSS",
        description="Value that early stopping watches and the best weights are chosen by: VALID_LOSS, "
        "F1_SCORE, PRECISION, RECALL (models of pictures: VALID_LOSS); pixels, change: also ACCURACY, MIOU, "
        "DICE; objects, outlines: also AVERAGE_PRECISION; MASK2FORMER: AVERAGE_PRECISION, MIOU, ACCURACY, "
        "PANOPTIC_QUALITY; classes of objects: also ACCURACY, "
        "MULTI_LABEL_FBETA",
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
    deterministic: bool = Field(
        default=False,
        description="Insist on the same weights from the same inputs on a GPU, too: an operator that cannot "
        "promise them ends the training. Without, such operators are used and named in the metrics",
    )
    precision: Literal["AUTO", "FLOAT32", "BFLOAT16", "FLOAT16"] = Field(
        default="AUTO",
        description="Arithmetic of training: AUTO is FLOAT32 on a CPU and mixed precision on a GPU",
    )
    processor_type: Literal["AUTO", "CPU", "GPU"] = Field(
        default="AUTO", description="AUTO takes a GPU where there is one; GPU insists; CPU"
    )
    devices: int | None = Field(
        default=None,
        ge=0,
        le=1024,
        description="GPUs of a node (processes, on a CPU) that train together, each with batch_size chips "
        "per step; 0: all that the worker sees. All but 1 is for a worker of pool gpu-node. Empty: 1",
    )
    num_nodes: int = Field(
        default=1, ge=1, le=64, description="Workers of pool gpu-node that train together, at the same time"
    )
    checkpoint_minutes: float = Field(
        default=2.0,
        ge=0,
        le=1440,
        description="Time between two checkpoints, from which a killed training goes on; 0: after every step",
    )
    tensorboard: bool = Field(
        default=False, description="Keep the curves as TensorBoard's event file, too, in tensorboard/"
    )

    @property
    def kind(self) -> Kind:
        """What the model type predicts."""
        if self.custom_model is not None:
            return _CUSTOM_KINDS[self.custom_model.partition(".")[0]]
        return kind_of(self.model_type)

    @property
    def backbone(self) -> str:
        """The encoder; empty where a model of one's own was asked for none."""
        default = type(self).model_fields["backbone_model"].default
        own = self.custom_model is not None
        return "" if own and self.backbone_model == default else self.backbone_model

    @property
    def on_nodes(self) -> bool:
        """Whether workers that see all devices of their node train, in place of one that sees one."""
        return self.devices not in (None, 1) or self.num_nodes > 1

    @field_validator("model_type", mode="before")
    @classmethod
    def _offered(cls, value: Any) -> Any:
        if value in _INSTEAD:
            raise ValueError(f"{value} is not offered; {_INSTEAD[value]} learns from the same training data")
        return value

    @model_validator(mode="before")
    @classmethod
    def _arguments_that_are_parameters(cls, values: Any) -> Any:
        """ArcGIS takes chip_size and monitor as model arguments, too."""
        if not isinstance(values, dict) or not isinstance(values.get("model_arguments"), list):
            return values
        kept: list[Any] = []
        moved: dict[str, str] = {}
        for argument in values["model_arguments"]:
            item = argument.model_dump() if isinstance(argument, ModelArgument) else argument
            name, value = (item.get("name"), item.get("value")) if isinstance(item, dict) else (None, None)
            if name not in _PARAMETERS_IN_ARCGIS or not isinstance(value, str):
                kept.append(argument)
                continue
            given = moved.get(name, values.get(name))
            if given not in (None, cls.model_fields[name].default) and str(given) != value.strip():
                raise ValueError(f"{name} is given twice, as {given} and as {value}")
            moved[name] = value.strip()
        return {**values, "model_arguments": kept, **moved}

    @model_validator(mode="after")
    def _custom_is_named(self) -> TrainParameters:
        if (self.model_type == "CUSTOM") != (self.custom_model is not None):
            raise ValueError("model_type CUSTOM and custom_model go together")
        return self

    @model_validator(mode="after")
    def _start_is_one(self) -> TrainParameters:
        if self.pretrained_model is not None and self.encoder_weights is not None:
            raise ValueError("pretrained_model brings its encoder's weights; give no encoder_weights")
        if self.custom_model is not None and self.encoder_weights is not None:
            raise ValueError("a model of your own starts with weights of its own; give no encoder_weights")
        if self.unfreeze_after_epochs is not None and not self.freeze_model:
            raise ValueError("unfreeze_after_epochs goes with freeze_model = True")
        return self

    @model_validator(mode="after")
    def _augmentation_is_whole(self) -> TrainParameters:
        steps_of(self.augmentation_parameters)
        if self.augmentation == "CUSTOM" and not self.augmentation_parameters:
            raise ValueError("augmentation CUSTOM does what augmentation_parameters say: name at least one")
        if self.augmentation in ("DEFAULT", "NONE") and self.augmentation_parameters:
            raise ValueError("augmentation_parameters go with augmentation CUSTOM")
        if self.resize_to is not None and self.kind not in ("objects", "labels", "resolution"):
            raise ValueError(
                f"resize_to does not exist for {self.model_type}: it is for models of boxes, "
                "FEATURE_CLASSIFIER and SUPERRESOLUTION; export chips of another cell size"
            )
        return self

    @model_validator(mode="after")
    def _monitor_fits_the_model(self) -> TrainParameters:
        if self.monitor not in _MONITORS[self.kind]:
            raise ValueError(
                f"monitor {self.monitor} does not exist for {self.model_type}; choose one of "
                + ", ".join(sorted(_MONITORS[self.kind]))
            )
        return self
