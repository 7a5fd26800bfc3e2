"""Processes that carry the stack's mark: starting them, finding them again, stopping them.

Every process that we start has ``CHIPLINE_STACK_ID`` in its environment, and so have its children. What
is stopped is found by that mark alone, so that nothing of ours is left behind after a crash and nothing
of anybody else's is ever touched.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "CHIPLINE_STACK_ID"
SERVICE_MARK = "CHIPLINE_SERVICE"

# What a service inherits from the person's shell: the machine's facts, none of the person's credentials.
_INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy",
    "https_proxy", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES",
)  # fmt: skip

# What an operator decides (tasks/settings.py); workers read it when they start.
_OPERATORS_WORD = (
    "CHIPLINE_HOST_INTERPRETERS", "CHIPLINE_HOST_BLOCK_TIMEOUT_S", "CHIPLINE_HOST_START_TIMEOUT_S",
    "CHIPLINE_HOST_MEMORY_MB", "CHIPLINE_ALLOW_UNCONTAINED", "CHIPLINE_APPROVED_PACKAGES",
    "CHIPLINE_EXPORT_PROCESSES", "CHIPLINE_RUN_SILENT_S", "CHIPLINE_RUN_PENDING_S",
)  # fmt: skip


def machine_environment() -> dict[str, str]:
    """The part of our environment that services may see."""
    return {name: os.environ[name] for name in (*_INHERITED, *_OPERATORS_WORD) if name in os.environ}


def start(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
) -> subprocess.Popen[bytes]:
    """Start a process in its own session, its output appended to ``log``."""
    log.touch(mode=0o600)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def find_process(pid: int, created: float) -> psutil.Process | None:
    """The process that was started then, if it still lives (numbers are used again by the kernel)."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created) < 1.0 and is_alive(process):
            return process
    except psutil.NoSuchProcess:
        pass
    return None


def marked(stack_id: str, service: str | None = None) -> list[psutil.Process]:
    """Every living process of the stack (or of one service of it), children included."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
        if environment.get(MARK) != stack_id:
            continue
        if service is not None and environment.get(SERVICE_MARK) != service:
            continue
        # A command that was started inside a marked shell, such as this one, stops nothing of itself.
        if process.pid != os.getpid() and SERVICE_MARK in environment and is_alive(process):
            found.append(process)
    return found


def flow_run_processes() -> dict[int, str]:
    """Every living process on this machine that was started for a Prefect flow run: the run, by number."""
    found = {}
    for process in psutil.process_iter():
        try:
            run = process.environ().get("PREFECT__FLOW_RUN_ID")
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
        if run and is_alive(process):
            found[process.pid] = run
    return found


def stop(processes: Iterable[psutil.Process], *, patience_s: float) -> None:
    """SIGTERM, then SIGKILL to those that still live after ``patience_s``; returns when all are gone."""
    waiting = list(processes)
    for process in waiting:
        _signal(process, kill=False)
    waiting = wait_for_end(waiting, patience_s)
    for process in waiting:
        _signal(process, kill=True)
    wait_for_end(waiting, 5.0)


def wait_for_end(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still live after at most ``seconds``."""
    end = time.monotonic() + seconds
    waiting = list(processes)
    while True:
        waiting = [process for process in waiting if is_alive(process)]
        if not waiting or time.monotonic() > end:
            return waiting
        time.sleep(0.05)


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return


def listener(port: int) -> str:
    """Who listens on a port, in words, as far as the kernel tells us."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return "another program"
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or not connection.laddr:
            continue
        if connection.laddr.port == port and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
            except psutil.NoSuchProcess:
                break
    return "another program"
