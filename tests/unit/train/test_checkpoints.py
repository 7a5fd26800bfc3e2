"""A killed training goes on from its last checkpoint and ends as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.store import ObjectStore
from tasks.tracking import Tracker
from tasks.train.checkpoints import StoredCheckpoints
from tasks.train.result import Trained
from tasks.train.sampling import DrawSampler
from tasks.train.train import fit
from tasks.training_data import TrainingData
from tests.unit.train.test_zoo import parameters

MakeData = Callable[..., TrainingData]


class PowerFailure(Exception):
    """The worker is gone."""


class Folder:
    """Checkpoints in a folder; ``killed_after``: the power fails once so many are written."""

    def __init__(self, folder: Path, killed_after: int = 99) -> None:
        self.file = folder / "kept.ckpt"
        self.left = killed_after

    def newest(self) -> Path | None:
        return self.file if self.file.exists() else None

    def keep(self, path: Path) -> None:
        shutil.copy(path, self.file)
        self.left -= 1
        if self.left == 0:
            raise PowerFailure


def train(
    data: TrainingData,
    work: Path,
    kept: Folder | None,
    apart: Sequence[TrainingData] = (),
    **values: Any,
) -> Trained:
    torch.set_num_threads(1)
    # Its decoder drops out.
    values = {"max_epochs": 4, "batch_size": 2, "checkpoint_minutes": 0, **values}
    given = parameters("PSPNET", {"width": "32"}, **values)
    return fit(
        given,
        [data],
        work,
        tracker=Tracker.disabled(),
        progress=lambda *_: None,
        apart=apart,
        checkpoints=kept,
    )


@pytest.fixture(scope="module")
def whole(
    make_module_data: MakeData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingData, Trained]:
    """A training that nothing disturbed, and its data."""
    data = make_module_data(metadata_format="Classified_Tiles", size=64, count=10)
    return data, train(data, tmp_path_factory.mktemp("whole"), None)


def assert_same(resumed: Trained, whole: Trained) -> None:
    assert resumed.metrics == whole.metrics
    assert resumed.history == whole.history
    ours, theirs = resumed.module.network.state_dict(), whole.module.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# A checkpoint is written before each step but an epoch's first, and at the end of an epoch.
@pytest.mark.parametrize(
    "killed_after", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 3, 5, 6, 9))]
)
def test_a_training_killed_at_any_step_ends_with_the_same_weights(
    whole: tuple[TrainingData, Trained], tmp_path: Path, killed_after: int
) -> None:
    data, undisturbed = whole
    with pytest.raises(PowerFailure):
        train(data, tmp_path, Folder(tmp_path, killed_after=killed_after))
    resumed = train(data, tmp_path, Folder(tmp_path))
    assert_same(resumed, undisturbed)
    assert len(undisturbed.history) == 4


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_gradients_that_add_up_are_in_no_checkpoint(
    whole: tuple[TrainingData, Trained], tmp_path: Path, killed_after: int
) -> None:
    data, _ = whole
    values: dict[str, Any] = {"accumulate_batches": 2, "max_epochs": 2}
    undisturbed = train(data, tmp_path, None, **values)
    with pytest.raises(PowerFailure):
        train(data, tmp_path, Folder(tmp_path, killed_after=killed_after), **values)
    assert_same(train(data, tmp_path, Folder(tmp_path), **values), undisturbed)


def test_what_a_training_found_for_itself_is_not_sought_again(
    whole: tuple[TrainingData, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = whole
    values: dict[str, Any] = {"learning_rate": None, "batch_size": None, "max_epochs": 2}
    monkeypatch.setattr("tasks.train.train.find_learning_rate", lambda *_: 0.00123)
    monkeypatch.setattr("tasks.train.train.find_batch_size", lambda *_: 3)
    with pytest.raises(PowerFailure):
        train(data, tmp_path, Folder(tmp_path, killed_after=1), **values)

    def never(*_: Any) -> None:
        raise AssertionError("sought again")

    monkeypatch.setattr("tasks.train.train.find_learning_rate", never)
    monkeypatch.setattr("tasks.train.train.find_batch_size", never)
    resumed = train(data, tmp_path, Folder(tmp_path), **values)
    assert (resumed.metrics["learning_rate"], resumed.metrics["batch_size"]) == (0.00123, 3)


def test_the_order_of_the_chips_goes_on_where_it_stood() -> None:
    undisturbed = DrawSampler(7, seed=3)
    passes = [list(undisturbed) for _ in range(3)]
    stopped = DrawSampler(7, seed=3)
    list(stopped)
    iterator = iter(stopped)
    for _ in range(5):
        next(iterator)
    resumed = DrawSampler(7, seed=99)
    resumed.go_to(stopped.position(5))
    assert [list(resumed), list(resumed)] == [passes[1][5:], passes[2]]
    at_the_end = DrawSampler(7, seed=99)
    at_the_end.go_to(stopped.position(None))
    assert list(at_the_end) == passes[2]


def test_processes_share_one_order() -> None:
    every = list(DrawSampler(11, seed=3))
    shares = [list(DrawSampler(11, seed=3, rank=rank, world=2)) for rank in range(2)]
    assert [len(share) for share in shares] == [5, 5]
    assert [draw for pair in zip(*shares, strict=True) for draw in pair] == every[:10]


def test_checkpoints_lie_beside_the_plan(tmp_path: Path) -> None:
    kept = StoredCheckpoints(ObjectStore(), str(tmp_path / "outputs"), tmp_path)
    assert kept.newest() is None
    assert kept.run_id == ""
    (tmp_path / "x").write_bytes(b"weights")
    kept.keep(tmp_path / "x")
    kept.note_run("abc")
    newest = kept.newest()
    assert newest is not None
    assert newest.read_bytes() == b"weights"
    assert kept.run_id == "abc"
    kept.clear()
    assert kept.newest() is None
