"""The search: suggestions in their ranges, a journal for several writers, a study that outlives its flow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage

from tasks.errors import BadInputError, RunError
from tasks.settings import settings
from tasks.store import ObjectStore, current, iter_files, join, run_key
from tasks.train import search_record, study
from tasks.train.parameters_search import SearchDimension, SearchParameters
from tasks.train.plan import TrainPlan
from tasks.train.study import Search, StoreJournal, Training, rungs, suggest
from tasks.training_data.address import DataFolder

SPACE: list[dict[str, Any]] = [
    {"name": "learning_rate", "low": 1e-4, "high": 1e-1, "log": True},
    {"name": "batch_size", "low": 2, "high": 16, "step": 2},
    {"name": "width", "low": 64, "high": 256, "step": 64, "integer": True},
    {"name": "augmentation", "choices": ["DEFAULT", "NONE"]},
]


def parameters(**values: Any) -> SearchParameters:
    given = {
        "in_folder": ["chips"],
        "output_name": "trees",
        "model_type": "FPN",
        "monitor": "MIOU",
        "max_epochs": 10,
        "search_space": SPACE,
        "trials": 6,
        **values,
    }
    return SearchParameters.model_validate(given)


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A local store; trainings have a plan without data, and end where the test puts a record."""
    monkeypatch.setenv("CHIPLINE_ROOT", str(tmp_path / "root"))
    settings.cache_clear()
    ended: dict[str, Any] = {}

    def plan(_store: ObjectStore, given: Any) -> TrainPlan:
        key = run_key(given.model_dump(mode="json", exclude={"in_folder"}))
        return TrainPlan(
            folder_uri=str(tmp_path / "root" / "outputs" / "train" / key),
            run_key=key,
            name=given.output_name,
            parameters=given,
            inputs=[DataFolder(uri=str(tmp_path / "chips"), identity="data 1", name="chips")],
        )

    monkeypatch.setattr(study, "make_plan", plan)
    monkeypatch.setattr(study, "load_record", lambda _store, folder: ended.get(Path(folder).name))
    yield ended
    settings.cache_clear()


def end(records: dict[str, Any], training: Training, value: float | None) -> None:
    records[training.run_key] = SimpleNamespace(metrics={"miou": value})


@pytest.mark.parametrize("sampler", ["TPE", "RANDOM"])
def test_suggestions_lie_in_their_ranges_and_reach_the_training(sampler: str) -> None:
    given = parameters(sampler=sampler, model_arguments=[{"name": "width", "value": "32"}])
    found = optuna.create_study(sampler=study._sampler(given, 0))
    for _ in range(40):
        trial = found.ask()
        chosen = {dimension.name: suggest(trial, dimension) for dimension in given.search_space}
        found.tell(trial, chosen["learning_rate"])
        made = given.trial(chosen)
        assert 1e-4 <= (made.learning_rate or 0) <= 1e-1
        assert made.batch_size in range(2, 17, 2)
        assert made.augmentation in ("DEFAULT", "NONE")
        arguments = {item.name: item.value for item in made.model_arguments}
        assert arguments["width"] in ("64", "128", "192", "256")
        assert len(made.model_arguments) == 1
    assert len({frozen.params["augmentation"] for frozen in found.trials}) == 2


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({"name": "batch_size"}, "give low and high, or choices"),
        ({"name": "batch_size", "low": 1, "high": 4, "choices": ["2"]}, "give low and high, or choices"),
        ({"name": "batch_size", "low": 4, "high": 2}, "low must be below high"),
        ({"name": "batch_size", "low": 1.5, "high": 4}, "whole numbers"),
        ({"name": "learning_rate", "low": 0, "high": 0.1, "log": True}, "above 0"),
        ({"name": "learning_rate", "low": 0.1, "high": 7}, "less than or equal to 1"),
        ({"name": "backbone_model", "choices": ["RESNET18", "RESNET81"]}, "RESNET81"),
        ({"name": "seed", "low": 1, "high": 9}, "must be the same in all trials"),
        ({"name": "trials", "low": 1, "high": 9}, "must be the same in all trials"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(dimension: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters(search_space=[dimension])


def test_losses_of_two_kinds_are_not_compared() -> None:
    space = [{"name": "focal_loss", "choices": ["True", "False"]}]
    with pytest.raises(ValueError, match="cannot be compared by VALID_LOSS"):
        parameters(search_space=space, monitor="VALID_LOSS")
    parameters(search_space=space)
    with pytest.raises(ValueError, match="num_nodes must be 1"):
        parameters(num_nodes=2)
    with pytest.raises(ValueError, match="names focal_loss twice"):
        parameters(search_space=space * 2)


def test_an_argument_that_the_model_lacks_is_refused_before_the_first_training() -> None:
    with pytest.raises(BadInputError, match="widht"):
        Search(ObjectStore(), parameters(search_space=[{"name": "widht", "low": 1, "high": 2}]))


def test_an_argument_that_a_network_would_not_heed_is_not_searched() -> None:
    space = [{"name": "decoder", "choices": ["256,128,64,32,16", "96,64,48,32,16"]}]
    with pytest.raises(BadInputError, match="search_space: FPN has no use for the model argument decoder"):
        Search(ObjectStore(), parameters(search_space=space))


def test_tenths_of_a_training_by_epochs_or_by_time() -> None:
    curve = [(10.0, 1, 0.1), (20.0, 2, math.nan), (30.0, 4, 0.4), (40.0, 10, 0.9)]
    assert rungs(curve, 10, None) == {1: 0.1, 2: 0.4, 3: 0.4, 4: 0.4} | dict.fromkeys(range(5, 11), 0.9)
    # A time limit of 40 s, in which no epoch's number says how far it is.
    timed = rungs(curve, 10_000, 40)
    assert [timed[rung] for rung in range(1, 11)] == [0.1] * 2 + [0.4] * 5 + [0.9] * 3
    assert rungs([], 10, None) == {}
    # What was told of a tenth never changes when the curve grows.
    for length in range(len(curve)):
        told = rungs(curve[:length], 10, 60)
        assert {rung: value for rung, value in rungs(curve, 10, 60).items() if rung in told} == told


def test_two_writers_of_a_journal_lose_nothing(tmp_path: Path) -> None:
    first, second = (StoreJournal(ObjectStore(), str(tmp_path / "journal")) for _ in range(2))
    for number in range(5):
        for name, journal in (("a", first), ("b", second)):
            journal.append_logs([{"by": name, "number": number}])
    entries = list(first.read_logs(0))
    assert [entry["number"] for entry in entries if entry["by"] == "a"] == list(range(5))
    assert [entry["number"] for entry in entries if entry["by"] == "b"] == list(range(5))
    assert list(second.read_logs(7)) == entries[7:]


def test_a_study_in_the_store_is_optunas(tmp_path: Path) -> None:
    def storage() -> JournalStorage:
        return JournalStorage(StoreJournal(ObjectStore(), str(tmp_path / "journal")))

    made = optuna.create_study(storage=storage(), study_name="s")
    made.optimize(lambda trial: (trial.suggest_float("x", -1, 1) - 0.3) ** 2, n_trials=8)
    loaded = optuna.load_study(storage=storage(), study_name="s")
    assert [trial.params for trial in loaded.trials] == [trial.params for trial in made.trials]
    assert loaded.best_value == made.best_value


Records = dict[str, Any]


def test_a_search_whose_flow_was_killed_goes_on_as_if_undisturbed(records: Records) -> None:
    def score(training: Training) -> float:
        return int(training.run_key[:6], 16) / 16**6

    def whole(given: SearchParameters, *, killed_after: int | None) -> list[dict[str, Any]]:
        search = Search(ObjectStore(), given)
        assert search.running() == []
        for number in range(given.trials):
            if number == killed_after:
                begun = search.next()
                assert begun is not None
                search = Search(ObjectStore(), given)  # another flow, perhaps elsewhere
                (again,) = search.running()
                assert again == begun
                training: Training | None = again
            else:
                training = search.next()
            assert training is not None
            end(records, training, score(training))
            assert search.complete(training)
        assert search.next() is None
        return search.rows()

    # Another name is another search, with runs of its own, that chooses alike.
    assert Search(ObjectStore(), parameters()).key != Search(ObjectStore(), parameters(output_name="b")).key
    rows = [whole(parameters(output_name=name), killed_after=at) for name, at in (("a", None), ("a2", 3))]
    plain = [[{k: row[k] for k in ("trial", "state", *_names())} for row in part] for part in rows]
    assert plain[0][:4] == plain[1][:4]
    assert [row["state"] for row in rows[1]] == ["complete"] * 6


def _names() -> list[str]:
    return [str(dimension["name"]) for dimension in SPACE]


def test_what_falls_behind_the_median_is_given_up(records: Records) -> None:
    search = Search(ObjectStore(), parameters(trials=20))
    for value in (0.5, 0.6, 0.7, 0.8):
        training = search.next()
        assert training is not None
        assert not search.observe(training, [(1.0, epoch, value * epoch / 10) for epoch in range(1, 11)])
        end(records, training, value)
        assert search.complete(training)
    poor, fine = search.next(), search.next()
    assert poor is not None
    assert fine is not None
    assert not search.observe(poor, [(1.0, 1, 0.01)])  # too early to tell
    assert search.observe(poor, [(1.0, epoch, 0.01 * epoch) for epoch in range(1, 6)])
    assert not search.observe(fine, [(1.0, epoch, 0.08 * epoch) for epoch in range(1, 6)])
    search.prune(poor, "worse")
    assert not Search(ObjectStore(), parameters(trials=20)).complete(fine)
    states = [row["state"] for row in search.rows()]
    assert states == ["complete"] * 4 + ["pruned", "running"]
    assert search.rows()[4]["why"] == "worse"
    assert search.best[1] == 0.8


@pytest.mark.parametrize(("monitor", "best"), [("MIOU", 0.9), ("VALID_LOSS", 0.2)])
def test_the_best_is_published_with_its_parameters(records: Records, monitor: str, best: float) -> None:
    given = parameters(monitor=monitor, trials=3)
    search = Search(ObjectStore(), given)
    with pytest.raises(RunError, match="has come to its end"):
        search.best  # noqa: B018
    for value in (0.4, 0.9, 0.2):
        training = search.next()
        assert training is not None
        records[training.run_key] = SimpleNamespace(metrics={monitor.lower(): value})
        assert search.complete(training)
    assert search.best[1] == best
    folder = search_record.publish_search(search.store, search, {"flow_run": "r"})
    assert search_record.publish_search(search.store, search, {"flow_run": "s"}) == folder
    store = ObjectStore()
    assert current(store, study.KIND, "trees") == folder
    assert {item.path for item in iter_files(store, folder)} == {"trials.csv", "search.json"}
    content = json.loads(store.get(join(folder, "search.json")))
    winner = content["trials"][content["best_trial"]]
    assert winner["value"] == content["best_value"] == best
    assert content["best_parameters"]["learning_rate"] == winner["learning_rate"]
    # More trials of the same search go on where it ended.
    more = Search(store, parameters(monitor=monitor, trials=4))
    assert more.key == search.key
    assert more.next() is not None
    assert more.next() is None


def test_a_failure_does_not_end_a_search_but_nothing_but_failures_does(records: Records) -> None:
    search = Search(ObjectStore(), parameters())
    failed = [search.next() for _ in range(2)]
    for training in failed:
        assert training is not None
        search.fail(training, "out of memory")
    undefined = search.next()
    assert undefined is not None
    end(records, undefined, None)
    assert search.complete(undefined)
    with pytest.raises(RunError, match=r"first 3 trainings failed.*out of memory"):
        search.next()


def test_integers_are_told_from_the_training() -> None:
    assert SearchDimension(name="batch_size", low=1, high=4).is_integer
    assert SearchDimension(name="max_epochs", low=1, high=4).is_integer
    assert not SearchDimension(name="learning_rate", low=0.1, high=0.4).is_integer
    assert not SearchDimension(name="dropout", low=0, high=1).is_integer
    assert SearchDimension(name="width", low=32, high=64, integer=True).is_integer
