"""Models of one's own: an installed Python package offers them through the entry points ``chipline.models``.

The name of an entry point says what the model predicts and how it is called: ``pixels.my_net`` or
``labels.my_net``. It names a callable that takes a :class:`ModelRequest` and gives the network, an
``nn.Module``; or a ``LightningModule``, whose ``training_step`` and ``configure_optimizers`` are then used.
Splitting, validating, measuring and packaging stay what they are. See docs/training.md, "Your own model".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pytorch_lightning as lightning
from torch import Tensor, nn

from tasks.errors import BadInputError
from tasks.train.models.arguments import LOSS
from tasks.train.models.options import AnyOptions, PixelOptions, own_arguments
from tasks.train.modules import LabelModule, PixelModule, TrainingModule
from tasks.train.parameters import TrainParameters

GROUP = "chipline.models"


@dataclass(frozen=True)
class ModelRequest:
    """What a model is asked for.

    Attributes:
        bands: names of the input bands, in their order.
        classes: names of the classes, in the order of the scores.
        channels: number of scores: of pixels the background and the classes, of labels the classes.
        backbone_model: as given, empty where none was; a model may take no notice.
        learning_rate: as given, else 0.004.
        arguments: the model arguments, name to text, but for those of Chipline's own loss
            (:data:`tasks.train.models.arguments.CUSTOM`).
    """

    bands: tuple[str, ...]
    classes: tuple[str, ...]
    channels: int
    backbone_model: str
    learning_rate: float
    arguments: Mapping[str, str]


class OwnSteps(TrainingModule):
    """Learns as the network itself says, where it is a LightningModule that says so."""

    def loss_of(self, batch: Any) -> tuple[Tensor, int]:
        if not _says(self.network, "training_step"):
            return super().loss_of(batch)
        found: Any = self.network.training_step(batch, 0)  # type: ignore[operator]
        return _loss_in(found), len(batch[0])

    def own_loss(self, batch: Any, chiplines: Tensor) -> Tensor:
        """The loss of a validation batch: the network's own, where it says so, else Chipline's."""
        if not _says(self.network, "validation_step"):
            return chiplines
        found: Any = self.network.validation_step(batch, 0)  # type: ignore[operator]
        return chiplines if found is None else _loss_in(found)  # None: it only logs

    def configure_optimizers(self) -> Any:
        if not _says(self.network, "configure_optimizers"):
            return super().configure_optimizers()
        return self.network.configure_optimizers()  # type: ignore[operator]


class OwnPixelModule(OwnSteps, PixelModule):
    """Of a network of one's own for pixels."""

    def learnt(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores, loss = super().learnt(images, labels)
        return scores, loss if self.training else self.own_loss((images, labels), loss)


class OwnLabelModule(OwnSteps, LabelModule):
    """Of a network of one's own for whole chips."""

    def learnt(self, images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        scores, loss = super().learnt(images, truth)
        return scores, loss if self.training else self.own_loss((images, truth), loss)


def find_entry(name: str) -> EntryPoint:
    """The entry point of a model; nothing of it is loaded.

    Raises:
        BadInputError: no installed package offers it.
    """
    found = entry_points(group=GROUP)
    for entry in found:
        if entry.name == name:
            return entry
    raise BadInputError(
        f"No installed package offers the model {name!r} (entry points {GROUP}).",
        f"There are: {', '.join(sorted(entry.name for entry in found)) or 'none'}. Install the package where "
        "flows and workers run.",
    )


def build_custom(
    parameters: TrainParameters, *, classes: Sequence[str], bands: Sequence[str], learning_rate: float
) -> nn.Module:
    """The network of ``custom_model``, ready to train.

    Raises:
        BadInputError: there is none, or it does not give a network.
    """
    assert parameters.custom_model is not None
    entry = find_entry(parameters.custom_model)
    request = ModelRequest(
        bands=tuple(bands),
        classes=tuple(classes),
        channels=len(classes) + (parameters.kind == "pixels"),
        backbone_model=parameters.backbone,
        learning_rate=learning_rate,
        arguments=own_arguments(parameters),
    )
    network = entry.load()(request)
    if not isinstance(network, nn.Module):
        raise BadInputError(
            f"{entry.value} gave {type(network).__name__} for {parameters.custom_model}, not a network.",
            "Let it return a torch.nn.Module or a LightningModule.",
        )
    if _says(network, "training_step"):
        _refuse_losses(parameters)
    if isinstance(network, lightning.LightningModule):
        # It is a part of the module that Lightning trains, and what it logs has no place there.
        network.__dict__["log"] = network.__dict__["log_dict"] = _nothing
    if parameters.freeze_model and not isinstance(getattr(network, "encoder", None), nn.Module):
        raise BadInputError(
            f"freeze_model freezes the encoder, but the model {parameters.custom_model} has none.",
            "Name the part that is to stay as it is `encoder`, or leave freeze_model out.",
        )
    return network


def module_of(
    network: nn.Module,
    options: AnyOptions,
    *,
    class_weights: Sequence[float] | None,
    several: bool,
    **shared: Any,
) -> TrainingModule:
    """The module that trains a network of one's own.

    Args:
        class_weights: of pixels.
        several: of labels: a chip may have several.
    """
    encoder = getattr(network, "encoder", None)
    shared = {
        "options": options,
        "encoder": encoder if isinstance(encoder, nn.Module) else nn.Identity(),
        **shared,
    }
    module: TrainingModule
    if isinstance(options, PixelOptions):
        module = OwnPixelModule(network, class_weights=class_weights, **shared)
    else:
        module = OwnLabelModule(network, several=several, **shared)
    if _says(network, "configure_optimizers"):
        module.usual_rate = module.learning_rate  # its optimiser is its own affair: no rate is looked for
    return module


def _refuse_losses(parameters: TrainParameters) -> None:
    """Refuse arguments of Chipline's loss, where the network has one of its own."""
    for argument in parameters.model_arguments:
        if argument.name in LOSS:
            raise BadInputError(
                f"The model {parameters.custom_model} has a training_step of its own, for which "
                f"{argument.name} means nothing.",
                f"Leave {argument.name} out, or let the model read an argument of another name.",
            )


def _loss_in(found: Any) -> Tensor:
    loss: Tensor = found["loss"] if isinstance(found, Mapping) else found
    return loss


def _says(network: nn.Module, method: str) -> bool:
    """Whether a network is a LightningModule with a method of its own."""
    if not isinstance(network, lightning.LightningModule):
        return False
    return getattr(type(network), method) is not getattr(lightning.LightningModule, method)


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a module's own logging."""
