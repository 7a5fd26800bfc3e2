"""Lightning modules: what a step learns and what a validation measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.assess.calibration import Calibration
from tasks.assess.chips import Intervals, object_intervals, pixel_intervals
from tasks.assess.objects import (
    Detections,
    Matches,
    Overlaps,
    Truths,
    coco_precision,
    find_overlaps,
    match_objects,
    mean_or_nan,
    ratio,
)
from tasks.labels import ClassSchema
from tasks.train.datasets import IGNORED, Target
from tasks.train.mixup import mix
from tasks.train.models.options import BoxOptions, ClassifierOptions, PixelOptions
from tasks.train.schedule import Budget, one_cycle
from tasks.train.scores import (
    chip_objects,
    chosen_labels,
    label_counts,
    label_scores,
    mask_overlaps,
    pixel_scores,
    score_chips,
)

_ENCODER_SHARE = 0.5  # of the learning rate: ImageNet weights move less than new ones
_WEIGHT_DECAY = 0.05


class TrainingModule(lightning.LightningModule):
    """Shared by all kinds: optimiser, schedule, frozen encoder, measured values.

    Args:
        network: what is trained and packaged.
        encoder: the part of it that starts from ImageNet weights.
        learning_rate: largest value of the schedule.
        budget: where the training stands.
        freeze: leave the encoder as it is.
        thaws: only for a while, see :meth:`thaw`.
    """

    # Learning rate where none is given; None: it is looked for.
    usual_rate: float | None = None
    # Optimisers that take turns: Lightning counts the steps of each.
    optimizer_count = 1
    # Batches whose gradients are added up before a step, where steps are taken by hand.
    accumulate_batches = 1
    # Whether the best validation tells the best weights; else the last ones are kept.
    selects_best = True

    def __init__(
        self,
        network: nn.Module,
        *,
        encoder: nn.Module,
        learning_rate: float,
        budget: Budget,
        freeze: bool,
        thaws: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.budget = budget
        self.freeze_encoder = freeze
        self.thaws = thaws
        self.measured: dict[str, float] = {}
        self.per_class: dict[str, dict[str, float]] = {}
        self.calibration = Calibration()
        self._encoder = [encoder]  # in a list: it is registered once, inside the network
        if freeze:
            encoder.requires_grad_(False)
            encoder.eval()  # Lightning leaves the modes as they are
        self._validation_losses: list[float] = []

    @property
    def encoder(self) -> nn.Module:
        """The part of the network that starts from ImageNet weights."""
        return self._encoder[0]

    @property
    def encoders(self) -> list[nn.Module]:
        """The same, one by one."""
        return [self.encoder]

    @property
    def steps_done(self) -> int:
        """Training steps until now."""
        return self.trainer.global_step // self.optimizer_count

    def thaw(self) -> None:
        """From here on the encoder learns, too."""
        self.freeze_encoder = False
        self.encoder.requires_grad_(True)
        self.encoder.train(self.training)

    def train(self, mode: bool = True) -> TrainingModule:
        super().train(mode)
        if self.freeze_encoder:
            self._encoder[0].eval()  # running statistics of its normalisation stay, too
        return self

    def configure_optimizers(self) -> Any:
        encoder = {id(parameter) for parameter in self._encoder[0].parameters()}
        # Parameters without a gradient stay as they are, so that an encoder that thaws later can be in it.
        parameters = [
            p for p in self.network.parameters() if p.requires_grad or (self.thaws and id(p) in encoder)
        ]
        groups = [
            {
                "params": [p for p in parameters if id(p) in encoder],
                "lr": self.learning_rate * _ENCODER_SHARE,
            },
            {"params": [p for p in parameters if id(p) not in encoder], "lr": self.learning_rate},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: one_cycle(self.budget.fraction(step))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loss_of(self, batch: Any) -> tuple[Tensor, int]:
        """The loss of a training batch, and of how many chips it is."""
        raise NotImplementedError

    def training_step(self, batch: Any, _index: int) -> Tensor:
        loss, chips = self.loss_of(batch)
        self.log("train_loss", loss, batch_size=chips, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._validation_losses = []
        self.calibration = Calibration()

    def chip_errors(self) -> npt.NDArray[np.float64]:
        """How wrong each validation chip is, in their order, larger is worse  # (chips,)."""
        raise NotImplementedError

    def final_values(self, blocks: npt.NDArray[np.int64]) -> tuple[dict[str, float], Intervals]:
        """What is computed once, of the best weights: further values, and intervals.

        Args:
            blocks: of ground, of each validation chip  # (chips,)
        """
        raise NotImplementedError

    def finish_validation(self, values: Mapping[str, float]) -> None:
        """Keep the values of this validation and log them."""
        self.measured = {"VALID_LOSS": float(np.mean(self._validation_losses or [np.nan])), **values}
        self.log_dict({name.lower(): value for name, value in self.measured.items()})


class PixelModule(TrainingModule):
    """Trains a network that gives logits (n, background and classes, rows, cols)."""

    def __init__(
        self,
        network: nn.Module,
        *,
        options: PixelOptions,
        schema: ClassSchema,
        class_weights: Sequence[float] | None,
        **shared: Any,
    ) -> None:
        super().__init__(network, **shared)
        self.options = options
        self.schema = schema
        self.class_weights: Tensor | None
        self.register_buffer(
            "class_weights",
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32),
            persistent=False,
        )
        self.confusion = np.zeros((len(schema) + 1, len(schema) + 1), dtype=np.int64)
        self.confusions: list[npt.NDArray[np.int64]] = []  # one per validation chip

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (or focal loss), and soft Dice; unknown pixels count nowhere."""
        logits = logits.float()
        known = labels != IGNORED
        if not bool(known.any()):
            return logits.sum() * 0.0
        entropy = functional.cross_entropy(
            logits, labels, weight=self.class_weights, ignore_index=IGNORED, reduction="none"
        )
        if self.options.focal_loss:
            certainty = torch.exp(
                -functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
            )
            entropy = entropy * (1.0 - certainty) ** 2
        weights = known.float()
        if self.class_weights is not None:
            weights = weights * self.class_weights[labels.where(known, torch.zeros_like(labels))]
        result = entropy.sum() / weights.sum().clamp(min=1e-6)
        if self.options.dice_loss:
            result = result + _dice_loss(logits, labels, known)
        return result

    def learnt(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of a batch, and the loss that training lessens and validation measures."""
        scores = self.network(images.contiguous(memory_format=torch.channels_last))
        return scores, self.loss(scores, labels)

    def loss_of(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        images, labels = batch
        if not self.options.mixup:
            return self.learnt(images, labels)[1], len(images)
        mixed, partner, share = mix(images)
        scores = self.network(mixed.contiguous(memory_format=torch.channels_last))
        others = labels[partner]
        # A pixel that is unknown in one of the two is half unknown in the mixture.
        unknown = (labels == IGNORED) | (others == IGNORED)
        first, second = (self.loss(scores, part.masked_fill(unknown, IGNORED)) for part in (labels, others))
        return share * first + (1.0 - share) * second, len(images)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.confusion = np.zeros_like(self.confusion)
        self.confusions = []

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        images, labels = batch
        logits, loss = self.learnt(images, labels)
        self._validation_losses.append(float(loss))
        confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
        size = len(self.confusion)
        for truth, found, sure in zip(labels, predicted, confidence, strict=True):
            known = truth != IGNORED
            self.confusions.append(label_counts(truth, found, size))
            self.confusion += self.confusions[-1]
            self.calibration.add(sure[known].cpu().numpy(), (truth == found)[known].cpu().numpy())

    def chip_errors(self) -> npt.NDArray[np.float64]:
        return np.array([1.0 - ratio(float(np.trace(part)), float(part.sum())) for part in self.confusions])

    def final_values(self, blocks: npt.NDArray[np.int64]) -> tuple[dict[str, float], Intervals]:
        names = ["Background", *self.schema.names]
        intervals = pixel_intervals(np.stack(self.confusions), blocks, names)
        return {"calibration_error": self.calibration.error}, intervals

    def on_validation_epoch_end(self) -> None:
        values, self.per_class = pixel_scores(self.confusion, self.schema)
        self.finish_validation(values)


class ObjectModule(TrainingModule):
    """Trains a detector: one of torchvision's, or what takes and gives what those do."""

    def __init__(
        self, network: nn.Module, *, options: BoxOptions, schema: ClassSchema, **shared: Any
    ) -> None:
        super().__init__(network, **shared)
        self.options = options
        self.schema = schema
        self.chips: list[Matches] = []
        self.parts: list[tuple[Detections, Truths]] = []
        self.overlaps: list[Overlaps] = []

    def loss_of(self, batch: tuple[list[Tensor], list[Target]]) -> tuple[Tensor, int]:
        images, targets = batch
        losses: dict[str, Tensor] = self.network(images, targets)
        return torch.stack(list(losses.values())).sum(), len(images)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.chips, self.parts, self.overlaps = [], [], []

    def validation_step(self, batch: tuple[list[Tensor], list[Target]], _index: int) -> None:
        images, targets = batch
        with _giving_losses(self.network):
            losses: dict[str, Tensor] = self.network(images, targets)
        self._validation_losses.append(float(torch.stack(list(losses.values())).sum()))
        for image, found, target in zip(images, self.network(images), targets, strict=True):
            part = chip_objects(found, target, rows=image.shape[-2], cols=image.shape[-1])
            pairs = self.overlaps_of(part, found, target)
            self.parts.append(part)
            self.overlaps.append(pairs)
            self.chips.append(match_objects(*part, self.options.detect_min_iou, overlaps=pairs))

    def overlaps_of(self, part: tuple[Detections, Truths], found: Target, target: Target) -> Overlaps:  # noqa: ARG002
        """By how much the objects found in a chip overlap those that are there."""
        return find_overlaps(*part)

    def chip_errors(self) -> npt.NDArray[np.float64]:
        threshold = self.measured["THRESHOLD"]
        errors = []
        for chip in self.chips:
            sure = chip.counted & (chip.scores >= threshold)
            hits = np.count_nonzero(sure & (chip.truth >= 0))
            errors.append(np.count_nonzero(sure) + np.count_nonzero(chip.truth_counted) - 2 * hits)
        return np.array(errors, np.float64)

    def final_values(self, blocks: npt.NDArray[np.int64]) -> tuple[dict[str, float], Intervals]:
        labels = list(range(1, len(self.schema) + 1))
        every = Matches.joined(self.chips)
        self.calibration = Calibration()
        self.calibration.add(every.scores[every.counted], every.truth[every.counted] >= 0)
        coco = coco_precision(self.parts, overlaps=self.overlaps)
        values = {
            "calibration_error": self.calibration.error,
            "coco_map": mean_or_nan(list(coco.values())),
        }
        for label, name in zip(labels, self.schema.names, strict=True):
            self.per_class[name]["coco_ap"] = coco.get(label, float("nan"))
        return values, object_intervals(self.chips, blocks, labels, self.schema.names)

    def on_validation_epoch_end(self) -> None:
        values, self.per_class = score_chips(self.chips, self.schema)
        self.finish_validation(values)


class QueryModule(ObjectModule):
    """Trains a detector that answers queries; attention does not bear the rates that convolutions do."""

    usual_rate = 5e-4


class InstanceModule(ObjectModule):
    """Trains torchvision's Mask R-CNN; objects match by the overlap of their masks."""

    def overlaps_of(self, part: tuple[Detections, Truths], found: Target, target: Target) -> Overlaps:
        return mask_overlaps(find_overlaps(*part), found["masks"][:, 0] >= 0.5, target["masks"].bool())


class LabelModule(TrainingModule):
    """Trains a network that gives logits (n, classes) of whole chips.

    Args:
        several: a chip may have several classes, or none; else each has one.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        options: ClassifierOptions,
        schema: ClassSchema,
        several: bool,
        **shared: Any,
    ) -> None:
        super().__init__(network, **shared)
        self.options = options
        self.schema = schema
        self.several = several
        self._scores: list[Tensor] = []
        self._truths: list[Tensor] = []

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy with smoothed truth; of several classes, the mean of that of each."""
        smoothing = self.options.label_smoothing
        if self.several:
            smooth = truth * (1.0 - smoothing) + 0.5 * smoothing
            return functional.binary_cross_entropy_with_logits(logits.float(), smooth)
        return functional.cross_entropy(logits.float(), truth, label_smoothing=smoothing)

    def loss_of(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        images, truth = batch
        if self.options.mixup:
            images, partner, share = mix(images)
            truth = share * truth + (1.0 - share) * truth[partner]
        return self.learnt(images, truth)[1], len(images)

    def learnt(self, images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of a batch, and the loss that training lessens and validation measures."""
        scores = self.network(images.contiguous(memory_format=torch.channels_last))
        return scores, self.loss(scores, truth)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._scores, self._truths = [], []

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        images, truth = batch
        logits, loss = self.learnt(images, truth)
        self._validation_losses.append(float(loss))
        self._scores.append(self.probabilities(logits.float()).cpu())
        self._truths.append(truth.cpu())

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class for each chip  # (n, classes)."""
        return torch.sigmoid(logits) if self.several else torch.softmax(logits, dim=1)

    def classes_of(self, logits: Tensor) -> npt.NDArray[np.bool_]:
        """The classes that each chip is given  # (n, classes)."""
        return chosen_labels(self.probabilities(logits).cpu().numpy(), several=self.several)

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Chips by true (rows) and predicted class, of chips with one class each."""
        scores, truth = self.validated
        size = truth.shape[1]
        pairs = truth.argmax(axis=1) * size + scores.argmax(axis=1)
        return np.bincount(pairs, minlength=size * size).reshape(size, size)

    @property
    def validated(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Scores and truth of the validation chips, in their order  # (n, classes) both."""
        return torch.cat(self._scores).numpy(), torch.cat(self._truths).numpy() > 0.5

    def chip_errors(self) -> npt.NDArray[np.float64]:
        scores, truth = self.validated
        return np.asarray(np.abs(scores - truth).max(axis=1), np.float64)

    def final_values(self, blocks: npt.NDArray[np.int64]) -> tuple[dict[str, float], Intervals]:
        scores, truth = self.validated
        calibration = self.calibration = Calibration()
        if self.several:
            chosen = chosen_labels(scores, several=True)
            calibration.add(np.where(chosen, scores, 1 - scores).ravel(), (chosen == truth).ravel())
            return {"calibration_error": calibration.error}, {}
        best = scores.argmax(axis=1)
        calibration.add(scores.max(axis=1), truth[np.arange(len(best)), best])
        size = truth.shape[1]
        each = np.zeros((len(best), size + 1, size + 1), np.int64)
        each[np.arange(len(best)), truth.argmax(axis=1) + 1, best + 1] = 1
        intervals = pixel_intervals(each, blocks, ["", *self.schema.names])
        del intervals[""]
        return {"calibration_error": calibration.error}, intervals

    def on_validation_epoch_end(self) -> None:
        values, self.per_class = label_scores(*self.validated, self.schema, several=self.several)
        self.finish_validation(values)


@contextmanager
def _giving_losses(detector: nn.Module) -> Iterator[None]:
    """torchvision computes losses in training mode only; the detector's layers stay in evaluation mode."""
    parts = [detector, *(getattr(detector, name, None) for name in ("rpn", "roi_heads"))]
    chosen = [part for part in parts if part is not None]
    try:
        for part in chosen:
            part.training = True
        yield
    finally:
        for part in chosen:
            part.training = False


def _dice_loss(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """1 - soft Dice, averaged over the labels that occur (Milletari et al., "V-Net", 2016)."""
    classes = logits.shape[1]
    truth = functional.one_hot(labels.where(known, torch.zeros_like(labels)), classes).movedim(-1, 1)
    mask = known[:, None].float()
    truth = truth.float() * mask
    scores = logits.softmax(dim=1) * mask
    both = (scores * truth).sum(dim=(0, 2, 3))
    total = scores.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    dice = (2.0 * both + 1.0) / (total + 1.0)
    return 1.0 - dice[present].mean()
