"""GPUs of this machine, without a framework, and one lock per GPU.

Asked through NVML, which makes no context on the device and needs no torch in the host's own process.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import DeviceError
from tasks.settings import settings

_LOCK_EVERY_S = 0.2


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use.

    Attributes:
        number: as NVML counts, before ``CUDA_VISIBLE_DEVICES``; -1 for a MIG instance.
        uuid: ``GPU-…``, what the child's ``CUDA_VISIBLE_DEVICES`` is set to.
        name: as the driver names it.
    """

    number: int
    uuid: str
    name: str


def visible_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible, in its order; empty without a driver."""
    gpus = _all_gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return gpus if chosen is None else choose_visible(gpus, chosen)


def choose_visible(gpus: list[Gpu], chosen: str) -> list[Gpu]:
    """``CUDA_VISIBLE_DEVICES`` as CUDA reads it: numbers or UUID prefixes, up to the first unknown one."""
    result: list[Gpu] = []
    for entry in (part.strip() for part in chosen.split(",")):
        if entry.startswith("MIG-"):
            result.append(Gpu(-1, entry, "MIG instance"))
            continue
        found = [
            gpu
            for gpu in gpus
            if (entry.isdigit() and gpu.number == int(entry))
            or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))
        ]
        if len(found) != 1 or found[0] in result:
            break
        result.append(found[0])
    return result


def _all_gpus() -> list[Gpu]:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        gpus = []
        for number in range(count.value):
            handle = ctypes.c_void_p()
            text = ctypes.create_string_buffer(96)
            name = ctypes.create_string_buffer(96)
            if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)) != 0:
                continue
            if nvml.nvmlDeviceGetUUID(handle, text, 96) != 0:
                continue
            nvml.nvmlDeviceGetName(handle, name, 96)
            gpus.append(Gpu(number, text.value.decode(), name.value.decode()))
        return gpus
    finally:
        nvml.nvmlShutdown()


class GpuLock:
    """A file lock that belongs to the child too: a GPU stays taken as long as the child lives.

    ``flock`` belongs to the open file, which the child inherits; when the host is killed the child's copy
    still holds it, so a second child is never put beside an orphan.
    """

    def __init__(self, gpu: Gpu, folder: Path | None = None) -> None:
        self._gpu = gpu
        self._folder = folder if folder is not None else settings().cache / "locks"
        self._fd: int | None = None

    def acquire(self, timeout_s: float) -> int:
        """Takes the lock, waiting for it; the file descriptor the child must inherit.

        Raises:
            DeviceError: another process holds the GPU for longer than ``timeout_s``.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / (re.sub(r"[^A-Za-z0-9-]", "_", self._gpu.uuid) + ".lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        give_up = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    holder = os.pread(fd, 64, 0).decode(errors="replace").strip() or "unknown"
                    os.close(fd)
                    raise DeviceError(
                        f"GPU {self._gpu.number} ({self._gpu.name}) is taken by process {holder}.",
                        "Run one worker per GPU, wait for the other run, or end that process.",
                    ) from None
                time.sleep(_LOCK_EVERY_S)
                continue
            self._fd = fd
            return fd

    def note_holder(self, pid: int) -> None:
        """Writes who holds it, for the message to the one who waits."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{pid}\n".encode(), 0)

    def release(self) -> None:
        """Lets go of the host's copy."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def insisted_gpu() -> Gpu:
    """The first GPU that this process may use.

    Raises:
        DeviceError: there is none.
    """
    gpus = visible_gpus()
    if not gpus:
        raise DeviceError(
            "A GPU was asked for, and this machine shows none to this process.",
            "Run on a worker with a GPU (driver and CUDA_VISIBLE_DEVICES), or set processor_type to CPU.",
        )
    return gpus[0]
