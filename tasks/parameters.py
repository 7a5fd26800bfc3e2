"""Parameters are the single truth of a tool.

One pydantic model per tool; the flow's flat signature and docstring are made from it, and so are the
form, the API schema, the reference in the docs and the provenance record.
"""

from __future__ import annotations

import copy
import inspect
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from tasks.errors import BadInputError

Model = TypeVar("Model", bound=BaseModel)


class ToolParameters(BaseModel):
    """Base of every tool's parameters: unknown names are refused, every field has a description.

    No field may use ``default_factory`` (the form would not show the default) or a discriminated union.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, use_enum_values=True)


class ModelArgument(BaseModel):
    """One argument of an inference function or a model, as name and value."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="argument name, as the package's function publishes it")
    value: str = Field(description="value as text, for example 0.5 or True")


def arguments_as_dict(arguments: list[ModelArgument]) -> dict[str, str]:
    """The arguments by name.

    Raises:
        BadInputError: a name is given twice.
    """
    result: dict[str, str] = {}
    for argument in arguments:
        if argument.name in result:
            raise BadInputError(
                f"The model argument {argument.name!r} is given twice.", "Give every argument once."
            )
        result[argument.name] = argument.value
    return result


def check_extent(extent: list[float] | None) -> None:
    """Refuse an extent that is no rectangle (xmin, ymin, xmax, ymax).

    Raises:
        ValueError: for a validator of the model to pass on.
    """
    if extent is None:
        return
    if len(extent) != 4:
        raise ValueError("extent takes four numbers: xmin, ymin, xmax, ymax")
    xmin, ymin, xmax, ymax = extent
    if not (xmin < xmax and ymin < ymax):
        raise ValueError("extent must have xmin below xmax and ymin below ymax")


def inherited(model: type[BaseModel], name: str) -> Any:
    """The field ``name`` of another tool's model, with its default, bounds and description.

    For a tool that hands a parameter on to another: the truth about it stays in one place.
    """
    return copy.deepcopy(model.model_fields[name])


def flat_signature(model: type[BaseModel]) -> inspect.Signature:
    """A keyword signature with one parameter per field; bounds and descriptions stay in the annotation."""
    required: list[inspect.Parameter] = []
    optional: list[inspect.Parameter] = []
    for name, field in model.model_fields.items():
        default = inspect.Parameter.empty if field.is_required() else field.default
        parameter = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=_annotation(field),
        )
        (required if field.is_required() else optional).append(parameter)
    return inspect.Signature(required + optional)


def _annotation(field: FieldInfo) -> Any:
    # The metadata (bounds, patterns) travels; the default does not, it is the parameter's own.
    return Annotated[(field.annotation, Field(description=field.description), *field.metadata)]


def flat_docstring(model: type[BaseModel], summary: str) -> str:
    """``summary`` followed by an ``Args:`` block, where the Prefect form takes its descriptions from."""
    lines = [inspect.cleandoc(summary), "", "Args:"]
    for name, field in model.model_fields.items():
        lines.append(f"    {name}: {field.description or ''}")
    return "\n".join(lines) + "\n"


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """The validated parameters.

    Raises:
        BadInputError: with every wrong field in one message, and the names that exist.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'parameters'}: {item['msg']}"
            for item in error.errors()
        )
        raise BadInputError(
            f"The parameters do not fit: {wrong}.",
            f"Use the parameters {', '.join(model.model_fields)}, with values that their descriptions allow.",
        ) from error
