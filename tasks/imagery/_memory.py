"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any


def give_back_memory() -> None:
    """Hand freed memory back, after much of it was freed at once.

    glibc keeps what many threads have freed, in pools of theirs that later threads do not all use again: a
    process that opens and closes readers would grow by GDAL's cache of blocks every time. Elsewhere than on
    glibc this does nothing.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
