"""One decorator makes a Prefect flow out of a tool's parameter model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import Flow

from tasks.parameters import ToolParameters, flat_docstring, flat_signature, validated

Parameters = TypeVar("Parameters", bound=ToolParameters)
Result = TypeVar("Result")


class ToolFlow(Flow[..., Any]):
    """A flow whose parameters are judged by its model: one message names every wrong field.

    Prefect accepts an unknown top-level parameter when a run is created and fails later with a
    message about the function's signature; here the message names the parameters that exist.
    """

    def __init__(self, entry: Callable[..., Any], model: type[ToolParameters], **options: Any) -> None:
        self.model = model
        super().__init__(entry, **options)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The validated values, by field, as the flat signature takes them."""
        checked = validated(self.model, parameters)
        return {name: getattr(checked, name) for name in self.model.model_fields}


def tool(model: type[Parameters], *, run_name: str) -> Callable[[Callable[[Parameters], Result]], ToolFlow]:
    """Make a flow with the model's flat signature and docstring from ``function(parameters)``.

    The bounds of the model are enforced when a run is created (the API schema) and again when it
    starts.

    Args:
        model: the tool's parameters.
        run_name: template of the run's name over the parameters, such as ``"export {output_location}"``,
            so that a list of runs reads well.
    """

    def wrap(function: Callable[[Parameters], Result]) -> ToolFlow:
        def entry(**values: Any) -> Result:
            return function(validated(model, values))

        signature = flat_signature(model)
        entry.__name__ = entry.__qualname__ = function.__name__
        entry.__module__ = function.__module__
        entry.__signature__ = signature  # type: ignore[attr-defined]
        entry.__annotations__ = {name: item.annotation for name, item in signature.parameters.items()}
        entry.__doc__ = flat_docstring(model, function.__doc__ or function.__name__)
        return ToolFlow(entry, model, name=function.__name__, flow_run_name=run_name)

    return wrap
