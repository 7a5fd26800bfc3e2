"""What a plan says about finishing: what becomes of the shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.errors import BadInputError
from tasks.infer.describe import FunctionDescription
from tasks.infer.parameters import (
    ClassifyObjectsParameters,
    ClassifyPixelsParameters,
    DetectChangeParameters,
    InferenceTool,
)
from tasks.infer.parameters_outputs import LayerParameters
from tasks.infer.planned import output_name
from tasks.infer.series import series_finishing


def finishing_of(parameters: InferenceTool) -> dict[str, Any]:
    """The parameters that decide what finish makes of the shards; they are part of the run key."""
    return {**_of_tool(parameters), **series_finishing(parameters)}


def _of_tool(parameters: InferenceTool) -> dict[str, Any]:
    if isinstance(parameters, (ClassifyPixelsParameters, DetectChangeParameters)):
        polygons = {"polygons": _layer(parameters)} if parameters.output_polygons else {}
        raw = isinstance(parameters, ClassifyPixelsParameters) and parameters.use_pixelspace
        space = {"pixelspace": {"out_sr": parameters.out_sr}} if raw else {}
        return {"format": "COG", "name": output_name(parameters.output), **polygons, **space}
    if isinstance(parameters, ClassifyObjectsParameters):
        formats = {"output_formats": parameters.output_formats}
        # Of images alone the layer is made in it; features come in their own.
        moved = parameters.out_sr is not None and parameters.in_features is not None
        return {
            "format": parameters.tool,
            "name": output_name(parameters.output),
            "layer": formats,
            **({"out_sr": parameters.out_sr} if moved else {}),
        }
    suppression = None
    if parameters.run_nms:
        suppression = {
            "confidence_score_field": parameters.confidence_score_field,
            "class_value_field": parameters.class_value_field,
            "max_overlap_ratio": parameters.max_overlap_ratio,
        }
    name = output_name(parameters.output_objects)
    return {
        "format": parameters.tool,
        "name": name,
        "suppression": suppression,
        "out_sr": parameters.out_sr,
        "layer": _layer(parameters),
    }


def _layer(parameters: LayerParameters) -> dict[str, Any]:
    """What a layer holds and how it is written."""
    return parameters.model_dump(mode="json", include=set(LayerParameters.model_fields))


def check_fields(suppression: Mapping[str, Any] | None, description: FunctionDescription) -> None:
    """Refuse fields for Non Maximum Suppression that a package's objects will not have.

    Raises:
        BadInputError: naming those that they have.
    """
    if suppression is None:
        return
    own = ["Class", "Classvalue", "Confidence"]
    known = list(dict.fromkeys([*own, *(name for name in description.fields if name != "Shape")]))
    for parameter in ("confidence_score_field", "class_value_field"):
        if suppression[parameter].lower() not in [name.lower() for name in known]:
            raise BadInputError(
                f"The package's objects have no field {suppression[parameter]!r} ({parameter}).",
                f"Use one of {', '.join(known)}.",
            )
