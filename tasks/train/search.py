"""What a training finds out for itself before it starts: the batch size, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from tasks.errors import DeviceError
from tasks.train.hardware import Arithmetic
from tasks.train.modules import TrainingModule

USUAL_BATCH = 8
_LARGEST_BATCH = 64
_STEPS = 60
_LOWEST, _HIGHEST = 1e-6, 0.3
_SMOOTHING = 0.8
_DIVERGED = 4.0  # times the least loss
# The rates that are taken at all: the range in which a short test can be believed.
_LEAST, _MOST = 1e-5, 1e-2


def find_batch_size(
    module: TrainingModule,
    batch_of: Callable[[int], Any],
    chips: int,
    device: str,
    arithmetic: Arithmetic = nullcontext,
) -> int:
    """The largest power of two, up to 64, whose training step fits into the memory of the GPU; 8 on a CPU.

    Args:
        batch_of: makes a batch of as many chips.
        chips: how many there are to train on.
        device: "cpu" or "cuda".
        arithmetic: of the training.

    Raises:
        DeviceError: not even one chip fits.
    """
    most = min(chips, _LARGEST_BATCH)
    if device == "cpu":
        return min(chips, USUAL_BATCH)
    state = _state(module)
    size = 1 << (most.bit_length() - 1)
    while size:
        try:
            module.to(device).train()
            with arithmetic():
                loss, _ = module.loss_of(_moved(batch_of(size), device))
            torch.autograd.backward(loss)
        except torch.OutOfMemoryError:
            size //= 2
        else:
            return size
        finally:
            module.zero_grad(set_to_none=True)
            module.network.load_state_dict(state)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    raise DeviceError(
        "Not even one chip fits into the memory of the GPU.", "Give a smaller chip_size or backbone_model."
    )


def find_learning_rate(
    module: TrainingModule, batches: Iterable[Any], device: str, arithmetic: Arithmetic = nullcontext
) -> float:
    """The rate at which the loss falls fastest in a test over rising rates (Smith, 2017).

    60 steps from 1e-6 to 0.3, ended early where the loss has grown to four times its least value; the loss
    is smoothed. The network is left as it was.

    Args:
        batches: training batches; taken again from the start where they end.
        device: "cpu" or "cuda".
        arithmetic: of the training.
    """
    state = _state(module)
    module.to(device).train()
    optimizer = module.configure_optimizers()["optimizer"]
    shares = [group["initial_lr"] / module.learning_rate for group in optimizer.param_groups]
    rates, losses = [], []
    smooth, least = 0.0, math.inf
    for step, batch in enumerate(_endless(batches)):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad(set_to_none=True)
        with arithmetic():
            loss, _ = module.loss_of(_moved(batch, device))
        value = float(loss.detach())
        if not math.isfinite(value):
            break
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
        smooth = _SMOOTHING * smooth + (1 - _SMOOTHING) * value
        rates.append(rate)
        losses.append(smooth / (1 - _SMOOTHING ** (step + 1)))
        least = min(least, losses[-1])
        if losses[-1] > _DIVERGED * least or step + 1 == _STEPS:
            break
    module.zero_grad(set_to_none=True)
    module.network.load_state_dict(state)
    return steepest(rates, losses)


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the loss falls fastest over the logarithm of the rate, within 1e-5 to 1e-2."""
    slopes = [after - before for before, after in zip(losses[:-2], losses[2:], strict=True)]
    if not slopes:
        return _LEAST
    best = min(range(len(slopes)), key=slopes.__getitem__) + 1
    return float(min(max(rates[best], _LEAST), _MOST))


def _state(module: TrainingModule) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.network.state_dict().items()}


def _endless(batches: Iterable[Any]) -> Iterable[Any]:
    while True:
        yield from batches


def _moved(batch: Any, device: str) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _moved(value, device) for key, value in batch.items()}
    return type(batch)(_moved(item, device) for item in batch)
