"""Training from training data to a package: plain Python, no server needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader

from tasks.assess.chips import LEVEL, blocks_of
from tasks.errors import BadInputError, DeviceError, TrainingDataError
from tasks.tracking import Tracker
from tasks.train import datasets
from tasks.train.assembly import assemble, budget_of, collate_of, samples_of
from tasks.train.callbacks import BestWeights, Curves, Progress, TimeBudget
from tasks.train.checkpoints import Checkpoints, KeepCheckpoints
from tasks.train.data_formats import check_format
from tasks.train.leakage import Leakage, find_leakage, refuse_leakage, without
from tasks.train.models.options import check_batch, check_sizes, input_size, options_of
from tasks.train.modules import TrainingModule
from tasks.train.packaging import build
from tasks.train.pairs import check_pairs, settle_normalisation
from tasks.train.parameters import TrainParameters
from tasks.train.report import draw_pictures, metrics_page
from tasks.train.result import Trained, TrainResult
from tasks.train.search import find_batch_size, find_learning_rate
from tasks.train.splits import Split, check_no_leak, split_spatially
from tasks.training_data import (
    Chip,
    TrainingData,
    read_boxes,
    read_class_mask,
    read_instances,
)

DEFAULT_LEARNING_RATE = 4e-3
_PATIENCE = 5
# Validating more often than this costs more than it tells.
_STEPS_BETWEEN_VALIDATIONS = 100
_GRADIENT_NORM = 10.0
_GPU_LOADERS = 4
# Reading the labels of more chips, only to balance the split, would take too long.
_WEIGHED_CHIPS = 5000


def train_model(
    parameters: TrainParameters,
    data: Sequence[TrainingData],
    work: Path,
    *,
    tracker: Tracker,
    progress: Progress,
    inputs: Sequence[tuple[str, str]] = (),
    validation: Sequence[TrainingData] = (),
    checkpoints: Checkpoints | None = None,
) -> TrainResult:
    """Train, measure, draw, and build the package.

    Args:
        parameters: the tool's parameters.
        data: the opened training data, in the order of ``in_folder``.
        work: an empty folder; the package ends there.
        tracker: gets parameters, curves, per-class values and pictures; see ``Tracker.disabled``.
        progress: called with a fraction and a word about what goes on.
        inputs: name and identity of each folder, for the package's model card.
        validation: training data to validate on; empty: compact areas of ``data`` are kept aside.
        checkpoints: where the training goes on from, and leaves where it is; None: nowhere.

    Raises:
        TrainingDataError: the data cannot be trained on.
        BadInputError: parameters that do not fit the data.
        DeviceError: a GPU was asked for and is not there.
    """
    trained = fit(
        parameters,
        data,
        work,
        tracker=tracker,
        progress=progress,
        apart=validation,
        checkpoints=checkpoints,
    )
    pictures = draw_pictures(trained, data[0].classes)
    page = metrics_page(parameters, trained, pictures)
    for name, picture in pictures.items():
        tracker.image(picture, f"ModelCharacteristics/{name}")
    tracker.text(page, "model_metrics.html")
    package = build(parameters, data[0], trained, page=page, pictures=pictures, into=work, inputs=inputs)
    return TrainResult(package, trained.metrics, trained.effort, page, pictures)


def check_data(parameters: TrainParameters, data: Sequence[TrainingData]) -> None:
    """Refuse data that the model type cannot learn from, or folders that do not go together.

    Raises:
        TrainingDataError, BadInputError: with what is wrong, before anything is computed.
    """
    first = data[0]
    for item in data:
        check_format(parameters, item.metadata_format, str(item.folder))
        if parameters.kind == "change":
            check_pairs(parameters.model_type, item)
        elif any(chip.image2 is not None for chip in item.chips):
            raise TrainingDataError(
                f"{item.folder} holds pairs of pictures; {parameters.model_type} learns from single ones.",
                "Export the training data without additional_input_raster.",
            )
        for what, mine, theirs in (
            ("classes", item.classes.to_records(), first.classes.to_records()),
            ("tile size", item.tile_size, first.tile_size),
            ("bands", item.band_names, first.band_names),
        ):
            if mine != theirs:
                raise TrainingDataError(
                    f"The {what} of {item.folder} ({mine}) differ from those of {first.folder} ({theirs}).",
                    "Train on folders that were exported with the same settings.",
                )
    check_sizes(parameters, options_of(parameters), min(first.tile_size), sum(len(i.chips) for i in data))


def fit(
    parameters: TrainParameters,
    data: Sequence[TrainingData],
    work: Path,
    *,
    tracker: Tracker,
    progress: Progress,
    apart: Sequence[TrainingData] = (),
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Train and measure; see :func:`train_model`."""
    check_data(parameters, [*data, *apart])
    lightning.seed_everything(parameters.seed, workers=True, verbose=False)
    schema, options = data[0].classes, options_of(parameters)
    chips = [chip for item in (*data, *apart) for chip in item.chips]
    split, leaked = _split(chips, data, apart, parameters)
    normalisation = settle_normalisation(parameters, data, apart)
    rows, cols = data[0].tile_size
    chip_size = input_size(parameters, options, min(rows, cols))

    train_set = samples_of(parameters, options, [chips[i] for i in split.train], normalisation, chip_size)
    validation = samples_of(
        parameters, options, [chips[i] for i in split.validation], normalisation, chip_size, validation=True
    )
    sampler = datasets.DrawSampler(len(train_set), seed=parameters.seed)
    accelerator = _accelerator(parameters)
    budget = budget_of(parameters)
    rate = parameters.learning_rate or DEFAULT_LEARNING_RATE
    shared = {"learning_rate": rate, "budget": budget, "freeze": parameters.freeze_model}
    assembled = assemble(parameters, options, schema, data[0].band_names, train_set, shared)
    module = assembled.module
    device = "cuda" if accelerator == "gpu" else "cpu"
    collate = collate_of(parameters)

    def first(size: int) -> Any:
        return collate([cast(Any, train_set)[index, 0] for index in range(size)])

    batch = min(
        parameters.batch_size or find_batch_size(module, first, len(train_set), device), len(train_set)
    )
    check_batch(parameters, batch)
    loader: dict[str, Any] = {
        "batch_size": batch,
        "num_workers": _GPU_LOADERS if accelerator == "gpu" else 0,
        "collate_fn": collate,
    }
    batches = max(1, len(train_set) // batch)
    steps = -(-batches // parameters.accumulate_batches)
    budget.steps = steps * parameters.max_epochs
    # Samplers give (index, draw) pairs: all that decides what a sample looks like.
    train_loader = DataLoader(train_set, sampler=cast(Any, sampler), drop_last=True, **loader)
    every = [(index, 0) for index in range(len(validation))]
    validation_loader = DataLoader(validation, sampler=cast(Any, every), **loader)
    resumed = None if checkpoints is None else checkpoints.newest()
    if parameters.learning_rate is None and options.preset != "light":
        # Its own order of the chips: that of the training must not depend on the search.
        trial = datasets.DrawSampler(len(train_set), seed=parameters.seed + 1)
        tried = DataLoader(train_set, sampler=cast(Any, trial), drop_last=True, **loader)
        rate = module.learning_rate = find_learning_rate(module, tried, device)

    curves = Curves(lambda row, epoch: tracker.metrics(_plain(row), epoch), progress)
    best = BestWeights(parameters.monitor, patience=_PATIENCE if parameters.stop_training else None)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    trainer = lightning.Trainer(
        max_epochs=parameters.max_epochs,
        accelerator=accelerator,
        devices=1,
        precision=_precision(parameters, accelerator),
        callbacks=[
            TimeBudget(budget),
            best,
            curves,
            KeepCheckpoints(checkpoints, sampler, seed=parameters.seed, work=work),
        ],
        check_val_every_n_epoch=min(parameters.max_epochs, -(-_STEPS_BETWEEN_VALIDATIONS // batches)),
        accumulate_grad_batches=parameters.accumulate_batches,
        gradient_clip_val=_GRADIENT_NORM,
        default_root_dir=work,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic="warn",
    )
    started = time.monotonic()
    trainer.fit(module, train_loader, validation_loader, ckpt_path=resumed, weights_only=True)
    seconds_taken = time.monotonic() - started
    epochs, steps_done = trainer.current_epoch, trainer.global_step
    # Time may have run out between two validations: the last weights compete, too.
    trainer.validate(module, validation_loader, verbose=False)
    curves.add_last(module, epochs)
    best.restore(module)
    trainer.validate(module, validation_loader, verbose=False)
    module.to("cpu").eval()
    blocks = blocks_of([chips[index].footprint for index in split.validation])
    further, intervals = module.final_values(blocks)
    metrics = {
        **_validation_values(module),
        **{name: _number(value) for name, value in further.items()},
        "intervals": {
            "level": LEVEL,
            "blocks": int(blocks.max(initial=-1)) + 1,
            **{
                name: {key: [_number(end) for end in ends] for key, ends in row.items()}
                for name, row in intervals.items()
            },
        },
        "chips": {
            "train": len(split.train),
            "validation": len(split.validation),
            "dropped": len(split.dropped),
            "copies": len(leaked.copies),
        },
        "epochs": epochs,
        "steps": steps_done,
        "stopped_early": best.stopped_early,
        "device": trainer.strategy.root_device.type,
        "precision": str(trainer.precision),
        "learning_rate": rate,
        "batch_size": batch,
    }
    effort = {
        "train_seconds": seconds_taken,
        "chips_per_second": steps_done * batch * parameters.accumulate_batches / max(seconds_taken, 1e-9),
    }
    tracker.metrics({**_final_values(metrics), **effort}, epochs)
    return Trained(
        module=module,
        options=options,
        source=assembled.source,
        normalisation=normalisation,
        chips=chips,
        split=split,
        chip_size=chip_size,
        metrics=metrics,
        effort=effort,
        history=curves.history,
        validation=validation,
    )


def _validation_values(module: TrainingModule) -> dict[str, Any]:
    return {
        **{name.lower(): _number(value) for name, value in module.measured.items()},
        "per_class": {
            name: {key: _number(value) for key, value in values.items()}
            for name, values in module.per_class.items()
        },
    }


def _split(
    chips: Sequence[Chip],
    data: Sequence[TrainingData],
    apart: Sequence[TrainingData],
    parameters: TrainParameters,
) -> tuple[Split, Leakage]:
    """Which chips are learnt from, and which training chips had to go because they leaked."""
    placed = [chip.footprint for chip in chips]
    if apart:
        given = sum(len(item.chips) for item in data)
        split = Split(tuple(range(given)), tuple(range(given, len(chips))), ())
        if len({item.wkid for item in (*data, *apart)}) > 1:
            placed = [None] * len(chips)  # footprints in several systems say nothing about each other
        leakage = find_leakage(chips, placed, split)
        refuse_leakage(leakage, given)
        return split, leakage
    known = [footprint for footprint in placed if footprint is not None]
    if len(known) < len(chips):
        raise TrainingDataError(
            f"{len(chips) - len(known)} of {len(chips)} chips have no georeference, so that a spatial split "
            f"of {', '.join(str(item.folder) for item in data)} is not possible.",
            "Export the chips with world files, or name chips of other ground as validation_folder.",
        )
    amounts = [_label_amount(chip, parameters) for chip in chips] if len(chips) <= _WEIGHED_CHIPS else None
    split = split_spatially(known, parameters.validation_percent, seed=parameters.seed, amounts=amounts)
    check_no_leak(known, split)
    leakage = find_leakage(chips, placed, split)
    return without(split, leakage), leakage


def _label_amount(chip: Chip, parameters: TrainParameters) -> float:
    """Objects, or labelled pixels."""
    if parameters.kind == "objects":
        return float(len(read_boxes(chip)))
    if parameters.kind == "instances":
        return float(sum(np.count_nonzero(np.unique(layer)) for layer in read_instances(chip).values()))
    if parameters.kind == "labels":
        return 1.0
    return float(np.count_nonzero(read_class_mask(chip)))


def _accelerator(parameters: TrainParameters) -> str:
    available = torch.cuda.is_available()
    if parameters.processor_type == "GPU" and not available:
        raise DeviceError(
            "processor_type is GPU, but this worker sees no GPU.",
            "Start it where there is one, or choose AUTO or CPU.",
        )
    return "gpu" if available and parameters.processor_type != "CPU" else "cpu"


def _precision(parameters: TrainParameters, accelerator: str) -> Any:
    chosen = parameters.precision
    if chosen == "AUTO":
        if accelerator == "cpu":
            return "32-true"
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if chosen == "FLOAT16" and accelerator == "cpu":
        raise BadInputError("FLOAT16 cannot be trained on a CPU.", "Choose AUTO, FLOAT32 or BFLOAT16.")
    return {"FLOAT32": "32-true", "BFLOAT16": "bf16-mixed", "FLOAT16": "16-mixed"}[chosen]


def _final_values(metrics: dict[str, Any]) -> dict[str, float]:
    values = {f"final_{name}": value for name, value in metrics.items() if isinstance(value, float)}
    for class_name, row in metrics["per_class"].items():
        values.update({f"{class_name}.{name}": value for name, value in row.items() if value is not None})
    for class_name, row in metrics["intervals"].items():
        if isinstance(row, dict):
            for name, ends in row.items():
                told = zip(("low", "high"), ends, strict=True)
                values.update({f"{class_name}.{name}_{end}": v for end, v in told if v is not None})
    return values


def _plain(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "epoch" and np.isfinite(value)}


def _number(value: float) -> float | None:
    """A finite number, or None where there is none (a class that does not occur)."""
    return float(value) if np.isfinite(value) else None
