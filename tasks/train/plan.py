"""What a training is made from, settled before it starts: inputs, run key, output folder."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.errors import NotFoundError
from tasks.imagery.identity import unsigned
from tasks.parameters import arguments_as_dict
from tasks.store import ObjectStore, join, output_folder, run_key
from tasks.train.data_formats import check_format
from tasks.train.models.backbones import TIMM_PREFIX
from tasks.train.models.options import check_sizes, options_of
from tasks.train.origins import Origin, find_encoder, find_package
from tasks.train.parameters import TrainParameters
from tasks.train.recipes import TRANSFORMS, pairs_of_files
from tasks.training_data.address import DataFolder, find_folder

TOOL = "train_deep_learning_model"
KIND = f"outputs/{TOOL}"
PLAN = "plan.json"
RESULT = "result.json"
# Raised by hand when the same data and parameters give another model.
SEMANTICS = 4


class TrainPlan(BaseModel):
    """All that the worker needs, as JSON in the store."""

    model_config = ConfigDict(frozen=True)

    folder_uri: str
    run_key: str
    name: str
    parameters: TrainParameters
    inputs: list[DataFolder]
    validation: list[DataFolder] = []
    pretrained: Origin | None = None
    encoder: Origin | None = None

    @property
    def lineage(self) -> list[tuple[str, str]]:
        """Address and identity of all training data behind the weights: learnt from, chosen on, inherited."""
        own = [(unsigned(item.uri), item.identity) for item in (*self.inputs, *self.validation)]
        return list(dict.fromkeys([*own, *(self.pretrained.learnt if self.pretrained is not None else ())]))

    @property
    def known_data(self) -> list[str]:
        """Folders of which validation chips may come and that ``pretrained_model`` has learnt from."""
        if self.pretrained is None:
            return []
        learnt = {identity for _, identity in self.pretrained.learnt}
        return [item.uri for item in self.validation or self.inputs if item.identity in learnt]


class TrainRecord(BaseModel):
    """What the worker leaves: where the package lies and what the training reached.

    ``effort``, ``mlflow_run`` and ``started`` differ between equal trainings, all else is their outcome.
    ``tags``: of the package's version in the registry.
    """

    model_config = ConfigDict(frozen=True)

    package: str
    digest: str
    tags: dict[str, str] = {}
    metrics: dict[str, Any]
    effort: dict[str, Any]
    files: list[dict[str, Any]]
    mlflow_run: str
    mlflow_url: str | None
    started: str
    finished: str


def make_plan(store: ObjectStore, parameters: TrainParameters) -> TrainPlan:
    """Look at the inputs without reading a chip.

    Raises:
        NotFoundError, BadInputError, TrainingDataError: an input is missing or does not fit; an argument is
            unknown.
    """
    arguments = arguments_as_dict(parameters.model_arguments)
    options = options_of(parameters)
    if parameters.backbone_model.startswith(TIMM_PREFIX):
        from tasks.train.models.encoders import check_exists  # loads torch

        check_exists(parameters.backbone_model)
    if parameters.custom_model is not None:
        from tasks.train.models.custom import find_entry  # loads torch

        find_entry(parameters.custom_model)
    inputs = [find_folder(store, given) for given in parameters.in_folder]
    validation = [find_folder(store, given) for given in parameters.validation_folder]
    if parameters.augmentation == "FILE":
        steps = pairs_of_files([item.uri for item in inputs], lambda folder: _transforms(store, folder))
        # From here on they are the parameters' own: of the run key, and of what the worker does.
        parameters = parameters.model_copy(update={"augmentation_parameters": steps})
    for item in [*inputs, *validation]:
        if item.details:
            check_format(parameters, item.details["metadata_format"], item.uri)
            check_sizes(parameters, options, int(item.details["tile_size"]), int(item.details["chips"]))
    pretrained, encoder = find_package(store, parameters), find_encoder(store, parameters)
    # By what they name, not by their addresses; how often a checkpoint is written changes no outcome.
    named = {"in_folder", "validation_folder", "output_name", "pretrained_model", "encoder_weights"}
    decides = parameters.model_dump(mode="json", exclude={*named, "checkpoint_minutes"})
    decides["model_arguments"] = arguments
    key = run_key(
        {
            "tool": TOOL,
            "semantics": SEMANTICS,
            "parameters": decides,
            "inputs": [item.identity for item in inputs],
            "validation": [item.identity for item in validation],
            "start": [None if origin is None else origin.identity for origin in (pretrained, encoder)],
        }
    )
    return TrainPlan(
        folder_uri=output_folder(KIND, parameters.output_name, key),
        run_key=key,
        name=parameters.output_name,
        parameters=parameters,
        inputs=inputs,
        validation=validation,
        pretrained=pretrained,
        encoder=encoder,
    )


def save_plan(store: ObjectStore, plan: TrainPlan) -> str:
    """Put the plan beside the outputs and return its URI."""
    uri = join(plan.folder_uri, PLAN)
    store.put(uri, plan.model_dump_json(indent=1).encode(), content_type="application/json")
    return uri


def load_plan(store: ObjectStore, uri: str) -> TrainPlan:
    """The plan at ``uri``."""
    return TrainPlan.model_validate_json(store.get(uri))


def load_record(store: ObjectStore, folder_uri: str) -> TrainRecord | None:
    """What the worker has left; None while it has not finished."""
    try:
        return TrainRecord.model_validate_json(store.get(join(folder_uri, RESULT)))
    except NotFoundError:
        return None


def _transforms(store: ObjectStore, folder_uri: str) -> bytes | None:
    try:
        return store.get(join(folder_uri, TRANSFORMS))
    except NotFoundError:
        return None
