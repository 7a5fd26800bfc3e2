"""One decorator makes a Prefect flow out of a tool's parameter model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Failed

from tasks.errors import BadInputError
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


def explain_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001
    """Hook: a run that crashed over an unknown parameter fails with the message that names the known ones.

    Prefect compares a run's parameters with the signature before it asks the flow, and lets the process
    die where they differ; the reason would stand in the log only.
    """
    unknown = set(flow_run.parameters) - set(flow.parameters.properties)
    if not (unknown and isinstance(flow, ToolFlow)):
        return
    try:
        flow.validate_parameters(flow_run.parameters)
    except BadInputError as error:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Failed(message=str(error)), force=True)


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
        return ToolFlow(
            entry, model, name=function.__name__, flow_run_name=run_name, on_crashed=[explain_crash]
        )

    return wrap
