"""Parameters of ``search_hyperparameters``: those of a training, and what is tried in their place."""

from __future__ import annotations

import typing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.train.parameters import TrainParameters

# What these decide must be one for all trials: the data, the split, the name, what is compared.
_FIXED = frozenset(
    {
        "in_folder",
        "output_name",
        "validation_folder",
        "validation_percent",
        "seed",
        "monitor",
        "time_limit_minutes",
        "devices",
        "num_nodes",
    }
)
# These change what the loss is, so that VALID_LOSS of two trials could not be compared.
_DECIDE_THE_LOSS = frozenset(
    {
        "model_type",
        "class_balancing",
        "focal_loss",
        "dice_loss",
        "ignore_classes",
        "label_smoothing",
        "mixup",
        "mtl_model",
        "gaussian_thresh",
        "orient_bin_size",
        "orient_theta",
        "direction_weight",
        "connectivity_weight",
    }
)


class SearchDimension(BaseModel):
    """One parameter to search: a range of numbers, or choices."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        min_length=1,
        description="a parameter of the training, such as learning_rate or backbone_model, or else a model "
        "argument, such as dropout",
    )
    low: float | None = Field(default=None, description="lowest number")
    high: float | None = Field(default=None, description="highest number")
    log: bool = Field(default=False, description="numbers spread evenly over orders of magnitude")
    step: float | None = Field(default=None, gt=0, description="distance between numbers; empty: any")
    integer: bool = Field(
        default=False, description="whole numbers only (parameters that are whole numbers need no word)"
    )
    choices: list[str] = Field(default=[], description="values to choose from, in place of low and high")

    @property
    def is_integer(self) -> bool:
        """Whether only whole numbers are drawn."""
        field = TrainParameters.model_fields.get(self.name)
        if field is None:
            return self.integer
        kinds = {field.annotation, *typing.get_args(field.annotation)}
        return int in kinds and float not in kinds

    @model_validator(mode="after")
    def _range_or_choices(self) -> SearchDimension:
        ranged = self.low is not None and self.high is not None
        if bool(self.choices) == ranged or (self.choices and (self.low, self.high) != (None, None)):
            raise ValueError(f"{self.name}: give low and high, or choices")
        if self.low is None or self.high is None:
            if len(set(self.choices)) != len(self.choices):
                raise ValueError(f"{self.name}: a choice is given twice")
            return self
        if not self.low < self.high:
            raise ValueError(f"{self.name}: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.name}: with log, low must be above 0")
        if self.log and self.step is not None:
            raise ValueError(f"{self.name}: log and step exclude each other")
        whole = [value for value in (self.low, self.high, self.step) if value is not None]
        if self.is_integer and any(not value.is_integer() for value in whole):
            raise ValueError(f"{self.name}: takes whole numbers, for low, high and step too")
        return self

    def ends(self) -> list[Any]:
        """The extreme values, or all choices."""
        if self.low is None or self.high is None:
            return list(self.choices)
        return [int(end) if self.is_integer else end for end in (self.low, self.high)]


class SearchParameters(TrainParameters):
    """Parameters of ``search_hyperparameters``."""

    search_space: list[SearchDimension] = Field(
        min_length=1,
        description="What to search, each with its range or choices; all other parameters are the same in "
        "every trial",
    )
    trials: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="Number of trainings, those that are given up early included. The same search with more "
        "trials goes on where it ended",
    )
    trials_at_once: int = Field(
        default=2, ge=1, le=64, description="Trainings that run at the same time, as far as there are workers"
    )
    search_minutes: float | None = Field(
        default=None,
        gt=0,
        le=100_000,
        description="Time for the whole search; trainings that run when it is over are given up. Empty: the "
        "number of trials decides",
    )
    sampler: Literal["TPE", "RANDOM"] = Field(
        default="TPE",
        description="How values are chosen: TPE learns from earlier trials which ones are promising; RANDOM "
        "does not",
    )
    pruning: Literal["MEDIAN", "HYPERBAND", "NONE"] = Field(
        default="MEDIAN",
        description="Which trainings are given up early, by the monitored value at tenths of the training: "
        "those below the median of the others, those that lose a bracket of Hyperband, or none",
    )

    @model_validator(mode="after")
    def _the_space_fits_the_training(self) -> SearchParameters:
        if self.num_nodes > 1:
            raise ValueError("a trial trains on one node: num_nodes must be 1")
        names = [dimension.name for dimension in self.search_space]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"search_space names {name} twice")
            if name in _FIXED or name in _OWN:
                raise ValueError(f"{name} must be the same in all trials, so it cannot be searched")
            if self.monitor == "VALID_LOSS" and name in _DECIDE_THE_LOSS:
                raise ValueError(
                    f"{name} changes what the loss is, so trials cannot be compared by VALID_LOSS; choose "
                    "another monitor"
                )
        for dimension in self.search_space:
            for value in dimension.ends():
                try:
                    self.trial({dimension.name: value})
                except ValidationError as error:
                    told = "; ".join(str(item["msg"]) for item in error.errors())
                    raise ValueError(f"search_space: {dimension.name} = {value}: {told}") from error
        return self

    def trial(self, chosen: dict[str, Any]) -> TrainParameters:
        """The parameters of one training.

        Args:
            chosen: value by name of the search space; names that are no parameters are model arguments.

        Raises:
            ValidationError: a value that the training does not take.
        """
        values = self.model_dump(exclude=_OWN)
        arguments = {item["name"]: item for item in values["model_arguments"]}
        for name, value in chosen.items():
            if name in TrainParameters.model_fields:
                values[name] = value
            else:
                arguments[name] = {"name": name, "value": str(value)}
        values["model_arguments"] = list(arguments.values())
        return TrainParameters.model_validate(values)


_OWN = set(SearchParameters.model_fields) - set(TrainParameters.model_fields)
