"""Whether data loading holds up training: the real loop beside a bare one over tensors that lie in memory.

    python benchmarks/train_loading.py [--model UNET] [--backbone RESNET18] [--size 256] [--batch 8]
                                       [--chips 64] [--steps 8] [--rounds 4] [--threads 2] [--cold]

Both train the same network with the same loss, clipping and optimiser, in turns: some steps of the real loop
(Lightning's trainer with all callbacks, chips read from their files, cut, varied and put together), some of
a bare loop over batches of the same shape. Prints both in chips per second, and the ratio by turns with its
quartiles. The goal is 0.95. ``--cold`` forgets before each turn what was read, so that every chip is decoded
again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="UNET")
    parser.add_argument("--backbone", default="RESNET18")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--chips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="per turn")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cold", action="store_true", help="decode every chip anew in each turn")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="train-loading-") as folder:
        _measure(Path(folder), chosen)


def write_data(folder: Path, *, count: int, size: int) -> Path:
    """Chips and class masks as ArcGIS writes them: ground with noise, bright squares of two classes."""
    import json

    import rasterio
    from rasterio.transform import from_origin

    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(20, 90, (3, size, size)).astype(np.uint8)
        mask = np.zeros((size, size), np.uint8)
        for value in (1, 2):
            edge = int(rng.integers(size // 8, size // 3))
            top, left = (int(v) for v in rng.integers(0, size - edge, 2))
            pixels[value - 1, top : top + edge, left : left + edge] += 120
            mask[top : top + edge, left : left + edge] = value
        profile: dict[str, Any] = {
            "driver": "GTiff", "width": size, "height": size, "dtype": "uint8", "crs": "EPSG:32612",
            "compress": "lzw",
            "transform": from_origin(500_000 + (index % 8) * size, 5_000_000 - (index // 8) * size, 1, 1),
        }  # fmt: skip
        for part, array in (("images", pixels), ("labels", mask[None])):
            with rasterio.open(
                folder / part / f"{index:09d}.tif", "w", count=len(array), **profile
            ) as target:
                target.write(array)
    (folder / "map.txt").write_text("images\\000000000.tif  labels\\000000000.tif \r\n")
    classes = [{"Value": value, "Name": f"class {value}", "Color": [value, 0, 0]} for value in (1, 2)]
    cell = {"x": 1.0, "y": 1.0, "spatialReference": {"wkid": 32612}}
    definition = {"MetaDataMode": "Classified_Tiles", "Classes": classes, "MinCellSize": cell}
    (folder / "esri_model_definition.emd").write_text(json.dumps(definition))
    stats = {"MetaDataMode": "Classified_Tiles", "NumBands": 3}
    (folder / "esri_accumulated_stats.json").write_text(json.dumps(stats))
    return folder


def _measure(folder: Path, chosen: argparse.Namespace) -> None:
    import pytorch_lightning as lightning
    import torch

    from tasks.train.assembly import assemble, budget_of, collate_of, samples_of
    from tasks.train.callbacks import BestWeights, Curves, TimeBudget
    from tasks.train.checkpoints import KeepCheckpoints
    from tasks.train.hardware import Group
    from tasks.train.models.options import options_of
    from tasks.train.pairs import settle_normalisation
    from tasks.train.parameters import TrainParameters
    from tasks.train.sampling import DrawSampler
    from tasks.train.train import make_loader, make_trainer
    from tasks.training_data import open_training_data

    torch.set_num_threads(chosen.threads)
    data = open_training_data(write_data(folder / "data", count=chosen.chips, size=chosen.size))
    parameters = TrainParameters.model_validate(
        {
            "in_folder": ["x"],
            "output_name": "m",
            "model_type": chosen.model,
            "backbone_model": chosen.backbone,
            "batch_size": chosen.batch,
            "learning_rate": 0.001,
            "max_epochs": 1,
            "processor_type": "CPU",
            "model_arguments": [{"name": "pretrained", "value": "False"}],
        }
    )
    options, budget = options_of(parameters), budget_of(parameters)
    normalisation = settle_normalisation(parameters, [data], [])

    def fresh() -> Any:
        return samples_of(parameters, options, data.chips, normalisation, chosen.size)

    samples = fresh()
    shared = {"learning_rate": 0.001, "budget": budget, "freeze": False}
    module = assemble(parameters, options, data.classes, data.band_names, samples, shared).module
    collate = collate_of(parameters)
    budget.steps = 10 * chosen.rounds * chosen.steps
    sampler = DrawSampler(len(samples), seed=1)

    def loader_of(read: Any) -> Any:
        return make_loader(read, sampler, chosen.batch, "cpu", collate, drop_last=True)

    memory = [batch for _, batch in zip(range(4), loader_of(samples), strict=False)]

    class Stopwatch(lightning.Callback):
        """The time of the steps after the first, which warms up."""

        def __init__(self) -> None:
            self.begun, self.steps, self.seconds = 0.0, 0, 0.0

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            now = time.perf_counter()
            if self.steps:
                self.seconds = now - self.begun
            else:
                self.begun = now
            self.steps += 1
            trainer.should_stop = self.steps > chosen.steps

    def real() -> float:
        watch = Stopwatch()
        keeping = KeepCheckpoints(
            None, sampler, batch_size=chosen.batch, learning_rate=0.001, seconds=1e9, budget=budget, seed=1,
            work=folder,
        )  # fmt: skip
        curves = Curves(lambda *_: None, lambda *_: None)
        callbacks = [TimeBudget(budget), BestWeights("VALID_LOSS", patience=None), curves, keeping, watch]
        longer = parameters.model_copy(update={"max_epochs": 1000})
        trainer = make_trainer(longer, callbacks, accelerator="cpu", together=Group(), work=folder)
        trainer.fit(module, loader_of(fresh() if chosen.cold else samples))
        return watch.seconds / chosen.steps

    def bare() -> float:
        optimizer = module.configure_optimizers()["optimizer"]
        module.train()
        begun = 0.0
        for step in range(chosen.steps + 1):
            if step == 1:
                begun = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss, _ = module.loss_of(memory[step % len(memory)])
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
            optimizer.step()
        return (time.perf_counter() - begun) / chosen.steps

    turns = []
    for turn in range(chosen.rounds):
        # The second of a pair must not always be the same one.
        pair = (real(), bare()) if turn % 2 == 0 else tuple(reversed((bare(), real())))
        turns.append(pair)
        sys.stderr.write(f"turn {turn + 1}: real {pair[0]:.3f} s, bare {pair[1]:.3f} s a step\n")
    ratios = [without / with_data for with_data, without in turns]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    speeds = [chosen.batch / statistics.median(times) for times in zip(*turns, strict=True)]
    sys.stdout.write(
        f"| {chosen.model}, {chosen.backbone}, {chosen.size} px, batch {chosen.batch}, "
        f"{chosen.threads} threads"
        f"{', cold' if chosen.cold else ''} | {speeds[0]:.2f} | {speeds[1]:.2f} | "
        f"{middle:.3f} ({low:.3f} to {high:.3f}) |\n"
    )


if __name__ == "__main__":
    main()
