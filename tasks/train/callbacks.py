"""Callbacks: the time budget, progress, curves, and the best weights kept in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor

from tasks.train.modules import TrainingModule
from tasks.train.schedule import Budget

# Values that are better when smaller; all others are better when larger.
_SMALLER_IS_BETTER = frozenset({"VALID_LOSS"})

# While the learning rate is high, values wander: stopping there would miss what its descent brings.
_PATIENT_UNTIL = 0.5

Progress = Callable[[float, str], None]


def _own(module: lightning.LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module


class TimeBudget(lightning.Callback):
    """Starts the clock with the first step and ends the training when the time is over.

    A resumed training has spent what it had spent at its checkpoint.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.spent_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"spent_s": self.budget.elapsed_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spent_s = float(state_dict["spent_s"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del trainer, pl_module
        self.budget.start(spent_s=self.spent_s)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        if self.budget.spent:
            trainer.should_stop = True


class Curves(lightning.Callback):
    """Keeps the values of every validation, tells them to the tracker and to the progress report."""

    def __init__(self, report: Callable[[dict[str, float], int], None], progress: Progress) -> None:
        self.report = report
        self.progress = progress
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        del outputs, batch, batch_idx
        module = _own(pl_module)
        step = trainer.global_step
        if step % 10 == 0:
            fraction = min(1.0, module.budget.fraction(step))
            self.progress(fraction, f"epoch {trainer.current_epoch + 1}, step {step}")

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        module = _own(pl_module)
        loss = trainer.callback_metrics.get("train_loss")
        row = {"epoch": float(trainer.current_epoch + 1)}
        if loss is not None:
            row["train_loss"] = float(loss)
        if module.measured:
            row.update({name.lower(): value for name, value in module.measured.items()})
            module.measured = {}
        self.history.append(row)
        optimizers = trainer.optimizers
        if optimizers:
            row["learning_rate"] = float(optimizers[0].param_groups[-1]["lr"])
        self.report(row, trainer.current_epoch + 1)

    def add_last(self, module: TrainingModule, epoch: int) -> None:
        """Put the values of a validation after the end into the last row, if it has none."""
        if self.history and "valid_loss" not in self.history[-1]:
            self.history[-1].update({name.lower(): value for name, value in module.measured.items()})
            self.report(self.history[-1], epoch)


class BestWeights(lightning.Callback):
    """Keeps the weights of the best validation; optionally stops when nothing improves any more.

    Args:
        monitor: name of the watched value.
        patience: validations without improvement after which training stops; None never stops.
    """

    _KEPT = ("best", "value", "weights", "since", "stopped_early")

    def __init__(self, monitor: str, *, patience: int | None) -> None:
        self.monitor = monitor
        self.patience = patience
        self.best = -math.inf
        self.value = math.nan
        self.weights: dict[str, Tensor] | None = None
        self.since = 0
        self.stopped_early = False

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in self._KEPT:
            setattr(self, name, state_dict[name])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        if self.stopped_early:  # resumed after its end
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        module = _own(pl_module)
        if trainer.sanity_checking:
            return
        value = module.measured[self.monitor]
        quality = -value if self.monitor in _SMALLER_IS_BETTER else value
        # >= : of equal validations the later one has learned longer.
        if math.isfinite(quality) and quality >= self.best:
            self.since = 0 if quality > self.best else self.since + 1
            self.best, self.value = quality, value
            self.weights = {
                name: tensor.detach().cpu().clone() for name, tensor in module.network.state_dict().items()
            }
        else:
            self.since += 1
        if module.budget.fraction(trainer.global_step) < _PATIENT_UNTIL:
            self.since = 0
        if self.patience is not None and self.since >= self.patience and trainer.state.fn == "fit":
            self.stopped_early = True
            trainer.should_stop = True

    def restore(self, module: TrainingModule) -> None:
        """Put the best weights into the network; without a usable validation the last ones stay."""
        if self.weights is not None:
            with torch.no_grad():
                module.network.load_state_dict(self.weights)
