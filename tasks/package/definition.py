"""The Esri model definition (``.emd``): read tolerantly, written strictly.

The format is stated in ``docs/formats/emd-dlpk.md``. Reading accepts what real files hold: Windows
paths, trailing commas, old spellings, keys we do not know (kept). Writing produces plain JSON with the
canonical spellings and without NaN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.errors import PackageError

MODEL_TYPES = (
    "ObjectDetection",
    "ImageClassification",
    "ObjectClassification",
    "InstanceDetection",
    "CycleGAN",
    "Pix2Pix",
    "Pix2PixHD",
    "SuperResolution",
    "ImageCaptioner",
    "PanopticSegmenter",
    "ObjectTracking",
    "llm",
)
"""Model types that occur in real packages, in the canonical spelling."""

_MODEL_TYPE_ALIASES = {
    "objectiondetection": "ObjectDetection",  # a slip in published documentation
    "classifypixels": "ImageClassification",
    "pixelclassification": "ImageClassification",
    "instancesegmentation": "InstanceDetection",
}

PREDEFINED = {
    ("TensorFlow", "ObjectDetectionAPI"): "ObjectDetector.py",
    ("TensorFlow", "DeepLab"): "ImageClassifier.py",
    ("Keras", "MaskRCNN"): "ObjectDetector.py",
    ("Keras", "KerasClassifier"): "ObjectClassifier.py",
    ("PyTorch", "FastaiSSD"): "ObjectDetector.py",
    ("PyTorch", "FeatureClassifier"): "ObjectClassifier.py",
    ("CNTK", "FasterRCNN"): "ObjectDetector.py",
    ("CNTK", "AzurePixelLevelLandClassification"): "ImageClassifier.py",
}
"""(Framework, ModelConfiguration) pairs that need no InferenceFunction of their own."""

_BUILTIN_BY_TYPE = {
    "ObjectDetection": "ObjectDetector.py",
    "ImageClassification": "ImageClassifier.py",
    "ObjectClassification": "ObjectClassifier.py",
    "InstanceDetection": "ObjectDetector.py",
}
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_WKID_DIGITS = 9
# Real definitions nest six levels; readers and writers of JSON give up at some hundreds.
_MAX_DEPTH = 64
_FUNCTIONS_PREFIX = re.compile(r"^\[functions\][/\\]*", re.IGNORECASE)


def normalised_path(value: str) -> str:
    """A path of a definition with forward slashes and no leading ``./`` (files are often Windows-made)."""
    text = value.strip().replace("\\", "/")
    while text.startswith("./"):
        text = text[2:].lstrip("/")
    return text


class _Tolerant(BaseModel):
    # Unknown keys are kept: a definition must survive being read and written. By alias only: real files
    # hold keys such as "bands" and "extract_bands" beside the ones of the format.
    model_config = ConfigDict(
        extra="allow", protected_namespaces=(), frozen=True, ser_json_inf_nan="constants"
    )


class DefinitionClass(_Tolerant):
    """One class: value in the output, name, colour (red, green, blue; 0-255)."""

    value: int = Field(
        validation_alias=AliasChoices("Value", "ClassValue", "value"), serialization_alias="Value"
    )
    name: str = Field(validation_alias=AliasChoices("Name", "ClassName", "name"), serialization_alias="Name")
    color: tuple[int, int, int] | None = Field(
        None, validation_alias=AliasChoices("Color", "Colour", "color"), serialization_alias="Color"
    )

    @field_validator("name", mode="before")
    @classmethod
    def _name_is_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int | float) else value

    @field_validator("color")
    @classmethod
    def _color_in_range(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and not all(0 <= part <= 255 for part in value):
            raise ValueError(f"the colour {list(value)} is outside 0-255")
        return value


class CellSize(_Tolerant):
    """A cell size seen in training, in units of its spatial reference."""

    x: float
    y: float
    spatial_reference: dict[str, Any] | None = Field(
        None,
        validation_alias=AliasChoices("spatialReference", "spatial_reference"),
        serialization_alias="spatialReference",
    )

    @property
    def wkid(self) -> int | None:
        """The spatial reference's well-known id (the latest one where both are given)."""
        reference = self.spatial_reference or {}
        value = reference.get("latestWkid", reference.get("wkid"))
        if isinstance(value, str) and value.strip().isdecimal() and len(value) <= _WKID_DIGITS:
            return int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


class NormalizationStats(_Tolerant):
    """Band statistics that the network's input is normalised with; all arrays are per raster band.

    ``((x - min) / (max - min) - scaled_mean) / scaled_std``, every array indexed by ExtractBands.
    """

    band_min_values: tuple[float, ...]
    band_max_values: tuple[float, ...]
    band_mean_values: tuple[float, ...] | None = None
    band_std_values: tuple[float, ...] | None = None
    scaled_min_values: tuple[float, ...] | None = None
    scaled_max_values: tuple[float, ...] | None = None
    scaled_mean_values: tuple[float, ...]
    scaled_std_values: tuple[float, ...]


class ModelDefinition(_Tolerant):
    """An Esri model definition. Attributes are snake_case; the file's keys are the aliases."""

    framework: str | None = Field(None, alias="Framework")
    model_configuration: str | dict[str, Any] | None = Field(None, alias="ModelConfiguration")
    model_file: str | None = Field(None, alias="ModelFile")
    model_files: list[str] | None = Field(None, alias="ModelFiles")
    model_type: str | None = Field(None, alias="ModelType")
    inference_function: str | None = Field(None, alias="InferenceFunction")
    model_name: str | None = Field(None, alias="ModelName")
    description: str | None = Field(None, alias="Description")
    image_height: int | None = Field(None, alias="ImageHeight")
    image_width: int | None = Field(None, alias="ImageWidth")
    extract_bands: list[int | str] | None = Field(None, alias="ExtractBands")
    classes: list[DefinitionClass] | None = Field(None, alias="Classes")
    data_range: tuple[float, float] | None = Field(None, alias="DataRange")
    model_padding: int | None = Field(None, alias="ModelPadding")
    batch_size: int | None = Field(None, alias="BatchSize")
    padding: int | None = Field(None, alias="Padding")
    image_space_used: Literal["MAP_SPACE", "IMAGE_SPACE", "PIXEL_SPACE"] | None = Field(
        None, alias="ImageSpaceUsed"
    )
    crop_size_fixed: int | None = Field(None, alias="CropSizeFixed")
    blacken_around_feature: int | None = Field(None, alias="BlackenAroundFeature")
    min_cell_size: CellSize | None = Field(None, alias="MinCellSize")
    max_cell_size: CellSize | None = Field(None, alias="MaxCellSize")
    supports_variable_tile_size: bool | None = Field(None, alias="SupportsVariableTileSize")
    model_format: str | None = Field(None, alias="ModelFormat")
    is_multispectral: bool | None = Field(None, alias="IsMultispectral")
    is_imagenet_normalization: bool | None = Field(None, alias="IsImageNetNormalization")
    normalization_stats: NormalizationStats | None = Field(None, alias="NormalizationStats")
    bands: list[str] | None = Field(None, alias="Bands")
    model_parameters: dict[str, Any] | None = Field(None, alias="ModelParameters")

    @field_validator("model_type")
    @classmethod
    def _canonical_model_type(cls, value: str | None) -> str | None:
        if value is None:
            return None
        folded = value.strip().replace(" ", "").lower()
        for known in MODEL_TYPES:
            if folded == known.lower():
                return known
        return _MODEL_TYPE_ALIASES.get(folded, value)

    @field_validator("model_file", "inference_function")
    @classmethod
    def _forward_slashes(cls, value: str | None) -> str | None:
        if value is None or _FUNCTIONS_PREFIX.match(value.strip()):
            return value
        return normalised_path(value)

    @field_validator("model_configuration")
    @classmethod
    def _configuration_paths(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if isinstance(value, dict):
            return {
                key: normalised_path(item)
                if key in ("Architecture", "Config") and isinstance(item, str)
                else item
                for key, item in value.items()
            }
        return value

    @property
    def configuration_name(self) -> str | None:
        """ModelConfiguration's name, in either of its forms."""
        if isinstance(self.model_configuration, dict):
            name = self.model_configuration.get("Name")
            return str(name) if name is not None else None
        return self.model_configuration

    @property
    def builtin_function(self) -> str | None:
        """File name of the built-in function that the definition asks for; None if it brings its own.

        ``[Functions]System\\DeepLearning\\...\\X.py`` names it; without an InferenceFunction the
        predefined framework and configuration, and then the model type, decide.
        """
        if self.inference_function:
            if _FUNCTIONS_PREFIX.match(self.inference_function.strip()):
                return PurePosixPath(normalised_path(self.inference_function)).name
            return None
        pair = ((self.framework or "").strip().lower(), (self.configuration_name or "").strip().lower())
        for (framework, configuration), file in PREDEFINED.items():
            if pair == (framework.lower(), configuration.lower()):
                return file
        return _BUILTIN_BY_TYPE.get(self.model_type or "") if all(pair) or self.is_plain_onnx else None

    @property
    def is_plain_onnx(self) -> bool:
        """Whether the weights are an ONNX file that no module of the package is there to run."""
        framework = (self.framework or "").strip().lower()
        if not (self.model_file or "").lower().endswith(".onnx"):
            return False
        return framework in ("onnx", "onnxruntime") or not self.configuration_name

    @property
    def extras(self) -> dict[str, Any]:
        """Keys of the file that this model does not know, as they were."""
        return dict(self.model_extra or {})

    @property
    def training_metrics(self) -> dict[str, Any]:
        """What a training of ours reached, and with what; empty for packages from elsewhere."""
        own = self.extras.get("Chipline")
        found = own.get("Metrics") if isinstance(own, dict) else None
        return found if isinstance(found, dict) else {}

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the file: keys that were given (null ones too), canonical spellings."""
        written = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for name, described in type(self).model_fields.items():
            # An unknown key spelled like an attribute ("bands") makes pydantic take the field for given.
            if name in self.extras and getattr(self, name) is None:
                written.pop(described.alias or name, None)
        return written

    def to_json(self) -> str:
        """The text of the ``.emd``: two-space indent, no NaN, ends with a newline.

        Raises:
            PackageError: a value is NaN or infinite, which JSON cannot say.
        """
        try:
            return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except ValueError as error:
            raise PackageError(
                f"The model definition cannot be written as JSON: {error}.",
                "Leave out numbers that are not finite.",
            ) from error


def read_definition(text: str) -> ModelDefinition:
    """The definition in ``text``.

    Raises:
        PackageError: not JSON, not an object, or fields of the wrong kind (all of them are named).
    """
    definition, problems = parse_definition(text)
    if definition is None or problems:
        raise PackageError(
            "The model definition cannot be used: " + "; ".join(problems),
            "Correct the .emd; docs/formats/emd-dlpk.md lists its keys.",
        )
    return definition


def parse_definition(text: str) -> tuple[ModelDefinition | None, list[str]]:
    """The definition and what is wrong with its fields; wrong fields are left out of the definition.

    None when the text holds no JSON object at all.
    """
    try:
        loaded = json.loads(_without_trailing_commas(text.lstrip("\ufeff")))
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        return None, [f"the .emd is not JSON ({error})"]
    if not isinstance(loaded, dict):
        return None, [f"the .emd holds a JSON {type(loaded).__name__}, not an object"]
    unusable = _unusable(loaded)
    if unusable:
        return None, [unusable]
    return _validated(loaded)


def _unusable(loaded: dict[str, Any]) -> str | None:
    """What JSON can say and no program can handle: endless nesting, and text that no file can hold."""
    level: list[Any] = [loaded]
    depth = 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            return f"the .emd nests more than {_MAX_DEPTH} levels"
        below: list[Any] = []
        for item in level:
            below += [*item.keys(), *item.values()] if isinstance(item, dict) else item
        if any(isinstance(item, str) and _HALF_PAIR.search(item) for item in below):
            return "the .emd holds text with half a surrogate pair, which is no character"
        level = [item for item in below if isinstance(item, dict | list)]
    return None


def _validated(loaded: Mapping[str, Any]) -> tuple[ModelDefinition, list[str]]:
    try:
        return ModelDefinition.model_validate(loaded), []
    except ValidationError as error:
        problems = []
        wrong = set()
        for item in error.errors():
            location = [str(part) for part in item["loc"]]
            wrong.add(location[0])
            problems.append(f"{'.'.join(location)}: {item['msg']} (found {_shortened(item['input'])})")
        kept = {key: value for key, value in loaded.items() if key not in wrong}
        return ModelDefinition.model_validate(kept), problems


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _without_trailing_commas(text: str) -> str:
    # A comma directly before a closing bracket, outside strings. Published samples have them.
    result: list[str] = []
    in_string = escaped = False
    for character in text:
        if in_string:
            result.append(character)
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
            continue
        if character == '"':
            in_string = True
        elif character in "]}":
            index = len(result) - 1
            while index >= 0 and result[index].isspace():
                index -= 1
            if index >= 0 and result[index] == ",":
                del result[index]
        result.append(character)
    return "".join(result)
