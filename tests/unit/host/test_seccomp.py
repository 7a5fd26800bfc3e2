"""The filter, run by an interpreter of its own: what is refused, and that jumps land where they should."""

from __future__ import annotations

import errno

import pytest

from tasks.host.seccomp import program

X86_64, AARCH64 = 0xC000003E, 0xC00000B7
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def _verdict(machine: str, arch: int, number: int, argument: int = 0, second: int = 1) -> int:
    """What classic BPF decides on ``struct seccomp_data``."""
    data = {0: number, 4: arch, 16: argument & 0xFFFFFFFF, 24: second & 0xFFFFFFFF}
    steps, accumulator, place = program(machine), 0, 0
    while True:
        code, if_true, if_false, operand = steps[place]
        place += 1
        if code == 0x20:
            accumulator = data[operand]
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x06:
            return operand
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}
            place += if_true if holds[code] else if_false


@pytest.mark.parametrize(
    ("number", "argument", "verdict"),
    [
        (0, 0, ALLOW),  # read
        (9, 0, ALLOW),  # mmap
        (16, 0, ALLOW),  # ioctl
        (59, 0, ALLOW),  # execve
        (319, 0, ALLOW),  # memfd_create
        (41, 1, ALLOW),  # socket, AF_UNIX
        (41, 2, EPERM),  # socket, AF_INET
        (41, 10, EPERM),  # socket, AF_INET6
        (41, 16, EPERM),  # socket, AF_NETLINK
        (42, 0, EPERM),  # connect
        (101, 0, EPERM),  # ptrace
        (321, 0, EPERM),  # bpf
        (425, 0, EPERM),  # io_uring_setup
        (56, 0x01200011, ALLOW),  # clone as fork does it
        (56, 0x003D0F00, ALLOW),  # clone as pthread_create does it
        (56, 0x10000000, EPERM),  # clone with a user namespace
        (435, 0, ENOSYS),  # clone3: libc falls back to clone
        (0x40000000 | 41, 1, EPERM),  # the x32 numbers
    ],
)
def test_verdicts_on_x86_64(number: int, argument: int, verdict: int) -> None:
    assert _verdict("x86_64", X86_64, number, argument) == verdict


@pytest.mark.parametrize("call", [41, 53])  # socket, socketpair
@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        (1, ALLOW),
        (5, ALLOW),
        (0o2000001, ALLOW),
        (0o2004005, ALLOW),
        (2, EPERM),
        (3, EPERM),
        (0o2000002, EPERM),
    ],
)
def test_unix_sockets_are_made_for_connections_only(call: int, kind: int, verdict: int) -> None:
    assert _verdict("x86_64", X86_64, call, 1, kind) == verdict
    assert _verdict("aarch64", AARCH64, {41: 198, 53: 199}[call], 1, kind) == verdict
    assert _verdict("x86_64", X86_64, call, 2, kind) == EPERM


def test_foreign_architecture_is_refused_altogether() -> None:
    assert _verdict("x86_64", 0x40000003, 0) == EPERM  # 32-bit calls on the same kernel


@pytest.mark.parametrize(
    ("number", "argument", "verdict"), [(63, 0, ALLOW), (198, 2, EPERM), (203, 0, EPERM)]
)
def test_verdicts_on_aarch64(number: int, argument: int, verdict: int) -> None:
    assert _verdict("aarch64", AARCH64, number, argument) == verdict


def test_unknown_architecture_has_no_filter() -> None:
    with pytest.raises(OSError):
        program("riscv64")
