"""Training from training data to a package: plain Python, no server needed."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as lightning
from torch.utils.data import DataLoader

from tasks.assess.chips import LEVEL, blocks_of
from tasks.errors import TrainingDataError
from tasks.tracking import Tracker
from tasks.train.assembly import Samples, assemble, budget_of, collate_of, samples_of, with_file
from tasks.train.beginning import Beginning, begin
from tasks.train.callbacks import (
    NEVER,
    BestWeights,
    Curves,
    InStep,
    Progress,
    Thaw,
    TimeBudget,
    Validations,
)
from tasks.train.characteristics import accuracy_tables
from tasks.train.checkpoints import Checkpoints, KeepCheckpoints, settled_in
from tasks.train.data_formats import check_agreement, check_format
from tasks.train.datasets import IGNORED
from tasks.train.dividing import divide
from tasks.train.doubts import doubts_of, validation_digest
from tasks.train.environment import versions, without_determinism
from tasks.train.event_file import event_file
from tasks.train.hardware import Group, accelerator_of, agree, arithmetic, join_group, placement, precision_of
from tasks.train.images import check_pictures, output_normalisation, sides_of
from tasks.train.models.options import check_batch, check_sizes, input_size, options_of
from tasks.train.modules import TrainingModule
from tasks.train.packaging import build
from tasks.train.pairs import settle_normalisation
from tasks.train.panoptic_chips import things_of
from tasks.train.parameters import ADVERSARIAL, PIXEL_KINDS, TrainParameters
from tasks.train.report import draw_pictures, metrics_page
from tasks.train.result import Trained, TrainResult
from tasks.train.sampling import DrawSampler
from tasks.train.search import find_batch_size, find_learning_rate
from tasks.training_data import (
    TrainingData,
)

DEFAULT_LEARNING_RATE = 4e-3
PATIENCE = 5
_GRADIENT_NORM = 10.0
_GPU_LOADERS = 4


def train_model(
    parameters: TrainParameters,
    data: Sequence[TrainingData],
    work: Path,
    *,
    tracker: Tracker,
    progress: Progress,
    inputs: Sequence[tuple[str, str]] = (),
    lineage: Sequence[tuple[str, str]] = (),
    known_data: Sequence[str] = (),
    validation: Sequence[TrainingData] = (),
    checkpoints: Checkpoints | None = None,
    beginning: Beginning | None = None,
) -> TrainResult:
    """Train, measure, draw, and build the package.

    Args:
        parameters: the tool's parameters.
        data: the opened training data, in the order of ``in_folder``.
        work: an empty folder; the package ends there.
        tracker: gets parameters, curves, per-class values and pictures; see ``Tracker.disabled``.
        progress: called with a fraction and a word about what goes on.
        inputs: name and identity of each folder, for the package's model card.
        lineage: address and identity of all training data behind the weights, for the package.
        known_data: folders of validation chips that the package to go on with has learnt from.
        validation: training data to validate on; empty: compact areas of ``data`` are kept aside.
        checkpoints: where the training goes on from, and leaves where it is; None: nowhere.
        beginning: a package to go on with, or a file of the encoder's weights; None: neither.

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
        beginning=beginning,
        known_data=known_data,
    )
    trained.metrics["training_data"] = [{"uri": uri, "identity": identity} for uri, identity in lineage]
    pictures = draw_pictures(trained, data[0].classes)
    page = metrics_page(parameters, trained, pictures)
    for name, picture in pictures.items():
        tracker.image(picture, f"ModelCharacteristics/{name}")
    tracker.text(page, "model_metrics.html")
    for name, table in accuracy_tables(trained, data[0].classes).items():
        tracker.text(table, name)
    package = build(parameters, data[0], trained, page=page, pictures=pictures, into=work, inputs=inputs)
    events = event_file(trained.history, trained.times) if parameters.tensorboard else None
    return TrainResult(package, trained.metrics, trained.effort, page, pictures, events)


def check_data(parameters: TrainParameters, data: Sequence[TrainingData]) -> None:
    """Refuse data that the model type cannot learn from, or folders that do not go together.

    Raises:
        TrainingDataError, BadInputError: with what is wrong, before anything is computed.
    """
    for item in data:
        check_format(parameters, item.metadata_format, str(item.folder))
        check_pictures(parameters, item)
        _check_classes(parameters, item)
    check_agreement(data)
    check_sizes(parameters, options_of(parameters), min(data[0].tile_size), sum(len(i.chips) for i in data))


def _check_classes(parameters: TrainParameters, data: TrainingData) -> None:
    """Refuse more classes of pixels than labels of one byte hold."""
    most = IGNORED - 1
    if parameters.kind in (*PIXEL_KINDS, "panoptic") and len(data.classes) > most:
        raise TrainingDataError(
            f"{data.folder} has {len(data.classes)} classes, but models of pixels learn {most} at most.",
            "Merge classes, or export those that matter.",
        )


def fit(
    parameters: TrainParameters,
    data: Sequence[TrainingData],
    work: Path,
    *,
    tracker: Tracker,
    progress: Progress,
    apart: Sequence[TrainingData] = (),
    checkpoints: Checkpoints | None = None,
    beginning: Beginning | None = None,
    known_data: Sequence[str] = (),
) -> Trained:
    """Train and measure; see :func:`train_model`.

    Processes that were started together each call it, with equal arguments but a tracker that tracks nothing
    in all of them but the first; all come to the same end.
    """
    check_data(parameters, [*data, *apart])
    parameters = with_file(parameters, data)
    lightning.seed_everything(parameters.seed, workers=True, verbose=False)
    schema, options = data[0].classes, options_of(parameters)
    sides, sides_apart = sides_of(data), sides_of(apart)
    chips = [chip for item in (*sides, *sides_apart) for chip in item.chips]
    split, leaked = divide(parameters, sides, sides_apart)
    doubts = doubts_of(
        parameters,
        data,
        chips,
        split,
        known_data=known_data,
        package=None if beginning is None else beginning.package,
        compared=leaked.compared,
    )
    for doubt in doubts:
        progress(0.0, doubt)
    if doubts:
        tracker.tags({"chipline.doubts": " ".join(doubts)})
    normalisation = settle_normalisation(parameters, data, apart)
    rows, cols = data[0].tile_size
    chip_size = input_size(parameters, options, min(rows, cols))

    shape: dict[str, Any] = {
        "tile_size": min(rows, cols),
        "upright": data[0].upright,
        "output": output_normalisation(parameters, data, apart),
        "things": things_of([*data, *apart]) if parameters.kind == "panoptic" else (),
    }
    studied = [chips[index] for index in split.train]
    train_set = samples_of(parameters, options, studied, normalisation, chip_size, **shape)
    judged = [chips[index] for index in split.validation]
    validation = samples_of(parameters, options, judged, normalisation, chip_size, validation=True, **shape)
    accelerator = accelerator_of(parameters)
    together = join_group(parameters, accelerator)
    budget = budget_of(parameters)
    resumed = None if checkpoints is None else checkpoints.newest()
    settled = settled_in(resumed)
    rate = parameters.learning_rate or DEFAULT_LEARNING_RATE
    shared = {
        "learning_rate": rate,
        "budget": budget,
        "freeze": parameters.freeze_model,
        "thaws": parameters.unfreeze_after_epochs is not None,
    }
    assembled = assemble(parameters, options, schema, data[0].band_names, train_set, shared)
    module = assembled.module
    module.accumulate_batches = parameters.accumulate_batches
    for encoder in module.encoders:
        first_weights = begin(
            module.network,
            encoder,
            parameters,
            pretrained=options.pretrained and parameters.custom_model is None,
            classes=schema.names,
            bands=data[0].band_names,
            beginning=beginning or Beginning(),
        )
    progress(0.0, f"starts from {first_weights}")
    tracker.tags({"chipline.first_weights": first_weights})
    device = "cuda" if accelerator == "gpu" else "cpu"
    exactness = arithmetic(precision_of(parameters, accelerator), device)
    collate = collate_of(parameters)

    def first(size: int) -> Any:
        return collate([cast(Any, train_set)[index, 0] for index in range(size)])

    own = len(train_set) // together.world  # chips that this process learns from in a pass
    if settled is None and parameters.batch_size is None:
        batch = agree(find_batch_size(module, first, own, device, exactness))
    else:
        batch = min(parameters.batch_size or own, own) if settled is None else settled.batch_size
    if not batch:
        raise TrainingDataError(
            f"{len(train_set)} training chips are fewer than {together.world} processes.",
            "Use fewer devices.",
        )
    check_batch(parameters, batch)
    batches = max(1, own // batch)
    budget.steps = -(-batches // parameters.accumulate_batches) * parameters.max_epochs

    def training_loader(sampler: DrawSampler) -> DataLoader[Any]:
        return make_loader(train_set, sampler, batch, accelerator, collate, drop_last=True)

    sampler = DrawSampler(len(train_set), seed=parameters.seed, rank=together.rank, world=together.world)
    every = [(index, 0) for index in range(len(validation))]
    validation_loader = make_loader(validation, every, batch, accelerator, collate)
    if settled is not None:
        rate = module.learning_rate = settled.learning_rate
    elif parameters.learning_rate is None and module.usual_rate is not None:
        rate = module.learning_rate = module.usual_rate
    elif parameters.learning_rate is None and options.preset != "light":
        # Its own order of the chips: that of the training must not depend on the search.
        tried = training_loader(DrawSampler(len(train_set), seed=parameters.seed + 1))
        rate = module.learning_rate = agree(find_learning_rate(module, tried, device, exactness))

    curves = Curves(lambda row, epoch: tracker.metrics(_plain(row), epoch), progress)
    best = BestWeights(parameters.monitor, patience=PATIENCE if parameters.stop_training else None)
    keeping = KeepCheckpoints(
        checkpoints,
        sampler,
        batch_size=batch,
        learning_rate=rate,
        seconds=60.0 * parameters.checkpoint_minutes,
        budget=budget,
        seed=parameters.seed,
        work=work,
    )
    callbacks: list[lightning.Callback] = [InStep(budget)] if together.world > 1 else []
    callbacks.append(Validations(budget))
    if parameters.unfreeze_after_epochs is not None:
        callbacks.append(Thaw(parameters.unfreeze_after_epochs))
    trainer = make_trainer(
        parameters,
        [*callbacks, TimeBudget(budget), best, curves, keeping],
        accelerator=accelerator,
        together=together,
        work=work,
    )
    started = time.monotonic()
    with without_determinism() as operators:
        trainer.fit(module, training_loader(sampler), validation_loader, ckpt_path=resumed, weights_only=True)
    seconds_taken = time.monotonic() - started
    epochs, steps_done = trainer.current_epoch, module.steps_done
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
            "copies": len(leaked.copies) if leaked.compared else None,
            "buffer": split.buffer,
            "split_by": split.by,
        },
        "validation_digest": validation_digest(chips, split),
        "doubts": doubts,
        "epochs": epochs,
        "steps": steps_done,
        "stopped_early": best.stopped_early,
        "device": trainer.strategy.root_device.type,
        "arithmetic": str(trainer.precision),
        "learning_rate": rate,
        "batch_size": batch,
        "processes": together.world,
        "first_weights": first_weights,
        "seed": parameters.seed,
        "not_deterministic": sorted(operators),
        "versions": versions(),
    }
    learnt = steps_done * batch * parameters.accumulate_batches * together.world
    effort = {"train_seconds": seconds_taken, "chips_per_second": learnt / max(seconds_taken, 1e-9)}
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
        times=curves.times,
        validation=validation,
    )


def make_loader(
    samples: Samples,
    order: DrawSampler | Sequence[tuple[int, int]],
    batch_size: int,
    accelerator: str,
    collate: Callable[[list[Any]], Any],
    *,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """Batches of samples.

    Args:
        order: (index, draw) pairs: all that decides what a sample looks like.
        accelerator: a GPU is fed by processes of its own.
    """
    return DataLoader(
        samples,
        sampler=cast(Any, order),
        batch_size=batch_size,
        num_workers=_GPU_LOADERS if accelerator == "gpu" else 0,
        collate_fn=collate,
        drop_last=drop_last,
    )


def make_trainer(
    parameters: TrainParameters,
    callbacks: list[lightning.Callback],
    *,
    accelerator: str,
    together: Group,
    work: Path,
) -> lightning.Trainer:
    """Lightning's trainer as a training uses it.

    Args:
        callbacks: one of them says when to validate.
        work: a local folder.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for known in (
        "You're resuming from a checkpoint that ended before",  # the sampler knows its place
        r"Found \d+ module\(s\) in eval mode at the start of training",  # a frozen encoder
        r"Using `DistributedSampler` with the dataloaders",  # every process validates all chips
    ):
        warnings.filterwarnings("ignore", message=known)
    return lightning.Trainer(
        max_epochs=parameters.max_epochs,
        precision=precision_of(parameters, accelerator),
        callbacks=callbacks,
        check_val_every_n_epoch=NEVER,
        # Networks that take turns see to both themselves.
        accumulate_grad_batches=1 if parameters.kind in ADVERSARIAL else parameters.accumulate_batches,
        gradient_clip_val=None if parameters.kind in ADVERSARIAL else _GRADIENT_NORM,
        default_root_dir=work,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=True if parameters.deterministic else "warn",
        **placement(accelerator, together),
    )


def _validation_values(module: TrainingModule) -> dict[str, Any]:
    return {
        **{name.lower(): _number(value) for name, value in module.measured.items()},
        "per_class": {
            name: {key: _number(value) for key, value in values.items()}
            for name, values in module.per_class.items()
        },
    }


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
