"""Freed memory leaves the process, also where something above it is still in use."""

from __future__ import annotations

import platform

import psutil
import pytest

from tasks.imagery._memory import give_back_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no such pools")
def test_freed_memory_is_given_back() -> None:
    process = psutil.Process()
    # Small enough not to be mapped one by one; the last one keeps the heap from shrinking by itself.
    held = [bytearray(100_000) for _ in range(1000)]
    last = held.pop()
    full = process.memory_info().rss
    held.clear()
    give_back_memory()
    assert full - process.memory_info().rss > 50_000_000
    assert len(last) == 100_000
