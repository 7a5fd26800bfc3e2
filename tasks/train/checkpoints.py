"""Checkpoints: where a training that was killed goes on.

A checkpoint is written at the end of an epoch. All that the rest of the training depends on is in it or
follows from the seed: weights, optimiser, schedule, the best weights so far, the curves, the order of the
chips; so a resumed training ends with the weights of an undisturbed one, on a CPU to the last digit.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as lightning
import torch

from tasks.errors import NotFoundError
from tasks.store import ObjectStore, join
from tasks.train.datasets import DrawSampler

FOLDER = "checkpoint"
FILE = "last.ckpt"
RUN = "mlflow_run"

# Between two checkpoints: writing and uploading one takes about a second.
SECONDS_BETWEEN = 120.0


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


class KeepCheckpoints(lightning.Callback):
    """Writes checkpoints, and makes every step's chances follow from the seed and its number.

    Args:
        checkpoints: where they are kept.
        sampler: whose order of the chips goes on after the resume.
        seed: of the training.
        work: a local folder.
    """

    def __init__(
        self, checkpoints: Checkpoints | None, sampler: DrawSampler, *, seed: int, work: Path
    ) -> None:
        self.checkpoints = checkpoints
        self.sampler = sampler
        self.seed = seed
        self.path = work / FILE
        self.written = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.generator.bit_generator.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sampler.generator.bit_generator.state = state_dict["sampler"]

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, batch
        # Dropout and sampled proposals draw from torch's generator.
        chances = np.random.SeedSequence([self.seed, trainer.current_epoch, batch_idx])
        torch.manual_seed(int(chances.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        if self.checkpoints is None or time.monotonic() - self.written < SECONDS_BETWEEN:
            return
        trainer.save_checkpoint(self.path)
        self.checkpoints.keep(self.path)
        self.written = time.monotonic()
