"""What a person can do about an exception that a function raised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.host.errors import FailureCause
from tasks.host.interpreters import Framework, framework_remedy, import_remedy

_CORRECT = "Correct the function or the package; its own traceback and output are above."

# How torch (CUDA, cuDNN, its CPU allocator), numpy, ONNX Runtime, OpenVINO and TensorFlow say it.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "failed to allocate",
    "alloc_failed",
    "bad_alloc",
    "bad allocation",
    "oom when allocating",
)
_WHILE_STARTING = ("load", "configure")


def cause_and_remedy(
    frame: Mapping[str, Any], interpreter: Path, framework: Framework | None
) -> tuple[FailureCause, str]:
    """The cause, and the remedy, of a ``failed`` frame.

    Args:
        frame: what the child sent.
        interpreter: the Python that runs the function.
        framework: the one that the package states.
    """
    kind, message = str(frame.get("type")), str(frame.get("message"))
    has_pip = frame.get("has_pip") is not False
    if is_out_of_memory(kind, message):
        if frame.get("stage") in _WHILE_STARTING:
            return "out_of_memory", "The network itself does not fit: use a device with more free memory."
        return "out_of_memory", "Use a smaller batch_size."
    if kind == "ContractError":
        return "contract", _CORRECT
    if kind in ("ModuleNotFoundError", "ImportError"):
        module = str(frame.get("missing_module") or "")
        return "exception", import_remedy(module, interpreter, has_pip=has_pip)
    if framework is not None and frame.get("missing_frameworks"):
        # Many functions swallow the ImportError and fail later over a name that is not there.
        remedy = framework_remedy(framework, interpreter, has_pip=has_pip)
        return (
            "exception",
            f"The package states {framework.name}, which is missing in {interpreter}. {remedy}",
        )
    return "exception", _CORRECT


def is_out_of_memory(kind: str, message: str) -> bool:
    """Whether an exception, by the name of its class and its text, says that memory ran out."""
    if kind in ("MemoryError", "OutOfMemoryError", "ResourceExhaustedError"):
        return True
    return any(words in message.lower() for words in _OUT_OF_MEMORY)
