"""The search for hyper-parameters: an Optuna study whose journal lies in the object store.

The store is what all machines reach already: every entry of the journal is one object that is written
once (``If-None-Match``), so that entries have one order for whoever writes them, no file needs a lock, and a
search whose flow was killed goes on wherever it is started again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError

from tasks.errors import BadInputError, ChiplineError, NotFoundError, PreconditionFailedError, RunError
from tasks.store import ObjectStore, join, output_folder, run_key
from tasks.train.models.options import options_of
from tasks.train.parameters_search import SearchDimension, SearchParameters
from tasks.train.plan import PLAN, TrainPlan, load_record, make_plan, save_plan

KIND = "outputs/search_hyperparameters"
JOURNAL = "journal"
# Bumped by hand when the same search would choose other values.
SEMANTICS = 1

# A training is compared with others at these many points, by the share of its epochs or of its time.
RUNGS = 10
_STARTUP = 4  # trials before the first can be pruned by the median
_WARM_UP = 2  # rungs before a trial can be pruned
_FAILED_IN_A_ROW = 3

_SMALLER_IS_BETTER = frozenset({"VALID_LOSS"})
_PLAN_ATTR, _KEY_ATTR, _WHY_ATTR = "plan_uri", "run_key", "why"


class StoreJournal(BaseJournalBackend):
    """Optuna's journal as numbered objects in a folder of the store."""

    def __init__(self, store: ObjectStore, folder_uri: str) -> None:
        self._store = store
        self._folder = folder_uri
        self._next = 0

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The entries from a number on."""
        number = log_number_from
        while True:
            try:
                entry: dict[str, Any] = json.loads(self._store.get(self._uri(number)))
            except NotFoundError:
                break
            yield entry
            number += 1
        self._next = max(self._next, number)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries behind the last one; a number that another writer took is passed over."""
        for entry in logs:
            data = json.dumps(entry).encode()
            while True:
                uri, self._next = self._uri(self._next), self._next + 1
                try:
                    self._store.put(uri, data, if_none_match=True, content_type="application/json")
                except PreconditionFailedError:
                    continue
                break

    def _uri(self, number: int) -> str:
        return join(self._folder, f"{number:08d}.json")


@dataclass(frozen=True)
class Training:
    """One trial's training.

    Attributes:
        number: of the trial, from 0.
        plan_uri: of the training's plan in the store.
        run_key: of the training; its MLflow run has it as a tag.
    """

    number: int
    plan_uri: str
    run_key: str


class Search:
    """A study and the trainings that it asks for.

    Args:
        store: where training data, plans and the journal lie.
        parameters: of the search; names of training data stand for what they name now.
    """

    def __init__(self, store: ObjectStore, parameters: SearchParameters) -> None:
        base = make_plan(store, parameters.trial({}))
        _check_arguments(parameters)
        self.parameters = parameters.model_copy(
            update={
                "in_folder": [item.uri for item in base.inputs],
                "validation_folder": [item.uri for item in base.validation],
            }
        )
        space = [dimension.model_dump() for dimension in parameters.search_space]
        self.key = run_key(
            {
                "semantics": SEMANTICS,
                # Runs are shared by key: searches of two names have outputs of their own.
                "name": parameters.output_name,
                "training": base.run_key,
                "space": space,
                "sampler": parameters.sampler,
                "pruning": parameters.pruning,
            }
        )
        self.folder_uri = output_folder(KIND, parameters.output_name, self.key)
        self.store = store
        self._trials: dict[int, Trial] = {}
        self.smaller_is_better = parameters.monitor in _SMALLER_IS_BETTER
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name=self.key,
            storage=JournalStorage(StoreJournal(store, join(self.folder_uri, JOURNAL))),
            pruner=_pruner(parameters),
            direction="minimize" if self.smaller_is_better else "maximize",
            load_if_exists=True,
        )

    def running(self) -> list[Training]:
        """The trainings that an earlier flow had begun; a trial without a plan never began."""
        found = []
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _PLAN_ATTR in frozen.user_attrs:
                self._trials[frozen.number] = Trial(self.study, frozen._trial_id)
                found.append(_training(frozen))
            else:
                self.study.tell(frozen.number, state=TrialState.FAIL)
        return found

    def next(self) -> Training | None:
        """The next training; None when all trials were begun.

        Raises:
            RunError: nothing but failures.
        """
        while True:
            trials = self.study.get_trials(deepcopy=False)
            _refuse_only_failures(trials)
            if len(trials) >= self.parameters.trials:
                return None
            # Seeded by what went before, so that a resumed search chooses as an undisturbed one.
            self.study.sampler = _sampler(self.parameters, len(trials))
            trial = self.study.ask()
            chosen = {d.name: suggest(trial, d) for d in self.parameters.search_space}
            try:
                plan = make_plan(self.store, self.parameters.trial(chosen))
            except (ChiplineError, ValidationError) as error:
                trial.set_user_attr(_WHY_ATTR, str(error))
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            uri = self._save(plan)
            trial.set_user_attr(_KEY_ATTR, plan.run_key)
            trial.set_user_attr(_PLAN_ATTR, uri)
            self._trials[trial.number] = trial
            return Training(trial.number, uri, plan.run_key)

    def _save(self, plan: TrainPlan) -> str:
        # The plan of a training that was made before stays as it is.
        if load_record(self.store, plan.folder_uri) is not None:
            return join(plan.folder_uri, PLAN)
        return save_plan(self.store, plan)

    def observe(self, training: Training, curve: Sequence[tuple[float, int, float]]) -> bool:
        """Take note of a training's curve; whether it should be given up.

        Args:
            curve: seconds since its start, epoch, monitored value.
        """
        trial = self._trials[training.number]
        if self._ended(trial):
            return False
        limit = self.parameters.time_limit_minutes
        told = trial.storage.get_trial(trial._trial_id).intermediate_values
        new = {
            rung: value
            for rung, value in rungs(
                curve, self.parameters.max_epochs, limit * 60 if limit is not None else None
            ).items()
            if rung not in told
        }
        for rung, value in sorted(new.items()):
            trial.report(value, rung)
            if trial.should_prune():
                return True
        return False

    def complete(self, training: Training) -> bool:
        """Keep the value of a training that ended; False where it left no result."""
        record = load_record(self.store, training.plan_uri.rsplit("/", 1)[0])
        if record is None:
            return False
        value = record.metrics.get(self.parameters.monitor.lower())
        if value is None or not math.isfinite(value):
            self.fail(training, f"{self.parameters.monitor} is not defined on its validation chips")
        else:
            self._end(training, value=float(value))
        return True

    def prune(self, training: Training, why: str) -> None:
        """A training that is given up."""
        self._end(training, state=TrialState.PRUNED, why=why)

    def fail(self, training: Training, why: str) -> None:
        """A training that failed on its own account."""
        self._end(training, state=TrialState.FAIL, why=why)

    def _end(
        self,
        training: Training,
        *,
        value: float | None = None,
        state: TrialState | None = None,
        why: str = "",
    ) -> None:
        """The first word counts where two flows watch one search."""
        trial = self._trials.pop(training.number)
        if why and not self._ended(trial):
            trial.set_user_attr(_WHY_ATTR, why)
        self.study.tell(trial, value, state=state, skip_if_finished=True)

    def _ended(self, trial: Trial) -> bool:
        state: TrialState = trial.storage.get_trial(trial._trial_id).state
        return state.is_finished()

    @property
    def best(self) -> tuple[Training, float]:
        """The training with the best value.

        Raises:
            RunError: none has ended.
        """
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not done:
            raise RunError(
                "No training of the search has come to its end.",
                "Give it more time (search_minutes) or shorter trainings (max_epochs, time_limit_minutes).",
            )
        sign = 1 if self.smaller_is_better else -1
        found = min(done, key=lambda frozen: (sign * float(frozen.value or 0.0), frozen.number))
        return _training(found), float(found.value or 0.0)

    def rows(self) -> list[dict[str, Any]]:
        """One row per trial: number, state, value, the last rung that was looked at, values, reason."""
        return [
            {
                "trial": frozen.number,
                "state": frozen.state.name.lower(),
                "value": frozen.value if frozen.state == TrialState.COMPLETE else None,
                "tenths": frozen.last_step,
                **frozen.params,
                "why": frozen.user_attrs.get(_WHY_ATTR, ""),
                "run_key": frozen.user_attrs.get(_KEY_ATTR, ""),
            }
            for frozen in self.study.get_trials(deepcopy=False)
        ]


def suggest(trial: Trial, dimension: SearchDimension) -> Any:
    """A value of one dimension; the study remembers it."""
    name, low, high = dimension.name, dimension.low, dimension.high
    if low is None or high is None:
        return trial.suggest_categorical(name, dimension.choices)
    if dimension.is_integer:
        step = int(dimension.step or 1)
        return trial.suggest_int(name, int(low), int(high), step=step, log=dimension.log)
    return trial.suggest_float(name, low, high, step=dimension.step, log=dimension.log)


def rungs(
    curve: Sequence[tuple[float, int, float]], max_epochs: int, limit_s: float | None
) -> dict[int, float]:
    """The value of a training at each tenth of it that is over: the first one at or after that point.

    How far it is follows from its epochs and, with a time limit, from its seconds: whichever says more.

    Args:
        curve: seconds since its start, epoch (from 1), value.
        max_epochs: of the training.
        limit_s: its time limit.
    """
    found: dict[int, float] = {}
    for seconds, epoch, value in curve:
        if not math.isfinite(value):
            continue
        share = max(epoch / max_epochs, seconds / limit_s if limit_s else 0.0)
        for rung in range(1, min(RUNGS, int(share * RUNGS + 1e-9)) + 1):
            found.setdefault(rung, value)
    return found


def _training(frozen: FrozenTrial) -> Training:
    return Training(frozen.number, frozen.user_attrs[_PLAN_ATTR], frozen.user_attrs[_KEY_ATTR])


def _check_arguments(parameters: SearchParameters) -> None:
    """Refuse model arguments that the model does not have, before the first training."""
    for dimension in parameters.search_space:
        for value in dimension.ends():
            try:
                options_of(parameters.trial({dimension.name: value}))
            except BadInputError as error:
                raise BadInputError(f"search_space: {error.problem}", error.remedy) from error


def _refuse_only_failures(trials: Sequence[FrozenTrial]) -> None:
    failed = [frozen for frozen in trials if frozen.state == TrialState.FAIL]
    if len(failed) >= _FAILED_IN_A_ROW and len(failed) == len(trials):
        reasons = sorted({str(frozen.user_attrs.get(_WHY_ATTR, "no reason given")) for frozen in failed})
        raise RunError(
            f"The first {len(failed)} trainings failed: {'; '.join(reasons)}",
            "Mend the parameters or the search space; a changed one is another search.",
        )


def _sampler(parameters: SearchParameters, trials: int) -> optuna.samplers.BaseSampler:
    seed = parameters.seed + trials
    if parameters.sampler == "RANDOM":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _pruner(parameters: SearchParameters) -> optuna.pruners.BasePruner:
    if parameters.pruning == "HYPERBAND":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=RUNGS, reduction_factor=3)
    if parameters.pruning == "MEDIAN":
        return optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=_WARM_UP)
    return optuna.pruners.NopPruner()
