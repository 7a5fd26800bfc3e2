"""Applying the versions of a comparison to chips: planned once, computed by a worker, kept in the store.

What a version says about an evaluation set is stored under a key of its package, the set and the arguments:
the champion is applied to a set only once.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tasks.assess.chip_results import ChipResults, Processor, Progress, apply_to_chips
from tasks.assess.contest import KIND, Contest
from tasks.assess.parameters_compare import ComparisonParameters
from tasks.errors import DeviceError
from tasks.host import visible_gpus
from tasks.package.fetch import fetch_package
from tasks.parameters import ModelArgument, arguments_as_dict
from tasks.store import ObjectStore, join, output_folder, run_key
from tasks.training_data.address import DataFolder, find_folder, open_folder

_RESULTS = "chips.json"
_PLAN = "plan.json"
# Bumped by hand when the same package would say other things of the same chips.
SEMANTICS = 1


class ChipPlan(BaseModel):
    """What a worker needs to know to apply a version to the evaluation set.

    Attributes:
        folder_uri: where its results go.
        data: the evaluation set.
        package: URI.
        arguments: of the function, by name.
        processor_type: AUTO, CPU or GPU.
    """

    model_config = ConfigDict(frozen=True)

    folder_uri: str
    data: DataFolder
    package: str
    arguments: dict[str, str]
    processor_type: str


def plan_chips(
    store: ObjectStore,
    parameters: ComparisonParameters,
    contest: Contest,
    *,
    arguments: Sequence[ModelArgument],
    processor_type: str,
) -> dict[str, str]:
    """Put a plan for every version into the store; their URIs by role.

    Args:
        arguments: of the functions.
        processor_type: AUTO, CPU or GPU.
    """
    assert parameters.evaluation_data is not None
    data = find_folder(store, parameters.evaluation_data)
    given = arguments_as_dict(list(arguments))
    if contest.kind == "objects" and parameters.threshold is not None:
        given = {**given, "threshold": str(parameters.threshold)}
    uris = {}
    for role, version in contest.versions.items():
        key = run_key(
            {
                "semantics": SEMANTICS,
                "package": version.digest,
                "data": data.identity,
                "arguments": given,
                "processor": processor_type,
            }
        )
        plan = ChipPlan(
            folder_uri=output_folder(KIND, contest.model, key),
            data=data,
            package=version.package,
            arguments=given,
            processor_type=processor_type,
        )
        uris[role] = join(plan.folder_uri, _PLAN)
        store.put(uris[role], plan.model_dump_json(indent=1).encode(), content_type="application/json")
    return uris


def compute_chips(store: ObjectStore, plan_uri: str, *, progress: Progress | None = None) -> ChipResults:
    """Apply a version to the evaluation set, unless that has been done.

    Args:
        progress: called with (chips done, chips in all).

    Raises:
        DeviceError: a GPU is asked for and is not there.
        BadInputError, PackageError, HostError: the package cannot be applied to the chips.
    """
    if is_computed(store, plan_uri):
        return load_results(store, plan_uri)
    plan = ChipPlan.model_validate_json(store.get(plan_uri))
    found = apply_to_chips(
        fetch_package(plan.package, store),
        open_folder(store, plan.data),
        name=plan.data.name,
        processor=_processor(plan.processor_type),
        arguments=plan.arguments,
        progress=progress,
    )
    store.put(_results_uri(plan_uri), found.model_dump_json().encode(), content_type="application/json")
    return found


def is_computed(store: ObjectStore, plan_uri: str) -> bool:
    """Whether the results of a plan are in the store."""
    return store.exists(_results_uri(plan_uri))


def load_results(store: ObjectStore, plan_uri: str) -> ChipResults:
    """The results of a plan that was computed."""
    return ChipResults.model_validate_json(store.get(_results_uri(plan_uri)))


def _results_uri(plan_uri: str) -> str:
    return join(plan_uri.rsplit("/", 1)[0], _RESULTS)


def _processor(wanted: str) -> Processor:
    if wanted == "CPU":
        return "CPU"
    if visible_gpus():
        return "GPU"
    if wanted == "GPU":
        raise DeviceError(
            "processor_type is GPU, and there is no GPU that this worker may use.",
            "Take processor_type AUTO or CPU, or start the workers on a machine with a GPU.",
        )
    return "CPU"
