"""Checkpoints: where a training that was killed goes on.

A checkpoint is written between two steps, or at the end of an epoch. All that the rest of the training
depends on is in it or follows from the seed: weights, optimiser, schedule, the best weights so far, the
curves, the order of the chips and the place in it; so a resumed training ends with the weights of an
undisturbed one, on a CPU to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pytorch_lightning as lightning
import torch

from tasks.errors import NotFoundError
from tasks.store import ObjectStore, join
from tasks.train.modules import TrainingModule
from tasks.train.sampling import DrawSampler
from tasks.train.schedule import Budget

FOLDER = "checkpoint"
FILE = "last.ckpt"
RUN = "mlflow_run"


class Checkpoints(Protocol):
    """Where checkpoints lie."""

    def newest(self) -> Path | None:
        """A local copy of the newest one; None where there is none."""

    def keep(self, path: Path) -> None:
        """Keep the file in place of the one before."""


class StoredCheckpoints:
    """Checkpoints in the object store, beside the plan of the training.

    Args:
        folder_uri: of the training's outputs.
        work: a local folder for copies.
    """

    def __init__(self, store: ObjectStore, folder_uri: str, work: Path) -> None:
        self._store = store
        self._uri = join(folder_uri, FOLDER, FILE)
        self._run_uri = join(folder_uri, FOLDER, RUN)
        self._work = work

    def newest(self) -> Path | None:
        """A local copy of the newest one; None where there is none."""
        path = self._work / FILE
        try:
            self._store.download(self._uri, path)
        except NotFoundError:
            return None
        return path

    def keep(self, path: Path) -> None:
        """Keep the file in place of the one before."""
        self._store.upload(path, self._uri)

    @property
    def run_id(self) -> str:
        """The MLflow run that an interrupted training wrote to; empty where there is none."""
        try:
            return self._store.get(self._run_uri).decode()
        except NotFoundError:
            return ""

    def note_run(self, run_id: str) -> None:
        """Keep the MLflow run, for whoever goes on."""
        self._store.put(self._run_uri, run_id.encode())

    def clear(self) -> None:
        """Remove what a finished training no longer needs."""
        for uri in (self._uri, self._run_uri):
            self._store.delete(uri)


@dataclass(frozen=True)
class Settled:
    """What a training found for itself before its first step; a resumed one does not search again."""

    batch_size: int
    learning_rate: float


def settled_in(checkpoint: Path | None) -> Settled | None:
    """What the training of a checkpoint had found; None where there is no checkpoint."""
    if checkpoint is None:
        return None
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"][
        KeepCheckpoints.__name__
    ]
    return Settled(int(state["batch_size"]), float(state["learning_rate"]))


class KeepCheckpoints(lightning.Callback):
    """Writes checkpoints, and makes every step's chances follow from the seed and its number.

    Processes that learn together write one checkpoint: the first one keeps it.

    Args:
        checkpoints: where they are kept; None: nowhere.
        sampler: whose order of the chips goes on after the resume.
        batch_size: chips per batch of this process.
        learning_rate: largest one of the schedule.
        seconds: between two checkpoints; writing and uploading one takes about a second.
        budget: tells the time.
        seed: of the training.
        work: a local folder.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        sampler: DrawSampler,
        *,
        batch_size: int,
        learning_rate: float,
        seconds: float,
        budget: Budget,
        seed: int,
        work: Path,
    ) -> None:
        self.checkpoints = checkpoints
        self.sampler = sampler
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.seconds = seconds
        self.budget = budget
        self.seed = seed
        self.path = work / FILE
        self.written_s = 0.0
        self._batches: int | None = None  # of the present epoch that are over; None: all

    def state_dict(self) -> dict[str, Any]:
        taken = None if self._batches is None else self._batches * self.batch_size
        return {
            "position": self.sampler.position(taken),
            "written_s": self.budget.elapsed_s,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sampler.go_to(state_dict["position"])
        self.written_s = float(state_dict["written_s"])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del batch
        # Before a step, when all of the one before is done; gradients that add up are in no checkpoint.
        added_up = cast(TrainingModule, pl_module).accumulate_batches
        if batch_idx and batch_idx % added_up == 0:
            self._keep_if_due(trainer, batch_idx)
        # Dropout and sampled proposals draw from torch's generator.
        own = [trainer.global_rank] if trainer.world_size > 1 else []
        chances = np.random.SeedSequence([self.seed, trainer.current_epoch, batch_idx, *own])
        torch.manual_seed(int(chances.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        self._keep_if_due(trainer, None)

    def _keep_if_due(self, trainer: lightning.Trainer, batches: int | None) -> None:
        if self.checkpoints is None or self.budget.elapsed_s - self.written_s < self.seconds:
            return
        self._batches = batches
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            self.checkpoints.keep(self.path)
        self.written_s = self.budget.elapsed_s
