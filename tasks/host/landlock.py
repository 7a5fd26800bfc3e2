"""Landlock: which files and which TCP ports a process may still touch, for good.

Standard library only, loaded by path in the child. Numbers are those of the kernel's
``include/uapi/linux/landlock.h``; rights that a kernel does not know are left out by its ABI version.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

# The three system calls have the same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
# Number of file rights by ABI: 13 at first, then REFER, TRUNCATE, IOCTL_DEV.
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15}
_BIND_AND_CONNECT_TCP = 3
_ABSTRACT_SOCKETS_AND_SIGNALS = 3

READ = _EXECUTE | _READ_FILE | _READ_DIR


def abi() -> int:
    """The kernel's Landlock ABI version; 0 where it has none or it is switched off."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def restrict(read: list[str], write: list[str], devices: list[str]) -> int:
    """Confines this thread, and all that it starts, to the given paths and to no TCP; the ABI version.

    Paths that do not exist are left out. ``no_new_privs`` must be set before.

    Args:
        read: files and folders to read and execute.
        write: folders to do everything in.
        devices: device files, or folders of them, to read, write and control.

    Raises:
        OSError: the kernel refuses.
    """
    version = abi()
    if version == 0:
        raise OSError("the kernel has no Landlock")
    everything = (1 << _RIGHTS_BY_ABI.get(version, 16)) - 1
    attributes = struct.pack("=Q", everything)
    if version >= 4:
        attributes += struct.pack("=Q", _BIND_AND_CONNECT_TCP)
    if version >= 6:
        attributes += struct.pack("=Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for paths, rights in (
            (read, READ),
            (write, everything),
            (devices, _READ_FILE | _READ_DIR | _WRITE_FILE | _IOCTL_DEV),
        ):
            for path in paths:
                _allow(ruleset, path, rights & everything)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _FILE_RIGHTS
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return result
