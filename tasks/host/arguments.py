"""The arguments of an inference function: what it publishes, what the person gave, what it receives.

Facts: docs/formats/python-raster-function.md, "Parameters". Values reach the function as strings or
numbers, never as Python bools: functions call ``int(...)``, ``.lower()`` or ``eval`` on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.errors import BadInputError

_RASTER_TYPES = ("raster", "rasters")
_HIDDEN = ("model", "device")
_NUMBER_TYPES = ("numeric", "gplong", "gpdouble")

Scalar = str | int | float


@dataclass(frozen=True)
class FunctionParameter:
    """One argument that a person may set.

    Attributes:
        name: as the function knows it.
        data_type: as the function states it (numeric, string, boolean, GPLong, GPString …).
        default: value when none is given; a string or a number.
        required: whether the function says that it needs one.
        display_name: label for a form.
        description: one line for a form.
        domain: allowed values, or (lowest, highest) of a number.
    """

    name: str
    data_type: str
    default: Scalar
    required: bool
    display_name: str
    description: str
    domain: tuple[Scalar, ...]


def read_parameters(described: Sequence[Mapping[str, Any]]) -> list[FunctionParameter]:
    """The arguments among what ``getParameterInfo`` gave: no rasters, no model, no device."""
    result = []
    for entry in described:
        name = str(entry.get("name", ""))
        data_type = str(entry.get("dataType", "string"))
        if data_type.lower() in _RASTER_TYPES or name.lower() in _HIDDEN:
            continue
        domain = entry.get("domain")
        result.append(
            FunctionParameter(
                name=name,
                data_type=data_type,
                default=_scalar(entry.get("value", "")),
                required=_truth(entry.get("required", False)),
                display_name=str(entry.get("displayName") or name),
                description=str(entry.get("description") or ""),
                domain=tuple(_scalar(item) for item in domain) if isinstance(domain, (list, tuple)) else (),
            )
        )
    return result


def scalars_for(parameters: Sequence[FunctionParameter], given: Mapping[str, str]) -> dict[str, Scalar]:
    """All arguments by name: the defaults with what was given merged over them.

    Raises:
        BadInputError: a name that does not exist, a value outside the domain or of the wrong kind.
    """
    by_name = {parameter.name: parameter for parameter in parameters}
    unknown = [name for name in given if name not in by_name]
    if unknown:
        raise BadInputError(
            f"The package's function has no argument {', '.join(repr(name) for name in unknown)}.",
            f"Use {', '.join(by_name)}." if by_name else "It takes no arguments: give none.",
        )
    scalars = {}
    for name, parameter in by_name.items():
        value = _checked(parameter, given[name]) if name in given else parameter.default
        if parameter.required and value == "":
            raise BadInputError(
                f"The package's function needs the argument {name!r}, and it has no default.",
                f"Give {name!r} among the model arguments.",
            )
        scalars[name] = value
    return scalars


def _checked(parameter: FunctionParameter, given: str) -> Scalar:
    value = _scalar(given)
    kind = parameter.data_type.lower()
    numeric = kind in _NUMBER_TYPES
    if numeric:
        number = _number(value)
        if number is None or (kind == "gplong" and number != int(number)):
            wanted = "a whole number" if kind == "gplong" else "a number"
            raise BadInputError(
                f"The argument {parameter.name!r} is {given!r}, not {wanted}.",
                f"Give {wanted}; the default is {parameter.default}.",
            )
        # Keep a number given as text as text: the function parses it as it does ArcGIS's.
        if parameter.domain:
            _check_domain(parameter, number)
        return value
    if kind == "boolean":
        if str(value).lower() not in ("true", "false", "1", "0"):
            raise BadInputError(
                f"The argument {parameter.name!r} is {given!r}, not a boolean.", "Give True or False."
            )
        return "True" if str(value).lower() in ("true", "1") else "False"
    if parameter.domain:
        for allowed in parameter.domain:
            if str(allowed).lower() == str(value).lower():
                return allowed
        raise _outside(parameter, given, f"one of {', '.join(map(str, parameter.domain))}")
    return value


def _check_domain(parameter: FunctionParameter, number: float) -> None:
    numbers = [_number(item) for item in parameter.domain]
    known = [item for item in numbers if item is not None]
    # Two numbers are a range; any other count is a list of allowed values.
    if len(known) == 2:
        if not min(known) <= number <= max(known):
            raise _outside(parameter, number, f"from {min(known):g} to {max(known):g}")
    elif known and number not in known:
        raise _outside(parameter, number, f"one of {', '.join(f'{item:g}' for item in known)}")


def _outside(parameter: FunctionParameter, given: object, allowed: str) -> BadInputError:
    return BadInputError(
        f"The argument {parameter.name!r} is {given!r}, which its function does not allow.",
        f"Give {allowed}.",
    )


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, (int, float, str)):
        return value
    return "" if value is None else str(value)


def _truth(value: Any) -> bool:
    return str(value).lower() in ("true", "1")


def _number(value: Scalar) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
