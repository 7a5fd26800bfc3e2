"""GPUs are chosen as CUDA chooses them, and one is never given twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import DeviceError
from tasks.host.devices import Gpu, GpuLock, choose_visible

GPUS = [Gpu(0, "GPU-aaaa-1", "A"), Gpu(1, "GPU-bbbb-2", "B"), Gpu(2, "GPU-bbcc-3", "C")]


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),
        ("GPU-bbbb", [1]),
        ("GPU-bb", []),  # ambiguous
        ("1,7,0", [1]),  # up to the first unknown one
        ("-1,0", []),
        ("", []),
        ("1,1", [1]),
        ("MIG-1234", [-1]),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(chosen: str, numbers: list[int]) -> None:
    assert [gpu.number for gpu in choose_visible(GPUS, chosen)] == numbers


def test_lock_is_held_until_host_and_child_are_both_gone(tmp_path: Path) -> None:
    first = GpuLock(GPUS[0], tmp_path)
    descriptor = first.acquire(0)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(descriptor,)
    ) as child:
        first.note_holder(child.pid)
        first.release()  # the host is gone, its child is an orphan
        with pytest.raises(DeviceError, match=str(child.pid)):
            GpuLock(GPUS[0], tmp_path).acquire(0.1)
        other = GpuLock(GPUS[1], tmp_path)
        other.acquire(0)
        other.release()
        child.communicate(b"\n")
    again = GpuLock(GPUS[0], tmp_path)
    again.acquire(0)
    again.release()
    with pytest.raises(OSError):
        os.fstat(descriptor)
