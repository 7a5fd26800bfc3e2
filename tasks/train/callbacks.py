"""Callbacks: the time budget, progress, curves, the best weights kept in memory, processes kept in step."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor

from tasks.train.modules import TrainingModule
from tasks.train.schedule import Budget

# Values that are better when smaller; all others are better when larger.
_SMALLER_IS_BETTER = frozenset({"VALID_LOSS"})

# While the learning rate is high, values wander: stopping there would miss what its descent brings. At this
# share of the training it is a quarter of its largest value (tasks.train.schedule.one_cycle).
_PATIENT_UNTIL = 0.7

# Validating more often than this costs more than it tells …
_BATCHES_BETWEEN_VALIDATIONS = 100
# … but a short training has the choice between so many, and early stopping looks at half of them.
_VALIDATIONS = 20
NEVER = sys.maxsize  # epochs between two validations, until Validations says otherwise

Progress = Callable[[float, str], None]


def _own(module: lightning.LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module


class _Resumable(lightning.Callback):
    """A callback whose attributes named in ``_KEPT`` go through checkpoints."""

    _KEPT: tuple[str, ...]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in self._KEPT:
            setattr(self, name, state_dict[name])


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

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        if self.budget.spent:
            trainer.should_stop = True


class Validations(_Resumable):
    """Validates at the end of an epoch, once enough is learnt since the last time.

    That is 100 batches, or a twentieth of the training by its steps or its time, whichever comes first: of
    20 epochs each is validated, however few chips there are.
    """

    _KEPT = ("batches", "share")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.batches = 0  # since the last validation
        self.share = 0.0  # of the training, at the last validation

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        trainer.check_val_every_n_epoch = NEVER

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        self.batches += 1
        share = self.budget.fraction(_own(pl_module).steps_done)
        enough = self.batches >= _BATCHES_BETWEEN_VALIDATIONS
        # Rounding of the shares is not to cost a validation.
        if trainer.is_last_batch and (enough or share - self.share >= 1.0 / _VALIDATIONS - 1e-9):
            trainer.check_val_every_n_epoch = 1
            self.batches, self.share = 0, share


class InStep(lightning.Callback):
    """Lets the first of several processes decide what must be the same for all: time, and what is measured.

    Every process validates all chips, so that nothing is merged; the first one's values count. Its running
    statistics of the normalisations are taken by the others before.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        self.budget.set_clock(trainer.strategy.broadcast(self.budget.clock_s()))

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any, **__: Any) -> None:
        self.budget.set_clock(trainer.strategy.broadcast(self.budget.clock_s()))

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del trainer
        for statistics in _own(pl_module).network.buffers():
            torch.distributed.broadcast(statistics, src=0)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        module = _own(pl_module)
        module.measured = trainer.strategy.broadcast(module.measured)


class Thaw(lightning.Callback):
    """Lets a frozen encoder learn after some epochs.

    Args:
        after_epochs: how many.
    """

    def __init__(self, after_epochs: int) -> None:
        self.after_epochs = after_epochs

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        # Processes that learn together exchange gradients of what can learn when they start: there the
        # encoder's are computed, and dropped while it is frozen.
        if trainer.world_size > 1 and stage == "fit":
            _own(pl_module).encoder.requires_grad_(True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # a training that goes on inside an epoch

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        module = _own(pl_module)
        if module.freeze_encoder and trainer.current_epoch >= self.after_epochs:
            module.thaw()

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        del trainer, optimizer
        module = _own(pl_module)
        if module.freeze_encoder:
            for parameter in module.encoder.parameters():
                parameter.grad = None


class Curves(lightning.Callback):
    """Keeps the values of every validation, tells them to the tracker and to the progress report.

    The loss of an epoch is the mean over its batches, those before a checkpoint inside it too.
    """

    def __init__(self, report: Callable[[dict[str, float], int], None], progress: Progress) -> None:
        self.report = report
        self.progress = progress
        self.history: list[dict[str, float]] = []
        self.times: list[float] = []  # of its rows, seconds since 1970
        self._loss: Tensor | None = None  # summed over the batches; stays on the device
        self._batches = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "times": self.times,
            "loss": None if self._loss is None else self._loss.cpu(),
            "batches": self._batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self.times = list(state_dict["times"])
        self._loss = state_dict["loss"]
        self._batches = int(state_dict["batches"])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        del batch, batch_idx
        module = _own(pl_module)
        if outputs and "loss" in outputs:
            loss = outputs["loss"].detach().double()
            self._loss = loss if self._loss is None else self._loss.to(loss.device) + loss
            self._batches += 1
        step = trainer.global_step // module.optimizer_count
        if step % 10 == 0:
            fraction = min(1.0, module.budget.fraction(step))
            self.progress(fraction, f"epoch {trainer.current_epoch + 1}, step {step}")

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        module = _own(pl_module)
        row = {"epoch": float(trainer.current_epoch + 1)}
        if self._loss is not None:
            row["train_loss"] = float(trainer.strategy.reduce(self._loss / self._batches, reduce_op="mean"))
            self._loss, self._batches = None, 0
        if module.measured:
            row.update({name.lower(): value for name, value in module.measured.items()})
            module.measured = {}
        self.history.append(row)
        self.times.append(time.time())
        optimizers = trainer.optimizers
        if optimizers:
            row["learning_rate"] = float(optimizers[0].param_groups[-1]["lr"])
        self.report(row, trainer.current_epoch + 1)

    def add_last(self, module: TrainingModule, epoch: int) -> None:
        """Put the values of a validation after the end into the last row, if it has none."""
        if self.history and "valid_loss" not in self.history[-1]:
            self.history[-1].update({name.lower(): value for name, value in module.measured.items()})
            self.report(self.history[-1], epoch)


class BestWeights(_Resumable):
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

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        if self.stopped_early:  # resumed after its end
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        module = _own(pl_module)
        if trainer.sanity_checking or not module.selects_best:
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
        if module.budget.fraction(trainer.global_step // module.optimizer_count) < _PATIENT_UNTIL:
            self.since = 0
        if self.patience is not None and self.since >= self.patience and trainer.state.fn == "fit":
            self.stopped_early = True
            trainer.should_stop = True

    def restore(self, module: TrainingModule) -> None:
        """Put the best weights into the network; without a usable validation the last ones stay."""
        if self.weights is not None:
            with torch.no_grad():
                module.network.load_state_dict(self.weights)
