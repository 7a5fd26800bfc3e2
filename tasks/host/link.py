"""The line to one child process: start it, hear it, watch its time and memory, end it with all it started.

One thread per child starts it, reads its frames and its log, and stops it when it is over its time or its
memory. The same thread has to start it: the child dies with the *thread* that started it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tasks.host.errors import FailureCause, FunctionFailure
from tasks.host.wire import FrameBuffer, WireError, send_frame

_CHILD = Path(__file__).with_name("child.py")
_TAIL_BYTES = 16 * 1024
_TICK_S = 0.1
_MEMORY_EVERY_S = 0.25
_CLOSE_WAIT_S = 1.0
_END_WAIT_S = 5.0
_TRACE_WAIT_S = 0.5
_LINE_WAIT_S = 1.0
_SEND_WAIT_S = 60.0  # frames are small, and the kernel takes several before anybody reads them

Frame = dict[str, Any]


class ChildLink:
    """A running child.

    Args:
        interpreter: the Python that runs the bootstrap file.
        environment: the child's whole environment.
        folder: its working folder.
        inherit: file descriptors it keeps, with the same numbers.
        name: of the inference function, for messages.
        memory_mb: resident size in MiB, with everything it starts, at which it is stopped.
        on_frame: called in the link's thread with every frame; must not block.
        on_failure: called in the link's thread once, when the child has failed.
    """

    def __init__(
        self,
        *,
        interpreter: Path,
        environment: Mapping[str, str],
        folder: Path,
        inherit: Sequence[int],
        name: str,
        memory_mb: int,
        on_frame: Callable[[Frame], None],
        on_failure: Callable[[FunctionFailure], None],
    ) -> None:
        self._interpreter = interpreter
        self._environment = dict(environment)
        self._folder = folder
        self._inherit = tuple(inherit)
        self._name = name
        self._memory_mb = memory_mb
        self._on_frame = on_frame
        self._on_failure = on_failure
        # Where the child says where it is; not the log, which a function may flood.
        self._trace_fd = os.memfd_create("chipline-trace", 0)
        self._socket, self._child_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # Whoever sends may hold what this thread needs: a child that reads nothing must not stop both.
        self._socket.settimeout(_SEND_WAIT_S)
        self._send_lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._tail = bytearray()
        self._deadline: tuple[float, str] | None = None
        self._closing = False
        self._failure: FunctionFailure | None = None
        self._kills = 0
        self._spawned = threading.Event()
        self._spawn_error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name=f"host {name}", daemon=True)

    def start(self) -> int:
        """Starts the process; its process id.

        Raises:
            OSError: the interpreter cannot be started.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise OSError(f"no thread can be had: {error}") from error
        self._spawned.wait()
        if self._spawn_error is not None or self._process is None:
            raise self._spawn_error or OSError("the child was not started")
        return self._process.pid

    def send(self, frame: Frame) -> None:
        """Sends a frame; a child that is gone is told through ``on_failure``, not here."""
        with self._send_lock, contextlib.suppress(BrokenPipeError, ConnectionResetError, OSError):
            send_frame(self._socket, frame)

    def expect_within(self, seconds: float | None, doing: str) -> None:
        """Sets the time by which the next answer is due (None: none is due), with words for the message."""
        self._deadline = None if seconds is None else (time.monotonic() + seconds, doing)

    def tail(self) -> str:
        """The last that the function printed."""
        return bytes(self._tail).decode(errors="replace").strip()

    def close(self) -> None:
        """Ends the child and all it started; returns when they are gone."""
        self._closing = True
        self.send({"op": "close"})
        if self._thread.ident is not None:
            self._thread.join()
        else:
            self._child_socket.close()
        self._socket.close()
        if self._trace_fd >= 0:
            os.close(self._trace_fd)
            self._trace_fd = -1

    # -- the link's own thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            log_read, log_write = os.pipe()
        except OSError as error:
            self._spawn_error = error
            self._child_socket.close()
            self._spawned.set()
            return
        try:
            # -I: no PYTHON* variables, no user site, and neither our folder nor the current one on the path.
            self._process = subprocess.Popen(
                [
                    str(self._interpreter),
                    "-I",
                    "-u",
                    str(_CHILD),
                    str(self._child_socket.fileno()),
                    str(self._trace_fd),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log_write,
                stderr=log_write,
                env=self._environment,
                cwd=self._folder,
                pass_fds=(*self._inherit, self._child_socket.fileno(), self._trace_fd),
                start_new_session=True,
            )
        except OSError as error:
            self._spawn_error = error
            os.close(log_read)
            return
        finally:
            os.close(log_write)
            self._child_socket.close()
            self._spawned.set()
        try:
            self._listen(self._process, log_read)
        except Exception as error:
            # Whoever waits for an answer must be told, whatever happened here.
            self._fail("protocol", f"could not be listened to: {error!r}")
            raise
        finally:
            _end(self._process)
            os.close(log_read)

    def _listen(self, process: subprocess.Popen[bytes], log: int) -> None:
        os.set_blocking(log, False)
        frames = FrameBuffer()
        next_memory = close_by = give_up = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(log, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(_TICK_S):
                    if key.fileobj is self._socket:
                        data = self._receive()
                        if not data:
                            return self._ended(process, log)
                        # What was printed before the answer is in the pipe: an error's message quotes it.
                        self._drain(log)
                        try:
                            arrived = frames.feed(data)
                        except WireError as error:
                            return self._fail("protocol", f"broke the host's protocol: {error}")
                        for frame in arrived:
                            self._on_frame(frame)
                    elif not self._drain(log):
                        selector.unregister(log)
                now = time.monotonic()
                if _exit_code(process.pid) is not None:
                    # Its end of the line is closed with it, unless somebody whom it left behind holds it:
                    # then no end of the line would ever come.
                    give_up = give_up or now + _LINE_WAIT_S
                    if now > give_up:
                        return self._ended(process, log)
                if self._closing:
                    close_by = close_by or now + _CLOSE_WAIT_S
                    if now > close_by:
                        return None
                    continue
                deadline = self._deadline
                if deadline is not None and now > deadline[0]:
                    self._ask_where(process, log)
                    return self._fail("hang", f"took too long {deadline[1]}")
                if now > next_memory:
                    next_memory = now + _MEMORY_EVERY_S
                    self._kills = kills_for_memory()
                    resident = resident_mb(process.pid)
                    if resident > self._memory_mb:
                        self._ask_where(process, log)
                        return self._fail(
                            "memory", f"holds {resident} MiB, over its limit of {self._memory_mb} MiB"
                        )

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def _drain(self, log: int) -> bool:
        try:
            data = os.read(log, 1 << 16)
        except BlockingIOError:
            return True
        self._tail += data
        del self._tail[:-_TAIL_BYTES]
        return bool(data)

    def _ask_where(self, process: subprocess.Popen[bytes], log: int) -> None:
        """Makes the child write where it is; it cannot refuse, unless it is stuck in the kernel."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGUSR2)
        give_up = time.monotonic() + _TRACE_WAIT_S
        size = -1
        while time.monotonic() < give_up:
            time.sleep(0.02)
            self._drain(log)
            grown = os.fstat(self._trace_fd).st_size
            if grown and grown == size:
                return
            size = grown

    def _where(self) -> str:
        data = os.pread(self._trace_fd, _TAIL_BYTES, 0).decode(errors="replace")
        ours = (f'"{_CHILD}"', "<frozen")
        return "\n".join(line for line in data.splitlines() if not any(part in line for part in ours)).strip()

    def _ended(self, process: subprocess.Popen[bytes], log: int) -> None:
        if self._closing:
            return
        give_up = time.monotonic() + _END_WAIT_S
        while (code := _exit_code(process.pid)) is None:
            if time.monotonic() > give_up:
                self._fail("protocol", "closed the line to the host")
                return
            time.sleep(0.005)
        self._drain(log)
        # Told apart from anybody's kill -9: a smaller batch would mend the one, and change results for
        # nothing after the other.
        if code == -signal.SIGKILL and kills_for_memory() > self._kills:
            self._fail("memory", "was killed by the kernel, since the machine's memory ran out")
            return
        self._fail("crash", f"ended: {exit_words(code)}")

    def _fail(self, cause: FailureCause, what: str) -> None:
        remedies: dict[FailureCause, str] = {
            "hang": "Raise the limit (CHIPLINE_HOST_BLOCK_TIMEOUT_S, CHIPLINE_HOST_START_TIMEOUT_S), or use "
            "a smaller batch_size or a faster device.",
            "memory": "Use a smaller batch_size or tile size, or raise CHIPLINE_HOST_MEMORY_MB.",
            "crash": "Run the package on another device, or correct it; its output above says where it was.",
            "protocol": "The function must not touch the host's file descriptors; correct the package.",
        }
        tail, where = self.tail(), self._where()
        at = f"\nWhere it was:\n{where}" if where else ""
        said = f"\nIts last output:\n{tail}\n" if tail else ("\n" if where else "") + "It printed nothing."
        separator = "" if where or tail else ". "
        self._failure = FunctionFailure(
            f"The inference function {self._name} {what}{at}{separator}{said}",
            remedies[cause],
            cause=cause,
            function_traceback=where,
        )
        # The line is of no more use: whoever sends on it, and may hold what the next call needs, is let go.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._on_failure(self._failure)


def exit_words(code: int) -> str:
    """An exit status in words; above 128 it is a signal, as in a shell."""
    number = -code if code < 0 else code - 128
    if code < 0 or code > 128:
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"exit code {code}"
        hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {code}"


def kills_for_memory(counters: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has killed so far because memory ran out; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in counters.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def resident_mb(pid: int) -> int:
    """Memory in MiB of a process and everything it started; 0 when it is gone.

    Resident pages, and the files in memory that they hold open: what is written there and not mapped is in
    nobody's resident size. Pages of such files that are mapped count twice.
    """
    held = 0
    files: dict[tuple[int, int], int] = {}
    for member in tree(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            held += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{member}/fd"):
                with contextlib.suppress(OSError):
                    if str(Path(entry.path).readlink()).startswith(("/memfd:", "/dev/shm/")):
                        state = entry.stat()
                        files[state.st_dev, state.st_ino] = state.st_blocks * 512
    return (held + sum(files.values())) // (1024 * 1024)


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants. Reads the kernel's own lists: psutil would read every process there is."""
    found, index = [pid], 0
    while index < len(found):
        with contextlib.suppress(OSError):
            for thread in os.scandir(f"/proc/{found[index]}/task"):
                with contextlib.suppress(OSError):
                    found += map(int, Path(thread.path, "children").read_text().split())
        index += 1
    return found


def _exit_code(pid: int) -> int | None:
    """A child's exit code, minus the signal's number where one ended it; None while it runs.

    Leaves it unburied: so long its number, which is that of its group too, is nobody else's.
    """
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0  # buried by somebody else, who alone knows
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process, its group and its descendants, also those that left the group; waits for them."""
    members = []
    with contextlib.suppress(psutil.NoSuchProcess):
        # The host's own view, not only the kernel's lists of children: some kernels have none.
        members = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    for member in members:
        with contextlib.suppress(psutil.Error):
            member.kill()
    give_up = time.monotonic() + _END_WAIT_S
    # One that is stuck in the kernel (a driver, a dead network file system) holds its host up no longer.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_WAIT_S)
    while any(map(_lives, members)) and time.monotonic() < give_up:
        time.sleep(0.005)


def _lives(process: psutil.Process) -> bool:
    try:
        # One that nobody has buried yet (a container without an init) holds nothing any more.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
