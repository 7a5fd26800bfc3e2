"""What the kernel lets us take away from the child before it reads foreign code.

Standard library only: the child loads this file by path and calls ``confine``; the host uses
``clean_environment``. What is in force is measured by trying, and stated in the report.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Mapping
from typing import Any

_PR_SET_PDEATHSIG = 1
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
_KEPT_PREFIXES = ("OMP_", "MKL_", "OPENBLAS_", "NVIDIA_")


def clean_environment(environment: Mapping[str, str], home: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in environment.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES) or name == "LD_LIBRARY_PATH"
    }
    kept.update(HOME=home, TMPDIR=home, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1", PYTHONDONTWRITEBYTECODE="1")
    return kept


def confine(asked: dict[str, Any]) -> dict[str, Any]:
    if os.getppid() != asked["parent"]:
        raise SystemExit("the host is gone")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return {"environment": True, "network": False, "files": False}
