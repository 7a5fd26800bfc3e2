"""Training with several processes, on one node or several: torchrun on each, and how nodes find each other.

Every process runs ``python -m tasks.train.process PLAN_URI``; what it has to say it prints as lines of JSON.
The first node leaves its address beside the plan in the store, where the others look for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.errors import NotFoundError, RunError
from tasks.settings import settings
from tasks.store import ObjectStore, join
from tasks.train.callbacks import Progress
from tasks.train.checkpoints import FOLDER
from tasks.train.hardware import accelerator_of, devices_of
from tasks.train.plan import TrainPlan, load_plan, load_record
from tasks.train.work import open_inputs

ADDRESS = "first_node"
_MEET_SECONDS = 900.0
_ASK_SECONDS = 2.0
_CONNECT_SECONDS = 5.0
_STOP_SECONDS = 20.0
_LAST_LINES = 30
_PR_SET_PDEATHSIG = 1
_LOCAL = "127.0.0.1"


def train_on_node(store: ObjectStore, plan_uri: str, node: int, *, progress: Progress) -> None:
    """Run this node's processes of a training and return when it is done everywhere.

    Args:
        node: number of this node, from 0.

    Raises:
        RunError: a process failed; with its own words.
        DeviceError: the node lacks what is asked for.
    """
    plan = load_plan(store, plan_uri)
    if load_record(store, plan.folder_uri) is not None:
        return
    devices, nodes = devices_of(plan.parameters), plan.parameters.num_nodes
    open_inputs(store, [*plan.inputs, *plan.validation])  # once; the processes find them in the cache
    with _meeting_place(store, plan, node) as (host, port):
        command = [
            sys.executable, "-m", "torch.distributed.run",
            f"--nnodes={nodes}", f"--node-rank={node}", f"--nproc-per-node={devices}",
            f"--master-addr={host}", f"--master-port={port}", "--max-restarts=0",
            "-m", "tasks.train.process", plan_uri,
        ]  # fmt: skip
        _run(command, {"OMP_NUM_THREADS": _threads(plan, devices)}, progress)
    if load_record(store, plan.folder_uri) is None:
        raise RunError(
            f"The processes of {plan.folder_uri} ended without a result.", "Look at the log, and start again."
        )


def _threads(plan: TrainPlan, devices: int) -> str:
    """Of each process: its share of the cores, where they do the computing."""
    if accelerator_of(plan.parameters) == "gpu":
        return os.environ.get("OMP_NUM_THREADS", "1")
    return str(max(1, len(os.sched_getaffinity(0)) // devices))


@contextmanager
def _meeting_place(store: ObjectStore, plan: TrainPlan, node: int) -> Iterator[tuple[str, int]]:
    """Address and port of the first node's torchrun."""
    uri = join(plan.folder_uri, FOLDER, ADDRESS)
    if plan.parameters.num_nodes == 1:
        yield _LOCAL, _free_port(_LOCAL)
    elif node == 0:
        host = settings().node_address or _own_address()
        port = _free_port(host)
        store.put(uri, f"{host} {port}".encode())
        try:
            yield host, port
        finally:
            store.delete(uri)
    else:
        yield _find_first(store, uri)


def _find_first(store: ObjectStore, uri: str) -> tuple[str, int]:
    end = time.monotonic() + _MEET_SECONDS
    while time.monotonic() < end:
        try:
            host, port = store.get(uri).decode().split()
            # What a killed node has left behind answers no more.
            with socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS):
                return host, int(port)
        except (NotFoundError, OSError):
            time.sleep(_ASK_SECONDS)
    raise RunError(
        f"The first node of the training did not answer within {_MEET_SECONDS / 60:.0f} minutes ({uri}).",
        "Start as many workers of pool gpu-node as num_nodes says, in one network; CHIPLINE_NODE_ADDRESS of "
        "the first one is the address under which the others reach it.",
    )


def _own_address() -> str:
    """The address from which this machine would speak to others; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of documentation (RFC 5737)
        except OSError:
            return _LOCAL
        return str(probe.getsockname()[0])


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _run(command: list[str], environment: dict[str, str], progress: Progress) -> None:
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=_LAST_LINES)
    reason: str | None = None
    try:
        for line in process.stdout:
            said = _said(line)
            if said is None:
                last.append(line.rstrip())
            elif "error" in said:
                reason = reason or str(said["error"])  # the first one is the cause of the others
            else:
                progress(float(said["fraction"]), str(said["what"]))
        code = process.wait()
    finally:
        _stop(process)
    if code:
        raise RunError(
            f"A process of the training failed: {reason or ' | '.join(last) or f'exit code {code}'}",
            "Mend the cause and start the run again: it goes on from the last checkpoint.",
        )


def _said(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    ours = isinstance(said, dict) and ("error" in said or {"fraction", "what"} <= said.keys())
    return said if ours else None


def _die_with_parent() -> None:
    # torchrun ends its processes when it is asked to end.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
