"""Limits of one host."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.settings import settings


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """How long and how large a function may be before it is stopped.

    Attributes:
        start_timeout_s: longest time from the start of the process until the function is configured.
        block_timeout_s: longest time one block may take.
        memory_mb: resident size in MiB of the child and all its own children.
        slots: places in the ring; blocks in flight at the same time (at least 2).
        result_mb: largest result of one block in MiB.
    """

    start_timeout_s: float
    block_timeout_s: float
    memory_mb: int
    slots: int = 3
    result_mb: int = 1024

    @classmethod
    def from_settings(cls) -> HostLimits:
        """The limits that the settings of this process state."""
        values = settings()
        return cls(
            start_timeout_s=values.host_start_timeout_s,
            block_timeout_s=values.host_block_timeout_s,
            memory_mb=values.host_memory_mb,
        )
