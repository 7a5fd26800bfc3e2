"""Lightning modules of networks that make pictures: from coarse ones, from others of the same place, from
others of another place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.assess.chips import Intervals
from tasks.assess.pictures import PictureErrors
from tasks.train.models.options import (
    CycleOptions,
    HighResolutionOptions,
    ImageOptions,
    TranslationOptions,
)
from tasks.train.models.translation import BothWays, PatchDiscriminator, PyramidDiscriminator
from tasks.train.modules import TrainingModule
from tasks.train.normalisation import Normalisation
from tasks.train.schedule import one_cycle

_GAN_RATE = 2e-4  # of both papers
_GAN_BETAS = (0.5, 0.999)
_GRADIENT_NORM = 10.0


class ImageModule(TrainingModule):
    """Trains a network that gives the target picture, by the mean absolute error.

    Args:
        bands: names of the output's.
        normalisation: of the input.
        output: of the target.
        compared: also measure how far the input itself is from the target: what the network adds is worth
            what it adds to that.
    """

    usual_rate = 1e-3

    def __init__(
        self,
        network: nn.Module,
        *,
        options: ImageOptions,
        bands: Sequence[str],
        normalisation: Normalisation,
        output: Normalisation,
        compared: bool,
        **shared: Any,
    ) -> None:
        super().__init__(network, **shared)
        self.options = options
        self.bands = tuple(bands)
        self.normalisation = normalisation
        self.output = output
        self.compared = compared
        self._errors: list[PictureErrors] = []
        self._before: list[PictureErrors] = []

    def made(self, images: Tensor) -> Tensor:
        """What the network makes of pictures, normalised as the target is  # (n, bands, rows, cols)."""
        made: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return made

    def loss_of(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        images, target = batch
        return absolute_error(self.made(images), target), len(images)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._errors, self._before = [], []

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        images, target = batch
        made = self.made(images).float()
        self._validation_losses.append(float(absolute_error(made, target)))
        self._errors.append(picture_errors(made, target, self.output, self.output))
        if self.compared:
            self._before.append(picture_errors(images, target, self.normalisation, self.output))

    @property
    def errors(self) -> PictureErrors:
        """Of the validation chips, in their order."""
        return PictureErrors.joined(self._errors)

    def chip_errors(self) -> npt.NDArray[np.float64]:
        return self.errors.worst()

    def final_values(self, blocks: npt.NDArray[np.int64]) -> tuple[dict[str, float], Intervals]:
        return {}, self.errors.intervals(blocks, self.bands)

    def on_validation_epoch_end(self) -> None:
        values, self.per_class = self.errors.scores(self.bands)
        if self.compared:
            before, _ = PictureErrors.joined(self._before).scores(self.bands)
            values |= {f"{name}_of_input": value for name, value in before.items()}
        self.finish_validation({name.upper(): value for name, value in values.items()})


class _Adversarial(TrainingModule):
    """Shared: generators and those that judge them learn in turns, each with its own optimiser."""

    usual_rate = _GAN_RATE
    optimizer_count = 2
    judges: nn.Module

    def turns(self) -> None:
        """Steps are taken by hand."""
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        optimizers = [
            torch.optim.Adam(
                [p for p in part.parameters() if p.requires_grad or (self.thaws and part is self.network)],
                lr=self.learning_rate,
                betas=_GAN_BETAS,
            )
            for part in (self.network, self.judges)
        ]
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(one, lambda step: one_cycle(self.budget.fraction(step)))
            for one in optimizers
        ]
        return optimizers, schedules

    def in_turns(self, generators: Any, judges: Any, chips: int, index: int) -> dict[str, Tensor]:
        """The gradients of both sides for one batch, and a step of each where enough are added up.

        Args:
            generators: computes their loss, and what the judges are to see of it.
            judges: computes their loss from that.
            index: of the batch in its epoch.
        """
        share = 1.0 / self.accumulate_batches
        due = (index + 1) % self.accumulate_batches == 0 or self.trainer.is_last_batch
        ours, theirs = cast("list[Any]", self.optimizers())
        self.judges.requires_grad_(False)
        loss, seen = generators()
        self.manual_backward(share * loss)
        if due:
            self._step(ours)
        self.judges.requires_grad_(True)
        self.manual_backward(share * judges(seen))
        if due:
            self._step(theirs)
            for schedule in cast("list[Any]", self.lr_schedulers()):
                schedule.step()
        self.log("train_loss", loss, batch_size=chips, on_step=False, on_epoch=True, sync_dist=True)
        return {"loss": loss.detach()}

    def _step(self, optimizer: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=_GRADIENT_NORM, gradient_clip_algorithm="norm")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class PairedModule(_Adversarial, ImageModule):
    """PIX2PIX: the target, and what a judge takes for it (Isola et al., 2017).

    The judge sees input and picture together. Its loss is of least squares (Mao et al., 2017).
    """

    def __init__(self, network: nn.Module, *, options: TranslationOptions, **given: Any) -> None:
        super().__init__(network, options=options, compared=False, **given)
        self.weight = options.l1_weight
        self.judges = self.judges_of(len(given["normalisation"].mean) + len(given["output"].mean))
        self.turns()

    def judges_of(self, bands: int) -> nn.Module:
        """What judges pairs of so many bands together."""
        return PatchDiscriminator(bands, cast(TranslationOptions, self.options).discriminator)

    def convincing(self, images: Tensor, target: Tensor, made: Tensor) -> Tensor:  # noqa: ARG002
        """How far the judges are from taking ``made`` for real; ``target`` is known everywhere."""
        return fooled(self.judges(torch.cat([images, made], dim=1)))

    def telling(self, images: Tensor, target: Tensor, made: Tensor) -> Tensor:
        """How far the judges are from telling both apart."""
        return told_apart(*(self.judges(torch.cat([images, one], dim=1)) for one in (target, made)))

    def _generated(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        made = self.made(images)
        loss = self.weight * absolute_error(made, target)
        return loss + self.convincing(images, _completed(target, made), made), made.detach()

    def loss_of(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return self._generated(*batch)[0], len(batch[0])

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Any:
        images, target = batch

        def judges(made: Tensor) -> Tensor:
            return self.telling(images, _completed(target, made), made)

        return self.in_turns(lambda: self._generated(images, target), judges, len(images), index)


class HighResolutionModule(PairedModule):
    """PIX2PIXHD: several judges, and the pictures are to look alike to their layers (Wang et al., 2018)."""

    def judges_of(self, bands: int) -> nn.Module:
        options = cast(HighResolutionOptions, self.options)
        return PyramidDiscriminator(bands, options.discriminator, options.discriminators)

    def convincing(self, images: Tensor, target: Tensor, made: Tensor) -> Tensor:
        found = self.judges(torch.cat([images, made], dim=1))
        loss = torch.stack([fooled(layers[-1]) for layers in found]).mean()
        weight = cast(HighResolutionOptions, self.options).feature_weight
        if weight > 0:
            with torch.no_grad():
                wanted = self.judges(torch.cat([images, target], dim=1))
            apart = [
                functional.l1_loss(ours.float(), theirs.float())
                for layers, real in zip(found, wanted, strict=True)
                for ours, theirs in zip(layers[:-1], real[:-1], strict=True)
            ]
            loss = loss + weight * torch.stack(apart).mean()
        return loss

    def telling(self, images: Tensor, target: Tensor, made: Tensor) -> Tensor:
        real, false = (self.judges(torch.cat([images, one], dim=1)) for one in (target, made))
        pairs = zip(real, false, strict=True)
        return torch.stack([told_apart(ours[-1], theirs[-1]) for ours, theirs in pairs]).mean()


class CycleModule(_Adversarial):
    """CYCLEGAN: two generators that undo each other, and a judge of each side (Zhu et al., 2017).

    There is no truth to compare with: what is measured is how well a picture survives the way there and
    back, and by how much it changes on the way. A network that changes nothing would be best at the first, so
    that the last weights are kept, not those of the best validation.

    Args:
        bands: names of both sides' bands.
        normalisation, output: of side A, of side B.
    """

    selects_best = False
    network: BothWays
    judges: nn.ModuleDict

    def __init__(
        self,
        network: BothWays,
        *,
        options: CycleOptions,
        bands: Sequence[str],
        normalisation: Normalisation,
        output: Normalisation,
        **shared: Any,
    ) -> None:
        super().__init__(network, **shared)
        self.options = options
        self.bands = tuple(bands)
        self.normalisation = normalisation
        self.output = output
        self.judges = nn.ModuleDict(
            {side: PatchDiscriminator(len(bands), options.discriminator) for side in ("a", "b")}
        )
        self.turns()
        self._errors: dict[str, list[PictureErrors]] = {"a": [], "b": []}
        self._changes: dict[str, list[float]] = {"a_to_b": [], "b_to_a": []}

    @property
    def encoders(self) -> list[nn.Module]:
        return [self.network.a_to_b.encoder, self.network.b_to_a.encoder]

    def _generated(self, a: Tensor, b: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        options, there, back = self.options, self.network.a_to_b, self.network.b_to_a
        made_b, made_a = there(a), back(b)
        loss = fooled(self.judges["b"](made_b)) + fooled(self.judges["a"](made_a))
        cycle = functional.l1_loss(back(made_b), a) + functional.l1_loss(there(made_a), b)
        loss = loss + options.cycle_weight * cycle
        if options.identity_weight > 0:
            same = functional.l1_loss(there(b), b) + functional.l1_loss(back(a), a)
            loss = loss + options.identity_weight * same
        return loss, {"a": (a, made_a.detach()), "b": (b, made_b.detach())}

    def loss_of(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        a, b = (side.contiguous(memory_format=torch.channels_last) for side in batch)
        return self._generated(a, b)[0], len(a)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Any:
        a, b = (side.contiguous(memory_format=torch.channels_last) for side in batch)

        def judges(seen: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
            losses = [
                told_apart(*(self.judges[side](picture) for picture in both)) for side, both in seen.items()
            ]
            return torch.stack(losses).sum()

        return self.in_turns(lambda: self._generated(a, b), judges, len(a), index)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._errors = {"a": [], "b": []}
        self._changes = {"a_to_b": [], "b_to_a": []}

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        a, b = batch
        there, back = self.network.a_to_b, self.network.b_to_a
        made_b, made_a = there(a), back(b)
        again = {
            "a": (back(made_b).float(), a, self.normalisation),
            "b": (there(made_a).float(), b, self.output),
        }
        for way, made, given in (("a_to_b", made_b, a), ("b_to_a", made_a, b)):
            self._changes[way].append(float(functional.l1_loss(made.float(), given)))
        losses = [float(functional.l1_loss(made, given)) for made, given, _ in again.values()]
        self._validation_losses.append(float(np.mean(losses)))
        for side, (made, given, scale) in again.items():
            self._errors[side].append(picture_errors(made, given, scale, scale))

    @property
    def errors(self) -> dict[str, PictureErrors]:
        """Of both ways there and back, by the side that they start on."""
        return {side: PictureErrors.joined(parts) for side, parts in self._errors.items()}

    def chip_errors(self) -> npt.NDArray[np.float64]:
        return np.asarray(np.mean([errors.worst() for errors in self.errors.values()], axis=0), np.float64)

    def final_values(self, blocks: npt.NDArray[np.int64]) -> tuple[dict[str, float], Intervals]:  # noqa: ARG002
        return {}, {}

    def on_validation_epoch_end(self) -> None:
        values: dict[str, float] = {}
        self.per_class = {}
        for side, errors in self.errors.items():
            all_bands, by_band = errors.scores(self.bands)
            values |= {f"{name}_{side}_again".upper(): value for name, value in all_bands.items()}
            self.per_class |= {f"{side.upper()} again: {band}": row for band, row in by_band.items()}
        values |= {f"CHANGE_{way}".upper(): float(np.mean(found)) for way, found in self._changes.items()}
        self.finish_validation(values)


def absolute_error(made: Tensor, target: Tensor) -> Tensor:
    """Its mean over the pixels that are known, that is, not NaN."""
    known = ~target.isnan()
    difference = torch.where(known, made.float() - target, torch.zeros_like(target)).abs()
    return difference.sum() / known.sum().clamp(min=1)


def _completed(target: Tensor, made: Tensor) -> Tensor:
    """The target, and what was made where it is not known (NaN)."""
    return torch.where(target.isnan(), made.detach(), target)


def fooled(scores: Tensor) -> Tensor:
    """How far a judge is from taking pictures for real (1)."""
    return ((scores.float() - 1.0) ** 2).mean()


def told_apart(real: Tensor, made: Tensor) -> Tensor:
    """How far a judge is from 1 for real pictures and 0 for made ones."""
    return 0.5 * (((real.float() - 1.0) ** 2).mean() + (made.float() ** 2).mean())


def picture_errors(
    made: Tensor, target: Tensor, made_scale: Normalisation, target_scale: Normalisation
) -> PictureErrors:
    """Errors of a batch, after both are back at the scale of their pixels.

    8-bit pictures are rounded and cut to 0-255, as the package's function does.

    Args:
        made, target: normalised; NaN where the target is not known  # (n, bands, rows, cols)
        made_scale, target_scale: by which normalisation.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    low, high = (
        torch.tensor(part, device=made.device)[:, None, None]
        for part in (target_scale.minimum, target_scale.maximum)
    )
    pixels, truth = _pixels(made.float(), made_scale), _pixels(target.float(), target_scale)
    if target_scale.imagenet:
        pixels = pixels.round().clamp(0, 255)
    pixels, truth = (pixels - low) / (high - low), (truth - low) / (high - low)
    known = ~truth.isnan()
    pixels, truth = (part.where(known, torch.zeros_like(part)) for part in (pixels, truth))
    count, bands = truth.shape[:2]
    flat = [part.reshape(count * bands, 1, *part.shape[2:]) for part in (pixels, truth)]
    similar = cast(Tensor, ssim(flat[0], flat[1], data_range=1.0, reduction="none")).reshape(count, bands)
    difference = pixels - truth

    def summed(values: Tensor) -> npt.NDArray[np.float64]:
        return values.double().sum(dim=(2, 3)).cpu().numpy()

    return PictureErrors(
        summed(difference**2),
        summed(difference.abs()),
        summed(known),
        similar.double().cpu().numpy(),
        np.subtract(target_scale.maximum, target_scale.minimum, dtype=np.float64),
    )


def _pixels(values: Tensor, scale: Normalisation) -> Tensor:
    factor, nothing = (
        torch.from_numpy(part).to(values.device)[:, None, None] for part in (scale.factor, scale.nothing)
    )
    return (values - nothing) / factor
