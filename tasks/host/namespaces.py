"""Namespaces: no network, no sight of other processes, an own ``/proc`` and ``/dev/shm``.

Standard library only, loaded by path in the child while it has one thread. Works as root, and as any user
where the kernel allows user namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import threading

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

_guardians: list[int] = []  # lines that are closed when the guardians of this process end


def enter(close_in_guardians: int, *, own_shm: bool) -> list[str]:
    """Enters what the kernel allows; the names of what is in force: user, network, processes, proc, shm.

    Returns in another process than the caller: the caller stays behind as a guardian, waits for it, ends
    what it leaves behind and passes its exit status on (128 + signal, as shells do). With a process
    namespace there is a second guardian, the namespace's first process, whose end takes everything in the
    namespace with it.

    Args:
        close_in_guardians: the descriptor of the line to the host, which only the worker keeps.
        own_shm: whether to mount an own ``/dev/shm``; not where it would hide what the child must read.
    """
    in_force = _enter(close_in_guardians, own_shm)
    if "processes" not in in_force:
        _become_guarded(close_in_guardians)
    return in_force


def _enter(line: int, own_shm: bool) -> list[str]:
    in_force: list[str] = []
    if os.geteuid() != 0 or not _unshares(_NEWNS):
        uid, gid = os.getuid(), os.getgid()
        if not _unshares(_NEWUSER | _NEWNS):
            return in_force
        try:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{uid} {uid} 1")
            _write("/proc/self/gid_map", f"{gid} {gid} 1")
        except OSError:
            # A namespace without a map has no user to be; nothing else can be had in it.
            return in_force
        in_force.append("user")
    mounts_private = _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    if _unshares(_NEWNET):
        in_force.append("network")
    _unshares(_NEWIPC)
    if _unshares(_NEWPID):
        _become_guarded(line)
        _become_guarded(line)
        in_force.append("processes")
        if mounts_private and _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC):
            in_force.append("proc")
    wanted = mounts_private and own_shm
    if wanted and _mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, b"size=1g"):
        os.chmod("/dev/shm", 0o1777)  # noqa: PTH101
        in_force.append("shm")
    return in_force


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends.

    To be called again after a change of user, which makes the kernel forget it. A guardian that ended before
    the kernel was told takes this process with it, too.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    for line in _guardians:
        # Nothing is ever written there: it can be read where the other end is closed.
        if select.select([line], [], [], 0)[0]:
            os._exit(128 + signal.SIGKILL)


def close_guardians_lines() -> None:
    """The function gets none of our descriptors; from now on only the kernel tells of a guardian's end."""
    while _guardians:
        os.close(_guardians.pop())


def _become_guarded(line: int) -> None:
    """Returns in a child; this process waits for it as its guardian and never returns."""
    # What the function leaves behind falls to the guardian, where the host finds it too.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guardian, held = os.pipe()  # only the guardian keeps the writing end, for as long as it lives
    worker = os.fork()
    if worker:
        os.close(line)
        status = _status_of(worker)
        _end_the_rest()
        os._exit(status)
    os.close(held)
    _guardians.append(guardian)
    die_with_parent()


def _end_the_rest() -> None:
    while True:
        try:
            with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:  # noqa: PTH123
                left = [int(pid) for pid in file.read().split()]
        except OSError:
            return
        if not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.wait()


def _status_of(awaited: int) -> int:
    """Waits for one child, burying every other that ends before; its status as a shell would give it."""
    while True:
        pid, status = os.wait()
        if pid == awaited:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _unshares(flags: int) -> bool:
    return int(ctypes.CDLL(None).unshare(flags)) == 0


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: bytes | None = None) -> bool:
    source_bytes = source.encode() if source is not None else None
    kind_bytes = kind.encode() if kind is not None else None
    libc = ctypes.CDLL(None)
    return int(libc.mount(source_bytes, target.encode(), kind_bytes, ctypes.c_ulong(flags), data)) == 0


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write(text)
