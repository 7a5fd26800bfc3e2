"""How an inference function can fail, told apart so that a caller can act on it."""

from __future__ import annotations

from typing import Literal

from tasks.errors import HostError

FailureCause = Literal[
    "exception", "out_of_memory", "crash", "hang", "memory", "contract", "protocol", "closed"
]


class FunctionFailure(HostError):
    """The inference function failed; says how and on which block.

    Attributes:
        cause: ``exception`` (it raised), ``out_of_memory`` (the device's or numpy's memory ran out),
            ``crash`` (the process ended), ``hang`` (over its time), ``memory`` (over its resident size),
            ``contract`` (an answer of the wrong kind or shape), ``protocol`` (no valid frame),
            ``closed`` (its host was closed meanwhile).
        block: the block it was working on, in words; empty while it was starting.
        function_traceback: the function's own traceback, empty when it has none.
    """

    def __init__(
        self,
        problem: str,
        remedy: str,
        *,
        cause: FailureCause,
        block: str = "",
        function_traceback: str = "",
    ) -> None:
        super().__init__(problem, remedy)
        self.cause: FailureCause = cause
        self.block = block
        self.function_traceback = function_traceback


def closed_host() -> FunctionFailure:
    """What whoever uses a host is told that was closed, or is being closed by another thread."""
    return FunctionFailure("The host is closed.", "Submit blocks inside its with statement.", cause="closed")
