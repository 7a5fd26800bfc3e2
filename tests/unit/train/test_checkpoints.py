"""A killed training goes on from its last checkpoint and ends as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tasks.store import ObjectStore
from tasks.tracking import Tracker
from tasks.train import checkpoints
from tasks.train.checkpoints import StoredCheckpoints
from tasks.train.result import Trained
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


def train(data: TrainingData, work: Path, kept: Folder | None, apart: Sequence[TrainingData] = ()) -> Trained:
    torch.set_num_threads(1)
    given = parameters("PSPNET", {"width": "32"}, max_epochs=4)  # its decoder drops out
    return fit(
        given,
        [data],
        work,
        tracker=Tracker.disabled(),
        progress=lambda *_: None,
        apart=apart,
        checkpoints=kept,
    )


def test_a_resumed_training_ends_with_the_same_weights(
    make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    data = make_data(metadata_format="Classified_Tiles", size=64, count=10)
    whole = train(data, tmp_path, None)
    with pytest.raises(PowerFailure):
        train(data, tmp_path, Folder(tmp_path, killed_after=2))
    resumed = train(data, tmp_path, Folder(tmp_path))
    assert resumed.metrics == whole.metrics
    assert resumed.history == whole.history
    assert len(whole.history) == 4
    ours, theirs = resumed.module.network.state_dict(), whole.module.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


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
