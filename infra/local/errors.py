"""What can go wrong with the local stack."""

from __future__ import annotations

from tasks.errors import ChiplineError


class StackError(ChiplineError, RuntimeError):
    """The local stack cannot be booted, reached or stopped."""
