"""The first weights of a training: of a package to go on with, of the encoder alone, or random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from tasks.errors import BadInputError
from tasks.package.dlpk import Package
from tasks.train.models.encoder_weights import EncoderStart
from tasks.train.models.encoders import start_encoder
from tasks.train.parameters import TrainParameters

_NAMED = 3  # tensors that a message names


@dataclass(frozen=True)
class Beginning:
    """What a training starts from, on this machine.

    Attributes:
        package: whose weights it goes on with, checked and trusted; None: it starts anew.
        encoder: where the encoder's weights come from otherwise.
    """

    package: Package | None = None
    encoder: EncoderStart = field(default_factory=EncoderStart)


def begin(
    network: nn.Module,
    encoder: nn.Module,
    parameters: TrainParameters,
    *,
    pretrained: bool,
    classes: Sequence[str],
    bands: Sequence[str],
    beginning: Beginning,
) -> str:
    """Put the first weights into a network, and say which they are.

    Args:
        network: with random weights.
        encoder: the part of it that a backbone's weights go to.
        pretrained: whether the encoder starts from trained weights at all.
        classes: names of the classes that are trained.
        bands: names of the bands.

    Raises:
        BadInputError: weights cannot be had or do not fit.
    """
    if beginning.package is not None:
        return _go_on(network, beginning.package, classes)
    if not pretrained:
        own = parameters.custom_model is not None
        return "the weights that the model of one's own brings" if own else "random weights, as asked"
    start = beginning.encoder
    if parameters.freeze_model:
        start = replace(start, or_random=False)  # random weights that stay would teach nothing
    return start_encoder(
        encoder,
        parameters.backbone_model,
        bands=bands,
        scheme=parameters.weight_init_scheme,
        start=start,
    )


def _go_on(network: nn.Module, package: Package, classes: Sequence[str]) -> str:
    assert package.weights_path is not None  # checked when the training was planned
    given: dict[str, Tensor] = torch.load(package.weights_path, map_location="cpu", weights_only=True)
    theirs = [item.name for item in package.definition.classes or []]
    heads = fit_weights(network, given, before=len(theirs), now=len(classes), name=package.name)
    text = f"all weights of the package {package.name} (SHA-256 {package.digest})"
    if heads:
        text = (
            f"weights of the package {package.name} (SHA-256 {package.digest}), all but those of the heads, "
            f"which start afresh for {len(classes)} classes in place of {len(theirs)}: {', '.join(heads)}"
        )
    elif list(classes) != theirs:
        text += f"; its classes were {', '.join(theirs)}, now they are {', '.join(classes)}"
    return text


def fit_weights(
    network: nn.Module, given: Mapping[str, Tensor], *, before: int, now: int, name: str
) -> list[str]:
    """Put a package's weights into a network; layers whose size follows from the classes may differ.

    Args:
        before, now: number of classes of the package and of the network.
        name: of the package, for messages.

    Returns:
        The tensors that keep the weights they had, as they are of another number of classes.

    Raises:
        BadInputError: the networks differ in more than that.
    """
    own = network.state_dict()
    odd = sorted(set(own) ^ set(given))
    misfits = [key for key in own if key in given and own[key].shape != given[key].shape]
    other = [key for key in misfits if not _of_classes(given[key].shape, own[key].shape, before, now)]
    if odd or other:
        told = [f"{key} {list(given[key].shape)} for {list(own[key].shape)}" for key in other] or odd
        raise BadInputError(
            f"The network of the package {name} differs from the one that is trained: "
            f"{', '.join(told[:_NAMED])}.",
            "Give the model arguments (preset, width, levels, …) and bands that it was trained with, "
            "or train anew.",
        )
    network.load_state_dict({**own, **{key: given[key] for key in given if key not in misfits}})
    return misfits


def _of_classes(theirs: torch.Size, ours: torch.Size, before: int, now: int) -> bool:
    """Whether two shapes differ only as the numbers of classes do, with the background or without it."""
    if len(theirs) != len(ours):
        return False
    return any(
        all(
            a == b
            or (before + more > 0 and a % (before + more) == 0 and a // (before + more) * (now + more) == b)
            for a, b in zip(theirs, ours, strict=True)
        )
        for more in (0, 1)
    )
