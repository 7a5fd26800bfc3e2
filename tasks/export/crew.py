"""Processes that cut chips side by side: Python runs one thread at a time, and a chip is much Python.

The helpers are a Python of their own, started from nothing (this process may have threads that no fork
survives), which then divides. They live as long as the crew, take slices of a part one after the other and
answer with records; the chips themselves go from each helper into the store.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import RunError
from tasks.settings import settings

if TYPE_CHECKING:
    from tasks.export.cutter import Cutter, SliceResult
    from tasks.export.plan import ExportPart, ExportPlan
    from tasks.export.slices import Slice

READY = "ready"
_TICK_S = 0.02
_END_S = 5.0
_CPU_SHARE = Path("/sys/fs/cgroup/cpu.max")
# Each process holds a few hundred megabytes; whoever has more cores and memory says so.
_MOST_UNASKED = 16


def usable_cores() -> int:
    """Cores that this process may run on, a container's share of the machine (cgroup v2) considered."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = _CPU_SHARE.read_text().split()
        if quota != "max":
            cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)


class Crew:
    """Helpers of this process; a context manager. They start while this process does something else.

    Args:
        processes: how many cut, this one included; None takes ``settings().export_processes``, else one for
            each usable core, 16 at most.
    """

    def __init__(self, processes: int | None = None) -> None:
        self.processes = processes or settings().export_processes or min(usable_cores(), _MOST_UNASKED)
        self._helpers: list[_Helper] = []
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Crew:
        if self.processes > 1:
            self._start(self.processes - 1)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, count: int) -> None:
        ends = [socket.socketpair() for _ in range(count)]
        descriptors = [theirs.fileno() for _, theirs in ends]
        path = os.pathsep.join(
            [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tasks.export.helper", str(os.getpid()), *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env={**os.environ, "PYTHONPATH": path},
        )
        for ours, theirs in ends:
            theirs.close()
            self._helpers.append(_Helper(Connection(ours.detach())))

    def close(self) -> None:
        """End the helpers; those that are still at work are killed."""
        ready = all(helper.ready for helper in self._helpers)
        for helper in self._helpers:
            helper.connection.close()
        self._helpers.clear()
        if self._server is not None:
            if not ready:
                self._server.kill()
            try:
                self._server.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None

    def cut(
        self,
        cutter: Cutter,
        slices: Sequence[Slice],
        progress: Callable[[int], None] | None = None,
    ) -> list[SliceResult]:
        """Cut all slices of a part, this process with ``cutter`` and the helpers with their own.

        Args:
            cutter: open.
            slices: of the part.
            progress: called in this thread with how many more chips are written.

        Raises:
            RunError: a helper has died.
            Exception: what cutting raised, here or in a helper; every process has ended its slice.
        """
        work = _Work(slices)
        with self._helping(work, cutter.plan, cutter.part):
            while (index := work.take()) is not None:
                work.results[index] = cutter.cut(slices[index], progress)
                if progress is not None:
                    progress(work.elsewhere())
        if work.failures:
            raise work.failures[0]
        if progress is not None:
            progress(work.elsewhere())
        return [work.results[index] for index in range(len(slices))]

    @contextmanager
    def _helping(self, work: _Work, plan: ExportPlan, part: ExportPart) -> Iterator[None]:
        orders = (plan, part, self.processes)
        threads = [
            threading.Thread(target=helper.help, args=(work, orders), name=f"chipline-helper-{number}")
            for number, helper in enumerate(self._helpers)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        except BaseException:
            work.stop()
            raise
        finally:
            for thread in threads:
                thread.join()


class _Work:
    """Slices that wait, and results; for many threads."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = slices
        self.results: dict[int, SliceResult] = {}
        self.failures: list[BaseException] = []
        self._waiting = deque(range(len(slices)))
        self._elsewhere: deque[int] = deque()

    @property
    def is_over(self) -> bool:
        return not self._waiting

    def take(self) -> int | None:
        """The next slice; None when there is none."""
        with suppress(IndexError):
            return self._waiting.popleft()
        return None

    def done(self, index: int, result: SliceResult) -> None:
        """A helper's result."""
        self.results[index] = result
        self._elsewhere.append(len(result.chips))

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)
        self.stop()

    def stop(self) -> None:
        self._waiting.clear()

    def elsewhere(self) -> int:
        """Chips that helpers have written since this was asked last."""
        total = 0
        with suppress(IndexError):
            while True:
                total += self._elsewhere.popleft()
        return total


class _Helper:
    """A helper as this process sees it."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self.connection = connection
        self.ready = False

    def help(self, work: _Work, orders: tuple[Any, ...]) -> None:
        """Have it cut slices until none is left."""
        try:
            while not self.ready:
                # A helper that is still starting takes no slice that others could have done meanwhile.
                if work.is_over:
                    return
                if self.connection.poll(_TICK_S):
                    self.ready = self.connection.recv() == READY
            self.connection.send(orders)
            while (index := work.take()) is not None:
                self.connection.send(work.slices[index])
                answer = self.connection.recv()
                if isinstance(answer, BaseException):
                    work.fail(answer)
                    break
                work.done(index, answer)
            self.connection.send(None)
        except (EOFError, OSError):
            work.fail(
                RunError(
                    "A process that cut chips has ended, perhaps for want of memory.",
                    "Start the export again: finished parts are kept. CHIPLINE_EXPORT_PROCESSES=1 takes "
                    "the least memory.",
                )
            )
