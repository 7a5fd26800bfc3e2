"""What a training ran with, so that it can be repeated."""

from __future__ import annotations

import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distributions, version
from typing import Any

import torch

# What decides a network's numbers; everything installed is in :func:`requirements`.
_DECIDING = (
    "chipline", "torch", "torchvision", "pytorch-lightning", "timm", "segmentation-models-pytorch",
    "transformers", "numpy", "rasterio",
)  # fmt: skip
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")


def versions() -> dict[str, str]:
    """Versions of what decides the weights: packages and Python; on a GPU its kind, CUDA and cuDNN, too."""
    found = {"python": platform.python_version()}
    for name in _DECIDING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional one
            continue
    if torch.cuda.is_available():
        found |= {
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "gpu": torch.cuda.get_device_name(),
        }
    return found


def requirements() -> str:
    """Every installed package with its version, a line each, as pip takes them."""
    found = {one.metadata["Name"].lower(): one.version for one in distributions() if one.metadata["Name"]}
    return "".join(sorted(f"{name}=={number}\n" for name, number in found.items()))


@contextmanager
def without_determinism() -> Iterator[set[str]]:
    """Collects the operators that torch warns of: those whose sums may come in another order each time."""
    found: set[str] = set()
    shown = warnings.showwarning

    def note(message: Warning | str, *rest: Any, **named: Any) -> None:
        told = _NOT_DETERMINISTIC.match(str(message))
        if told is None:
            shown(message, *rest, **named)
        else:
            found.add(told[1])

    warnings.showwarning = note
    try:
        yield found
    finally:
        warnings.showwarning = shown
