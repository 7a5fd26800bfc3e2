"""A seccomp filter: system calls that an inference function has no use for fail with EPERM.

Standard library only, loaded by path in the child. A deny-list, because frameworks and GPU drivers use too
much of the kernel for an allow-list; the file and user rules of ``landlock.py`` and ``containment.py``
stand beside it. Unix sockets may be made (the CUDA driver makes one) but not connected; those of datagrams,
which reach any socket's file without being connected, may not be made.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD_WORD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_AND = 0x54
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENT_0, _OFFSET_ARGUMENT_1 = 0, 4, 16, 24
_X32_BIT = 0x40000000
_CLONE_NEW_ANYTHING = 0x7E020000  # mount, cgroup, uts, ipc, user, pid and network namespaces
_AF_UNIX = 1
_TYPE_MASK, _SOCK_STREAM, _SOCK_SEQPACKET = 0xF, 1, 5  # above the mask lie flags

# Numbers from the kernel's syscall tables (x86: arch/x86/entry/syscalls/syscall_64.tbl; arm64: asm-generic).
_COMMON = {
    "pidfd_getfd": 438, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442,
}  # fmt: skip
_X86_64 = {
    "socket": 41, "socketpair": 53, "connect": 42, "clone": 56, "clone3": 435, "ptrace": 101,
    "syslog": 103, "pivot_root": 155, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
    "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171,
    "init_module": 175, "delete_module": 176, "quotactl": 179, "clock_settime": 227, "kexec_load": 246,
    "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
    "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
    "kcmp": 312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
    "chroot": 161,
}  # fmt: skip
_AARCH64 = {
    "socket": 198, "socketpair": 199, "connect": 203, "clone": 220, "clone3": 435, "ptrace": 117,
    "syslog": 116, "pivot_root": 41, "acct": 89, "settimeofday": 170, "mount": 40, "umount2": 39,
    "swapon": 224, "swapoff": 225, "reboot": 142, "sethostname": 161, "setdomainname": 162,
    "init_module": 105, "delete_module": 106, "quotactl": 60, "clock_settime": 112, "kexec_load": 104,
    "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97, "perf_event_open": 241,
    "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271,
    "kcmp": 272, "finit_module": 273, "kexec_file_load": 294, "bpf": 280, "userfaultfd": 282,
    "chroot": 51,
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}

Instruction = tuple[int, int, int, int]


def program(machine: str) -> list[Instruction]:
    """The filter as (code, jump if true, jump if false, operand) for ``platform.machine()``.

    Raises:
        OSError: an architecture whose numbers are not known here.
    """
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call numbers for {machine}")
    arch, numbers = _ARCHITECTURES[machine]
    refused = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    missing = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    allowed = (_RETURN, 0, 0, _ALLOW)
    steps: list[Instruction] = [
        (_LOAD_WORD, 0, 0, _OFFSET_ARCH),
        (_JUMP_EQUAL, 1, 0, arch),
        refused,
        (_LOAD_WORD, 0, 0, _OFFSET_NUMBER),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT),
        refused,
    ]
    special = ("socket", "socketpair", "clone", "clone3")
    denied = sorted({**_COMMON, **numbers}.items(), key=lambda item: item[1])
    for name, number in denied:
        if name not in special:
            steps += [(_JUMP_EQUAL, 0, 1, number), refused]
    # Flags of clone3 lie in memory, which a filter cannot read: without it libc falls back to clone.
    steps += [(_JUMP_EQUAL, 0, 1, numbers["clone3"]), missing]
    steps += [
        (_JUMP_EQUAL, 0, 4, numbers["clone"]),
        (_LOAD_WORD, 0, 0, _OFFSET_ARGUMENT_0),
        (_JUMP_SET, 0, 1, _CLONE_NEW_ANYTHING),
        refused,
        allowed,
    ]
    for name in ("socket", "socketpair"):
        steps += [
            (_JUMP_EQUAL, 0, 8, numbers[name]),
            (_LOAD_WORD, 0, 0, _OFFSET_ARGUMENT_0),
            (_JUMP_EQUAL, 0, 4, _AF_UNIX),
            (_LOAD_WORD, 0, 0, _OFFSET_ARGUMENT_1),
            (_AND, 0, 0, _TYPE_MASK),
            (_JUMP_EQUAL, 2, 0, _SOCK_STREAM),
            (_JUMP_EQUAL, 1, 0, _SOCK_SEQPACKET),
            refused,
            allowed,
        ]
    return [*steps, allowed]


def install() -> None:
    """Puts the filter on this thread and all that it starts; ``no_new_privs`` must be set before.

    Raises:
        OSError: the kernel refuses, or the architecture is not known.
    """
    steps = program(platform.machine())
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    header = struct.pack("@HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(header), 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {os.strerror(error)}")
