"""Failures for want of memory are told apart from others, whoever says it in whatever words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.host.link import kills_for_memory
from tasks.host.remedies import cause_and_remedy


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("RuntimeError", "CUDA error: out of memory"),
        ("RuntimeError", "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        ("_ArrayMemoryError", "Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)"),
        ("MemoryError", ""),
        ("RuntimeException", "[ONNXRuntimeError] : 6 : std::bad_alloc"),
        ("ResourceExhaustedError", "OOM when allocating tensor with shape[8,64]"),
    ],
)
def test_memory_that_ran_out_is_its_own_cause(kind: str, message: str) -> None:
    frame = {"type": kind, "message": message, "stage": "call"}
    assert cause_and_remedy(frame, Path("python"), None) == ("out_of_memory", "Use a smaller batch_size.")
    # No batch is small enough for a network that does not even load.
    cause, remedy = cause_and_remedy({**frame, "stage": "load"}, Path("python"), None)
    assert cause == "out_of_memory"
    assert "device" in remedy


@pytest.mark.parametrize(("kind", "message"), [("ValueError", "the memory layout"), ("KeyError", "batch")])
def test_other_failures_are_not(kind: str, message: str) -> None:
    frame = {"type": kind, "message": message, "stage": "call"}
    assert cause_and_remedy(frame, Path("python"), None)[0] == "exception"


def test_the_kernels_count_of_kills_is_read(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 3\nunevictable_pgs 0\n")
    assert kills_for_memory(tmp_path / "vmstat") == 3
    assert kills_for_memory(tmp_path / "none") == 0
