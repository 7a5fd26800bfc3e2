"""What a training computes on: device, arithmetic, and the processes that learn together.

A group of processes is started from outside (``tasks/train/launch.py``); each of them runs the same training
on its own share of the chips, Lightning adds up their gradients, and only the first one writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from tasks.errors import BadInputError, DeviceError
from tasks.settings import settings
from tasks.train.parameters import TrainParameters

Value = TypeVar("Value")
Arithmetic = Callable[[], AbstractContextManager[Any]]

# A detector's or decoder's unused layers have no gradient, which plain "ddp" takes for an error.
_STRATEGY = "ddp_find_unused_parameters_true"


@dataclass(frozen=True)
class Group:
    """The processes that learn together.

    Attributes:
        rank: of this one, 0 writes.
        local_rank: the same among those of its node.
        world: how many there are.
        nodes: on how many nodes.
    """

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    nodes: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process tracks, publishes and leaves checkpoints."""
        return self.rank == 0


def group() -> Group:
    """The group that this process was started in; alone where it was not started by torchrun."""
    if not distributed.is_torchelastic_launched():
        return Group()
    world, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    return Group(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), world, world // here)


def join_group(parameters: TrainParameters, accelerator: str) -> Group:
    """:func:`group`, ready to :func:`agree`.

    Raises:
        DeviceError: it is not the group that the parameters ask for.
    """
    found = group()
    wanted = devices_of(parameters) * parameters.num_nodes
    if found.world != wanted:
        raise DeviceError(
            f"The training asks for {wanted} processes, but {found.world} were started.",
            "Start it with train_deep_learning_model, which starts them, or leave devices and num_nodes out.",
        )
    if found.world > 1 and not distributed.is_initialized():
        if accelerator == "gpu":
            torch.cuda.set_device(found.local_rank)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if accelerator == "gpu" else "gloo")
    return found


def agree(value: Value) -> Value:
    """The first process's value, in all of them."""
    if not distributed.is_initialized():
        return value
    shared: list[Any] = [value]
    distributed.broadcast_object_list(shared, src=0)
    result: Value = shared[0]
    return result


def accelerator_of(parameters: TrainParameters) -> str:
    """``gpu`` or ``cpu``.

    Raises:
        DeviceError: a GPU was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if parameters.processor_type == "GPU" and not available:
        raise DeviceError(
            "processor_type is GPU, but this worker sees no GPU.",
            "Start it where there is one, or choose AUTO or CPU.",
        )
    return "gpu" if available and parameters.processor_type != "CPU" else "cpu"


def devices_of(parameters: TrainParameters) -> int:
    """Processes of this node: what the parameters say, else the worker's settings.

    Raises:
        DeviceError: more GPUs are asked for than the worker sees.
    """
    wanted = settings().train_devices if parameters.devices is None else parameters.devices
    if accelerator_of(parameters) == "cpu":
        return max(1, wanted)
    seen = torch.cuda.device_count()
    if wanted > seen:
        raise DeviceError(
            f"{wanted} GPUs are asked for, but this worker sees {seen}.",
            "Give devices = 0 for all that there are, or start the worker where there are more.",
        )
    return wanted or seen


def precision_of(parameters: TrainParameters, accelerator: str) -> Any:
    """Lightning's word for the arithmetic.

    Raises:
        BadInputError: an arithmetic that the device does not have.
    """
    chosen = parameters.precision
    if chosen == "AUTO":
        chosen = settings().train_precision
    if chosen == "AUTO":
        if accelerator == "cpu":
            return "32-true"
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if chosen == "FLOAT16" and accelerator == "cpu":
        raise BadInputError("FLOAT16 cannot be trained on a CPU.", "Choose AUTO, FLOAT32 or BFLOAT16.")
    return {"FLOAT32": "32-true", "BFLOAT16": "bf16-mixed", "FLOAT16": "16-mixed"}[chosen]


def arithmetic(precision: str, device: str) -> Arithmetic:
    """What a step is computed in outside of Lightning: makes a context of the same arithmetic.

    Args:
        precision: Lightning's word, see :func:`precision_of`.
        device: "cpu" or "cuda".
    """
    if precision == "32-true":
        return nullcontext
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    return lambda: torch.autocast(device, dtype=dtype)


def placement(accelerator: str, together: Group) -> dict[str, Any]:
    """The arguments of Lightning's trainer that say where it runs."""
    if together.world == 1:
        return {"accelerator": accelerator, "devices": 1}
    return {
        "accelerator": accelerator,
        "devices": together.world // together.nodes,
        "num_nodes": together.nodes,
        "strategy": settings().train_strategy or _STRATEGY,
        "use_distributed_sampler": False,  # our sampler gives each process its share
    }
