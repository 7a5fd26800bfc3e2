"""What the kernel lets us take away from the child before it reads foreign code.

Standard library only: the child loads this file by path and calls ``confine``. Nothing here is taken for
granted: what is in force is tried out afterwards and stated in the report, in words a person understands.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import importlib.util
import os
import resource
import socket
import sys
import types
from collections.abc import Mapping
from typing import Any

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 8, 24, 38
_PR_CAP_AMBIENT, _AMBIENT_RAISE = 47, 2
_CAP_DAC_READ_SEARCH, _LAST_CAPABILITY = 2, 63
_CAPABILITY_VERSION_3 = 0x20080522
_FIRST_UID, _UIDS = 600_000_000, 100_000_000
_OPEN_FILES, _PROCESSES = 4096, 2048

_KEPT_VARIABLES = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_DEVICE_ORDER")
_KEPT_PREFIXES = (
    "LC_",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "NUMEXPR_",
    "KMP_",
    "NVIDIA_",
    "CUBLAS_",
    "PYTORCH_",
    "TF_",
)

# Enough for an interpreter, its libraries and a GPU driver; no /etc/shadow, no keys, no other user's files.
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/opt/rocm", "/opt/nvidia",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/localtime",
    "/etc/timezone", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/fonts", "/etc/alternatives",
    "/etc/OpenCL", "/etc/nvidia", "/etc/mime.types", "/etc/os-release", "/etc/locale.alias",
    "/sys/devices", "/sys/bus", "/sys/class", "/sys/module", "/sys/kernel/mm",
    "/dev/urandom", "/dev/random", "/dev/zero", "/dev/null",
)  # fmt: skip
_PROC_WITHOUT_OTHERS = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm",
    "/proc/sys/kernel", "/proc/version", "/proc/filesystems", "/proc/devices", "/proc/driver",
)  # fmt: skip
_ORDINARY_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")


def clean_environment(environment: Mapping[str, str], folder: str) -> dict[str, str]:
    """The child's whole environment: no credentials, its own home, weights loaded as weights only.

    Args:
        environment: the host's own.
        folder: the child's folder, for everything it writes.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    }
    kept.update(
        HOME=folder,
        TMPDIR=folder,
        USER="chipline",
        LOGNAME="chipline",
        # Foreign functions load weights themselves: a pickle must not run code on the way.
        TORCH_FORCE_WEIGHTS_ONLY_LOAD="1",
        PYTHONDONTWRITEBYTECODE="1",
    )
    return kept


def confine(
    asked: dict[str, Any],
    line: int,
    landlock: types.ModuleType,
    seccomp: types.ModuleType,
    namespaces: types.ModuleType,
) -> dict[str, Any]:
    """Confines this process as far as the kernel allows; what is in force.

    Must be called while the process has one thread, before foreign code is read.

    Args:
        asked: ``parent`` (process id of the host), ``folder`` (the only place to write), ``read`` (folders
            to read beside the system and the interpreter), ``gpu`` (whether to leave GPU devices open).
        line: descriptor of the line to the host.
        landlock: the module of that name.
        seccomp: the module of that name.
        namespaces: the module of that name.

    Returns:
        ``files``: nothing outside can be written, nothing but system, interpreter and package read.
        ``network``: no network. ``processes``: no other process can be seen or signalled. ``user``: under
        which identity it runs. ``kernel``: what was used. ``missing``: what could not be had, in words.
    """
    namespaces.die_with_parent()
    if os.getppid() != asked["parent"]:
        raise SystemExit("the host is gone")
    missing = []
    # Where the package lies in shared memory, an own one would hide it: then Landlock alone guards it.
    in_shm = any(
        os.path.realpath(place).startswith("/dev/shm/") for place in (asked["folder"], *asked["read"])
    )
    used = [f"{name} namespace" for name in namespaces.enter(line, own_shm=not in_shm)]
    private_proc, private_shm = "proc namespace" in used, "shm namespace" in used
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    user = (
        _leave_root(asked, bool(landlock.abi())) if os.geteuid() == 0 and "user namespace" not in used else ""
    )
    keeps_reading = user.endswith("read by capability")
    _drop_capabilities(keep_read=keeps_reading)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A change of user clears both: /proc/self must stay readable, and the host's end must be ours.
    libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    namespaces.die_with_parent()
    namespaces.close_guardians_lines()
    try:
        read, devices = _readable(asked, private_proc), list(_ORDINARY_DEVICES)
        if asked["gpu"]:
            devices += [*glob.glob("/dev/nvidia*"), "/dev/dri", "/dev/kfd"]  # noqa: PTH207
        write = [asked["folder"], *(["/dev/shm"] if private_shm else [])]
        used.append(f"Landlock {landlock.restrict(read, write, devices)}")
    except OSError as error:
        missing.append(str(error))
    try:
        seccomp.install()
        used.append("seccomp")
    except OSError as error:
        missing.append(str(error))
    if "network namespace" not in used:
        missing.append("no network namespace")
    if "processes namespace" not in used:
        missing.append("no process namespace")
    return {
        "environment": True,
        "files": not _can_write_outside(asked),
        "network": not _has_network(),
        "processes": private_proc or not _sees_host(asked["parent"], "processes namespace" in used),
        "user": user or f"user {os.getuid()}, as the host",
        "kernel": used,
        "missing": missing,
    }


def _lower(limit: int, wanted: int) -> None:
    hard = resource.getrlimit(limit)[1]
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(limit, (value, value))


# -- user and capabilities ---------------------------------------------------------------------------------


def _leave_root(asked: dict[str, Any], has_landlock: bool) -> str:
    """Takes a user id of its own; says which, and how the interpreter stays readable."""
    wanted = _FIRST_UID + asked["parent"] % _UIDS
    for uid in (wanted, 65534):
        # A container may have few user ids mapped; the last is nobody.
        try:
            os.chown(asked["folder"], uid, uid)
        except OSError:
            continue
        readable = _readable_as(uid, asked)
        if not readable and not has_landlock:
            os.chown(asked["folder"], 0, 0)
            return "user 0 without capabilities (another user could not read the interpreter or package)"
        if not readable:
            # Landlock decides what can be read, so the capability opens only what is listed there.
            ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        with contextlib.suppress(OSError, ValueError):
            _lower(resource.RLIMIT_NPROC, _PROCESSES)
        # The bounding set can only be lowered while we are root.
        _lower_bounding_set(keep_read=not readable)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        return f"user {uid}" if readable else f"user {uid}, interpreter and package read by capability"
    return "user 0 without capabilities (no other user id can be had here)"


def _readable_as(uid: int, asked: dict[str, Any]) -> bool:
    """Whether that user could read the interpreter, numpy and the package: tried, then taken back."""
    numpy = importlib.util.find_spec("numpy")
    places = [sys.executable, os.__file__, *asked["read"]]
    if numpy is not None and numpy.origin is not None:
        places.append(numpy.origin)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        for place in places:
            os.close(os.open(place, os.O_RDONLY))
    except OSError:
        return False
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
    return True


def _lower_bounding_set(keep_read: bool) -> None:
    libc = ctypes.CDLL(None)
    for capability in range(_LAST_CAPABILITY + 1):
        if not (keep_read and capability == _CAP_DAC_READ_SEARCH):
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _drop_capabilities(keep_read: bool) -> None:
    _lower_bounding_set(keep_read)
    kept = 1 << _CAP_DAC_READ_SEARCH if keep_read else 0
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable for the lower and then for the upper 32 capabilities
    data = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)
    libc = ctypes.CDLL(None)
    libc.capset(ctypes.byref(header), ctypes.byref(data))
    if keep_read:
        # Also for interpreters that the function starts itself; Landlock binds them as well.
        libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, _CAP_DAC_READ_SEARCH, 0, 0)


def _readable(asked: dict[str, Any], private_proc: bool) -> list[str]:
    prefixes = [prefix for prefix in (sys.prefix, sys.base_prefix, sys.base_exec_prefix) if prefix != "/"]
    # Site folders outside the prefix, as a distribution or a .pth file adds them.
    prefixes += [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    libraries = [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part not in ("", "/")]
    proc = ["/proc"] if private_proc else list(_PROC_WITHOUT_OTHERS)
    return [*_SYSTEM, *prefixes, *libraries, *proc, *asked["read"]]


# -- trying it out -----------------------------------------------------------------------------------------


def _can_write_outside(asked: dict[str, Any]) -> bool:
    """Whether a file can be made beside the child's own folder, or the root folder be listed."""
    beside = f"{asked['folder']}.probe"
    try:
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        pass
    else:
        os.unlink(beside)  # noqa: PTH108
        return True
    try:
        os.listdir("/")  # noqa: PTH208
    except OSError:
        return False
    return True


def _has_network() -> bool:
    """Whether a packet could leave: 192.0.2.1 is reserved for documentation, and nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
    except OSError as error:
        return error.errno not in (errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EAFNOSUPPORT)
    return True


def _sees_host(parent: int, numbered_anew: bool) -> bool:
    """Whether the host's environment can be read, or the host be signalled.

    In a process namespace the host's number is another's, or nobody's: only ``/proc`` can tell.
    """
    try:
        os.close(os.open(f"/proc/{parent}/environ", os.O_RDONLY))
    except OSError:
        pass
    else:
        return True
    if numbered_anew:
        return False
    try:
        os.kill(parent, 0)
    except OSError:
        return False
    return True
