"""What a person may set about a network, as model arguments (names and values as text)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.errors import BadInputError, TrainingDataError
from tasks.parameters import arguments_as_dict, validated
from tasks.train.models.arguments import CUSTOM, WITHOUT, check_decided, check_given
from tasks.train.parameters import IMAGE_KINDS, QUERY_MODELS, Kind, ModelType, TrainParameters, kind_of

Preset = Literal["light", "standard"]
Positive = Annotated[float, Field(gt=0)]

_LISTS = ("decoder", "scales", "ratios")  # options that are several numbers, in brackets or not


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Preset = Field("standard", description="light trains on a CPU in minutes, standard wants a GPU")
    pretrained: bool = Field(True, description="start the encoder from ImageNet weights")
    downscale: Literal[1, 2, 4] = Field(1, description="the network sees every n-th pixel, averaged")

    # Values come as text; a Literal of numbers takes no text, and a tuple none either.
    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name, given in values.items():
            if not isinstance(given, str):
                continue
            if name in _LISTS:
                values[name] = given.replace(",", " ").strip("[]() ").split()
            elif name in cls.model_fields and given.strip().isdigit() and _takes_numbers(cls, name):
                values[name] = int(given)
        return values


def _takes_numbers(options: type[BaseModel], name: str) -> bool:
    """Whether an option is one of some whole numbers."""
    annotation = options.model_fields[name].annotation
    return get_origin(annotation) is Literal and all(isinstance(item, int) for item in get_args(annotation))


class PixelOptions(_Options):
    """Arguments of the models of pixels."""

    @property
    def size_divisor(self) -> int:
        """Chips and tiles are multiples of this."""
        return 32 * self.downscale

    class_balancing: bool = Field(False, description="weigh classes by the inverse of their frequency")
    focal_loss: bool = Field(False, description="focal loss (gamma 2) in place of cross-entropy")
    dice_loss: bool = Field(True, description="add the soft Dice loss over the classes")
    mixup: bool = Field(False, description="learn from mixtures of two chips and of their labels")
    ignore_classes: str = Field("", description="class values, comma separated, that count as unknown; 0 too")
    decoder: tuple[int, int, int, int, int] = Field(
        (256, 128, 64, 32, 16), description="channels of the decoder (UNET, UNETPLUSPLUS, MANET)"
    )
    width: int | None = Field(
        None,
        ge=32,
        le=1024,
        multiple_of=32,
        description="channels of the decoder (FPN, PSPNET, DEEPLAB, UPERNET, SEGFORMER), of the hourglasses "
        "(roads) or around each resolution (BDCN_EDGEDETECTOR); the network's own where it is not given",
    )

    @property
    def ignored(self) -> tuple[int, ...]:
        """``ignore_classes`` as numbers."""
        return tuple(int(part) for part in self.ignore_classes.replace(";", ",").split(",") if part.strip())

    @model_validator(mode="after")
    def _ignored_are_numbers(self) -> PixelOptions:
        try:
            self.ignored  # noqa: B018 - parsing is the check
        except ValueError:
            raise ValueError("ignore_classes takes class values, comma separated, such as 0,3") from None
        return self


class ChangeOptions(PixelOptions):
    """Arguments of CHANGEDETECTOR."""

    fusion: Literal["difference", "concatenation"] = Field(
        "difference",
        description="what the decoder sees of both dates' features: by how much they differ, or both",
    )


class EdgeOptions(PixelOptions):
    """Arguments of HED_EDGEDETECTOR and BDCN_EDGEDETECTOR."""

    @model_validator(mode="after")
    def _loss_is_its_own(self) -> EdgeOptions:
        if self.class_balancing or self.focal_loss or self.mixup:
            raise ValueError("models of edges balance by themselves: no class_balancing, focal_loss, mixup")
        return self


class RoadOptions(PixelOptions):
    """Arguments of MULTITASK_ROADEXTRACTOR."""

    mtl_model: Literal["hourglass", "linknet", "unet"] = Field(
        "hourglass",
        description="hourglass: two stacked hourglasses of width channels after the encoder's first layers; "
        "linknet, unet: the whole encoder and that decoder",
    )
    gaussian_thresh: float | None = Field(
        None,
        ge=0.05,
        lt=1,
        description="learns roads of one width, drawn around the middle lines of the mask: 0.76, which is "
        "ArcGIS's default, gives 11 pixels to either side; roads as the mask has them where it is not given",
    )
    orient_bin_size: Literal[10, 15, 20, 30, 45] = Field(
        20, description="degrees that directions of roads are told apart by"
    )
    orient_theta: float = Field(
        8.0, ge=1, le=64, description="pixels around a place that its road's direction is told from"
    )
    direction_weight: float = Field(0.5, ge=0, description="weight of the directions beside the roads")

    @model_validator(mode="after")
    def _mixes_nothing(self) -> RoadOptions:
        if self.mixup:
            raise ValueError("a mixture of two roads has no direction: no mixup")
        return self


class ConnectedRoadOptions(RoadOptions):
    """Arguments of CONNECTNET."""

    connectivity_weight: float = Field(
        1.0, ge=0, description="weight of what each pixel of a road is connected with, beside the roads"
    )


class BoxOptions(_Options):
    """Arguments of all models of boxes. Pixel sizes are those of the image, not of the downscaled one."""

    stride: Literal[4, 8, 16] = Field(8, description="pixels per cell of the finest feature map")
    levels: int = Field(3, ge=1, le=4, description="number of feature maps, each half the size of the last")
    anchor_size: float = Field(16.0, gt=0, description="pixels; the finest level's boxes start at this size")
    nms_overlap: float = Field(
        0.4, gt=0, le=1, description="overlap at which the weaker of two boxes goes; 1: none does"
    )
    detect_min_iou: float = Field(
        0.4, gt=0, lt=1, description="IoU at which a validation box counts as found"
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_mixed(cls, values: Any) -> Any:
        if isinstance(values, dict) and "mixup" in values:
            raise ValueError(
                "mixup is not offered for detectors: an object is there or not, and has no share of a mixture"
            )
        return values

    @model_validator(mode="after")
    def _levels_fit(self) -> BoxOptions:
        if self.stride // self.downscale < 2:
            raise ValueError("stride must be at least twice downscale")
        if self.resolutions > 5:
            raise ValueError("stride and levels ask for more resolutions than an encoder has")
        return self

    @property
    def resolutions(self) -> int:
        """How many resolutions of the encoder the feature maps need."""
        return (self.stride // self.downscale).bit_length() - 1 + self.levels - 1


class DetectorOptions(BoxOptions):
    """Arguments of torchvision's detectors."""

    depth: int = Field(5, ge=3, le=5, description="how many resolutions of the encoder are used")
    width: int = Field(128, ge=32, le=256, multiple_of=32, description="channels of the feature maps")
    head_convolutions: int = Field(4, ge=1, le=4, description="layers of the head before the scores (FCOS)")
    center_radius: float = Field(
        0.75, gt=0, description="cells within this many anchor sizes of an object's centre learn it (FCOS)"
    )
    scales: tuple[Positive, ...] | None = Field(
        None,
        min_length=1,
        max_length=9,
        description="sizes of the first boxes at each level, as shares of its anchor size (RETINANET, SSD); "
        "where they are not given 1, 1.26 and 1.59, thirds of the way to the next level",
    )
    ratios: tuple[Positive, ...] = Field(
        (0.5, 1.0, 2.0),
        min_length=1,
        max_length=9,
        description="shapes of the first boxes, height over width (all but FCOS)",
    )

    @property
    def size_divisor(self) -> int:
        """Chips and tiles are multiples of this; torchvision pads other images."""
        return int(max(32, self.downscale * 2**self.depth))


class QueryOptions(BoxOptions):
    """Arguments of RTDETRV2 and DFINE."""

    nms_overlap: float = Field(
        1.0, gt=0, le=1, description="overlap at which the weaker of two boxes goes; 1: none does"
    )
    width: Literal[32, 64, 128, 256] = Field(256, description="channels of the feature maps and of queries")
    layers: int = Field(6, ge=1, le=12, description="how often boxes are corrected (layers of the decoder)")
    queries: int | None = Field(
        None,
        ge=10,
        le=3000,
        description="most objects that are found in a tile; empty: two for each object of the fullest chip, "
        "at least 300",
    )
    denoising: int = Field(
        100, ge=0, le=1000, description="known objects that are put among the queries in training, with noise"
    )
    expansion: float = Field(
        1.0, ge=0.25, le=1, description="channels of the blocks that merge feature maps, as a share of width"
    )

    @property
    def size_divisor(self) -> int:
        """Chips and tiles are multiples of this."""
        return int(max(32, self.downscale * 2**self.resolutions))


class PanopticOptions(_Options):
    """Arguments of MASK2FORMER."""

    n_masks: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="most regions of a tile: objects, classes without objects, background; empty: 30, or as "
        "many as the fullest chip has",
    )
    width: Literal[32, 64, 128, 256] = Field(256, description="channels of the feature maps and of queries")
    layers: int = Field(9, ge=1, le=12, description="how often masks are corrected (layers of the decoder)")
    detect_min_iou: float = Field(
        0.4, gt=0, lt=1, description="IoU at which the mask of a validation object counts as found"
    )

    @property
    def size_divisor(self) -> int:
        """Chips and tiles are multiples of this."""
        return 32 * self.downscale


class ClassifierOptions(_Options):
    """Arguments of FEATURE_CLASSIFIER."""

    dropout: float = Field(
        0.2, ge=0, lt=1, description="share of the features left out at random in training"
    )
    label_smoothing: float = Field(0.05, ge=0, lt=0.5, description="share of certainty taken off the truth")
    mixup: bool = Field(False, description="learn from mixtures of two chips and of their classes")

    @property
    def size_divisor(self) -> int:
        """Chips are scaled to a multiple of this."""
        return 32 * self.downscale


class ImageOptions(_Options):
    """Arguments of all models that make pictures."""

    downscale: Literal[1] = Field(1, description="the network sees every pixel")
    decoder: tuple[int, int, int, int, int] = Field(
        (256, 128, 64, 32, 16), description="channels of the decoder"
    )

    @property
    def size_divisor(self) -> int:
        """Chips and tiles are multiples of this."""
        return 32


class ResolutionOptions(ImageOptions):
    """Arguments of SUPERRESOLUTION."""

    downsample_factor: int = Field(4, ge=2, le=8, description="by how much finer the cells of the result are")


class TranslationOptions(ImageOptions):
    """Arguments of PIX2PIX."""

    discriminator: int = Field(
        64, ge=8, le=256, description="channels of the first layer of the network that judges"
    )
    l1_weight: float = Field(
        100.0, gt=0, description="weight of the distance from the target, beside the judgement"
    )


class HighResolutionOptions(TranslationOptions):
    """Arguments of PIX2PIXHD."""

    l1_weight: float = Field(
        10.0, ge=0, description="weight of the distance from the target, beside the judgement"
    )
    feature_weight: float = Field(
        10.0, ge=0, description="weight of how differently the layers of the judges see target and picture"
    )
    discriminators: int = Field(
        3, ge=1, le=4, description="networks that judge, each at half of the resolution of the one before"
    )
    global_blocks: int = Field(
        9, ge=0, le=32, description="residual blocks in the middle of the network at half of the resolution"
    )
    local_blocks: int = Field(
        3, ge=0, le=32, description="residual blocks of the layers around it, which see the whole resolution"
    )
    width: int = Field(64, ge=8, le=256, multiple_of=2, description="channels of the layers around it")

    @property
    def least_size(self) -> int:
        """Pixels that a chip needs for the coarsest judge to see something of it."""
        return 32 << (self.discriminators - 1)


class CycleOptions(ImageOptions):
    """Arguments of CYCLEGAN."""

    discriminator: int = Field(
        64, ge=8, le=256, description="channels of the first layer of the networks that judge"
    )
    cycle_weight: float = Field(10.0, gt=0, description="weight of what is lost on the way there and back")
    identity_weight: float = Field(
        5.0, ge=0, description="weight of what changes in pictures that are of the wanted side already"
    )


AnyOptions = (
    PixelOptions | DetectorOptions | QueryOptions | PanopticOptions | ClassifierOptions | ImageOptions
)

_LIGHT_PIXELS = {"downscale": 2, "decoder": (128, 96, 64, 32, 16), "width": 96}
_LIGHT_DETECTOR = {"downscale": 2, "levels": 1, "depth": 4, "width": 64, "head_convolutions": 2}

_LIGHT_CLASSIFIER = {"downscale": 2}
_LIGHT_IMAGES = {"decoder": (96, 64, 48, 32, 16)}
_LIGHT: dict[type[_Options], dict[str, Any]] = {
    PixelOptions: _LIGHT_PIXELS,
    ChangeOptions: _LIGHT_PIXELS,
    EdgeOptions: _LIGHT_PIXELS,
    RoadOptions: _LIGHT_PIXELS,
    ConnectedRoadOptions: _LIGHT_PIXELS,
    DetectorOptions: _LIGHT_DETECTOR,
    QueryOptions: {"downscale": 2, "levels": 2, "width": 128, "layers": 3, "expansion": 0.5},
    PanopticOptions: {"width": 64, "layers": 3},
    ClassifierOptions: _LIGHT_CLASSIFIER,
    ResolutionOptions: _LIGHT_IMAGES,
    TranslationOptions: {**_LIGHT_IMAGES, "discriminator": 32},
    HighResolutionOptions: {
        **_LIGHT_IMAGES,
        "discriminator": 32,
        "discriminators": 2,
        "global_blocks": 3,
        "local_blocks": 2,
        "width": 32,
    },
    CycleOptions: {**_LIGHT_IMAGES, "discriminator": 32},
}
_OPTIONS_OF: dict[Kind, type[AnyOptions]] = {
    "pixels": PixelOptions,
    "change": ChangeOptions,
    "edges": EdgeOptions,
    "roads": RoadOptions,
    "connected roads": ConnectedRoadOptions,
    "objects": DetectorOptions,
    "instances": DetectorOptions,
    "panoptic": PanopticOptions,
    "labels": ClassifierOptions,
    "resolution": ResolutionOptions,
    "translation": TranslationOptions,
    "fine translation": HighResolutionOptions,
    "cycle": CycleOptions,
}

Options = TypeVar("Options", bound=_Options)


def read_options(kind: type[Options], arguments: dict[str, str]) -> Options:
    """The options that ``arguments`` give; ``preset`` decides what is not given.

    Raises:
        BadInputError: an unknown name, or a value outside its bounds.
    """
    light = arguments.get("preset", "").strip().lower() == "light"
    base = _LIGHT[kind] if light else {}
    values = {name: value.strip() for name, value in arguments.items()}
    if "preset" in values:
        values["preset"] = values["preset"].lower()
    return validated(kind, {**base, **values})


def options_type(parameters: TrainParameters) -> type[AnyOptions]:
    """The class of the options of a model type."""
    return _type_of(parameters.model_type, parameters.kind)


def _type_of(model_type: str, kind: Kind) -> type[AnyOptions]:
    return QueryOptions if model_type in QUERY_MODELS else _OPTIONS_OF[kind]


def options_of(parameters: TrainParameters) -> AnyOptions:
    """The options of the tool's model arguments.

    Raises:
        BadInputError: an argument that is unknown, given twice, outside its bounds, or without any use for
            the model type (:mod:`tasks.train.models.arguments`).
    """
    kind, own = options_type(parameters), own_arguments(parameters)
    arguments = arguments_as_dict(parameters.model_arguments)
    given = {name: value for name, value in arguments.items() if name not in own}
    check_given(parameters.model_type, given, {name: _users(kind, name) for name in given})
    options = read_options(kind, given)
    check_decided(options.model_dump(), given)
    return options


def _users(kind: type[AnyOptions], name: str) -> list[str]:
    """The model types with options like these that do have use for one of them."""
    types = {
        model_type: _type_of(model_type, kind_of(model_type))
        for model_type in get_args(ModelType)
        if model_type != "CUSTOM"
    }
    return [
        model_type
        for model_type, other in types.items()
        if name in other.model_fields
        and name not in WITHOUT.get(model_type, ())
        and (issubclass(other, kind) or issubclass(kind, other))
    ]


def own_arguments(parameters: TrainParameters) -> dict[str, str]:
    """The model arguments that are for a model of one's own; none are for others."""
    if parameters.custom_model is None:
        return {}
    known = CUSTOM.intersection(options_type(parameters).model_fields)
    arguments = arguments_as_dict(parameters.model_arguments)
    return {name: value for name, value in arguments.items() if name not in known}


def input_size(parameters: TrainParameters, options: AnyOptions, tile_size: int) -> int:
    """Edge of the network's input in training, pixels, for chips whose shorter edge is ``tile_size``.

    What ``resize_to`` makes of them counts, where it is given.
    """
    step = options.size_divisor
    return parameters.chip_size or max((parameters.resize_to or tile_size) // step, 1) * step


def enlargement(parameters: TrainParameters, tile_size: int) -> float:
    """By how much ``resize_to`` enlarges chips whose shorter edge is ``tile_size``; 1 where it is not given.

    Chips of FEATURE_CLASSIFIER are scaled as a whole, whatever their size: of them it is 1, too.
    """
    if parameters.resize_to is None or parameters.kind == "labels":
        return 1.0
    return parameters.resize_to / tile_size


def check_sizes(parameters: TrainParameters, options: AnyOptions, tile_size: int, chips: int) -> None:
    """Refuse sizes that do not fit the network, and too few chips to split.

    Args:
        tile_size: the shorter edge of the chips, pixels.

    Raises:
        BadInputError, TrainingDataError: with a value that would fit.
    """
    size, step = parameters.chip_size, options.size_divisor
    scaled = parameters.kind == "labels"  # chips of any size are scaled to the network's input
    resized = parameters.resize_to
    if resized is not None and resized % step:
        raise BadInputError(
            f"resize_to {resized} is no multiple of {step}, which this network needs.",
            f"Choose resize_to {max(step, resized // step * step)}.",
        )
    tile_size = resized or tile_size
    if size is not None and size > tile_size and (resized or not scaled):
        raise BadInputError(
            f"chip_size {size} is larger than the chips, which have {tile_size} pixels.",
            "Choose a smaller chip_size, or export larger tiles.",
        )
    if size is not None and size % step:
        raise BadInputError(
            f"chip_size {size} is no multiple of {step}, which this network needs.",
            f"Choose chip_size {max(step, size // step * step)}.",
        )
    if tile_size < step and not scaled:
        raise TrainingDataError(
            f"The chips have {tile_size} pixels, but this network needs at least {step}.",
            "Export larger tiles.",
        )
    if isinstance(options, HighResolutionOptions):
        seen = input_size(parameters, options, tile_size)
        if seen < options.least_size:
            raise BadInputError(
                f"{options.discriminators} discriminators need chips of {options.least_size} pixels: these "
                f"have {seen}.",
                "Give the model argument discriminators a lower number, or export larger tiles.",
            )
    if parameters.kind in IMAGE_KINDS and parameters.augmentation not in ("DEFAULT", "NONE"):
        raise BadInputError(
            f"{parameters.model_type} learns colours and cells as they are; its chips are turned and mirrored"
            " only.",
            "Choose augmentation DEFAULT or NONE.",
        )
    if chips < 2:
        raise TrainingDataError(
            f"{chips} chips cannot be split into training and validation chips.",
            "Export more chips: a smaller tile_size or stride_size, or more labelled area.",
        )
    given = "freeze_model" if parameters.freeze_model else ""
    if parameters.encoder_weights is not None:
        given = "encoder_weights"
    begun = parameters.pretrained_model is not None or parameters.custom_model is not None
    if given and not options.pretrained and not begun:
        raise BadInputError(
            f"{given} asks for trained weights of the encoder, but pretrained is False.",
            "Give one of the two another value.",
        )


# Their decoders normalise a feature that is averaged over the whole chip: of one chip it would be zero.
_TWO_CHIPS = frozenset({"DEEPLAB", "UPERNET"})


def check_batch(parameters: TrainParameters, batch: int) -> None:
    """Refuse batches of one chip for networks that cannot learn from them.

    Raises:
        BadInputError: with what to change.
    """
    if batch < 2 and parameters.model_type in _TWO_CHIPS:
        raise BadInputError(
            f"{parameters.model_type} learns from at least two chips at once; here a batch is {batch}.",
            "Raise batch_size, or train on more chips.",
        )
