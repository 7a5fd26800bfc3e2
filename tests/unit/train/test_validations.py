"""How often a training validates: enough to choose the best weights and to stop, whatever its length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tasks.train import callbacks
from tasks.train.callbacks import BestWeights, TimeBudget, Validations
from tasks.train.hardware import Group
from tasks.train.modules import TrainingModule
from tasks.train.schedule import Budget
from tasks.train.train import PATIENCE, make_trainer
from tests.unit.train.test_zoo import parameters


class Worsening(TrainingModule):
    """Improves until half of the training is over; each step takes a second of the clock that is told."""

    def __init__(self, budget: Budget) -> None:
        network = torch.nn.Linear(1, 1)
        super().__init__(
            network, encoder=torch.nn.Identity(), learning_rate=0.01, budget=budget, freeze=False
        )
        self.validated: list[int] = []

    def loss_of(self, batch: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
        self.budget.set_clock(float(self.trainer.global_step + 1))
        return self.network(batch[0]).mean(), len(batch[0])

    def validation_step(self, batch: Any, _index: int) -> None:
        del batch
        self._validation_losses.append(abs(self.budget.fraction(self.steps_done) - 0.5))

    def on_validation_epoch_end(self) -> None:
        self.validated.append(self.trainer.current_epoch + 1)
        self.finish_validation({})


def run(work: Path, batches: int, max_epochs: int, *, seconds: float | None, stops: bool) -> Worsening:
    given = parameters("UNET", {}, max_epochs=max_epochs)
    budget = Budget(steps=batches * max_epochs, seconds=seconds)
    module = Worsening(budget)
    best = BestWeights("VALID_LOSS", patience=PATIENCE if stops else None)
    told = [Validations(budget), TimeBudget(budget), best]
    trainer = make_trainer(given, told, accelerator="cpu", together=Group(), work=work)
    chips = DataLoader(torch.utils.data.TensorDataset(torch.ones(batches, 1)))
    judged = DataLoader(torch.utils.data.TensorDataset(torch.ones(1, 1)))
    trainer.fit(module, chips, judged)
    return module


@pytest.mark.parametrize(
    ("batches", "max_epochs", "seconds", "expected"),
    [
        (4, 20, None, list(range(1, 21))),  # the tool's defaults over some 40 chips
        (1, 60, None, list(range(3, 61, 3))),
        (120, 3, None, [1, 2, 3]),
        (2, 3, None, [1, 2, 3]),
        (5, 1000, 100.0, list(range(1, 21))),  # time ends it
    ],
)
def test_a_short_training_validates_as_often_as_a_long_one(
    batches: int, max_epochs: int, seconds: float | None, expected: list[int], tmp_path: Path
) -> None:
    assert run(tmp_path, batches, max_epochs, seconds=seconds, stops=False).validated == expected


def test_a_long_training_validates_whenever_it_has_seen_so_many_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "_BATCHES_BETWEEN_VALIDATIONS", 10)
    assert run(tmp_path, 5, 42, seconds=None, stops=False).validated == list(range(2, 43, 2))


def test_early_stopping_acts_on_a_small_set(tmp_path: Path) -> None:
    assert run(tmp_path, 4, 20, seconds=None, stops=True).validated[-1] == 18
