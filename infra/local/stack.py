"""The supervisor of one machine's stack: boots it, says how it is, stops it without leftovers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import TypedDict

import psutil

from infra.local import deployments, processes, samples, server_data
from infra.local.errors import StackError
from infra.local.layout import Layout, is_free
from infra.local.secrets import Role, Secrets, load_secrets, role_environment, write_private
from infra.local.services import Service, servers, staff

_POLL_S = 0.2
_SERVERS = ("prefect", "mlflow", "s3")
_state_lock = threading.Lock()  # services come up in threads, and each notes its process
Say = Callable[[str], None]


@dataclass(frozen=True)
class ServiceStatus:
    """How one service is: ``problem`` is None when it really serves."""

    name: str
    pid: int | None
    resident_mb: int
    problem: str | None


class _Entry(TypedDict):
    """One process in the state file."""

    pid: int
    created: float
    port_base: int


@dataclass
class _Started:
    process: psutil.Process
    popen: Popen[bytes] | None = None


class LocalStack:
    """One stack: SeaweedFS, MLflow, Prefect and workers, on 127.0.0.1.

    Args:
        home: folder of state, data, credentials and logs; None takes ``CHIPLINE_HOME`` or ``.chipline``.
        port_base: first port; None takes ``CHIPLINE_PORT_BASE`` or the default.
        say: where progress goes, one line at a time.
    """

    def __init__(
        self, home: Path | None = None, port_base: int | None = None, *, say: Say | None = None
    ) -> None:
        default = Layout.from_environment()
        self.layout = Layout.at(home or default.home, port_base or default.port_base)
        self.say: Say = say or (lambda _line: None)
        self._children: list[Popen[bytes]] = []
        self._given_up = threading.Event()

    @property
    def secrets(self) -> Secrets:
        """The stack's credentials."""
        return load_secrets(self.layout)

    def environment(self, role: Role = "admin") -> dict[str, str]:
        """Variables with which a process can use the stack in a role."""
        return role_environment(self.layout, self.secrets, role)

    # ------------------------------------------------------------------------------------------ up

    def up(self, *, register: bool = True) -> None:
        """Boot what does not run, wait until everything serves, register pools and deployments.

        Services that run and serve are left alone, so that a second call changes nothing.

        Args:
            register: whether to register the deployments too (pools always are).

        Raises:
            StackError: a port is taken, or a service does not come up; the message names its log.
        """
        with self._locked():
            self._check_port_base()
            keys = self.secrets
            self.layout.folder("logs")
            self._given_up.clear()
            started = time.monotonic()
            everything = servers(self.layout, keys)
            running = self._adopt(everything)
            for service in everything:
                if service.name not in running:
                    self._require_ports(service, keys)
            with ThreadPoolExecutor(max_workers=16) as pool:
                self._ensure_all(pool, everything, keys, running)
                server_data.apply(self.layout, keys)
                registered = pool.submit(self._deploy, keys) if register else None
                samples.upload(self.layout, keys)
                others = staff(self.layout, keys)
                self._ensure_all(pool, others, keys, running | self._adopt(others))
                if registered is not None:
                    registered.result()
            self.say(f"The stack is up after {time.monotonic() - started:.0f} s.")

    def _ensure_all(
        self,
        pool: ThreadPoolExecutor,
        services: list[Service],
        keys: Secrets,
        running: dict[str, _Started],
    ) -> None:
        waits = [pool.submit(self._ensure, service, keys, running) for service in services]
        done, _ = wait(waits, return_when=FIRST_EXCEPTION)
        if any(future.exception() is not None for future in done):
            self._given_up.set()  # the others need not wait out their patience
        for future in done:
            future.result()

    def _adopt(self, services: list[Service]) -> dict[str, _Started]:
        """Those of the services that run already, from the state file."""
        state = self._read_state()
        found: dict[str, _Started] = {}
        for service in services:
            entry = state.get(service.name)
            process = processes.find_process(entry["pid"], entry["created"]) if entry else None
            if process is not None:
                found[service.name] = _Started(process)
        return found

    def _ensure(self, service: Service, keys: Secrets, running: dict[str, _Started]) -> None:
        present = running.get(service.name)
        if present is not None:
            if self._wait_healthy(service, present, patience_s=10.0) is None:
                return
            self.say(f"{service.name} runs but does not serve; it is started again.")
        # Whatever is left of an earlier one must be gone before a new one takes its ports and files.
        processes.stop(processes.marked(keys.stack_id, service.name), patience_s=service.stop_patience_s)
        self._require_ports(service, keys)
        log = self.layout.logs / f"{service.name}.log"
        popen = processes.start(
            service.command, environment=service.environment, folder=service.folder, log=log
        )
        self._children.append(popen)
        # Even if it has ended already: not yet reaped, it can still be looked at.
        started = _Started(psutil.Process(popen.pid), popen)
        self._remember(service.name, started.process)
        begun = time.monotonic()
        problem = self._wait_healthy(service, started, patience_s=service.patience_s)
        if problem is not None:
            raise StackError(
                f"{service.name} did not come up: {problem}.\n{_tail(log)}",
                f"Read {log}, then `make down` and `make up` again.",
            )
        self.say(f"{service.name} serves ({time.monotonic() - begun:.1f} s)")

    def _wait_healthy(self, service: Service, started: _Started, *, patience_s: float) -> str | None:
        end = time.monotonic() + patience_s
        created = started.process.create_time()
        while True:
            # Reaps our own child, so that a dead one is seen as dead.
            if started.popen is not None and started.popen.poll() is not None:
                return f"it ended with exit code {started.popen.returncode}"
            if not processes.is_alive(started.process):
                return "it has ended"
            problem = service.check(created)
            if problem is None or time.monotonic() > end or self._given_up.wait(_POLL_S):
                return problem

    def _require_ports(self, service: Service, keys: Secrets) -> None:
        taken = {name: port for name, port in service.ports.items() if not is_free(port)}
        if taken and processes.marked(keys.stack_id, service.name):
            return  # our own leftover, which is stopped before the service starts
        for name, port in taken.items():
            raise StackError(
                f"Port {port}, which {name} needs, is taken by {processes.listener(port)}.",
                "Stop that program, or choose other ports: CHIPLINE_PORT_BASE=<number> make up "
                f"(now {self.layout.port_base}).",
            )

    def _check_port_base(self) -> None:
        state = self._read_state()
        alive = [
            name
            for name, entry in state.items()
            if processes.find_process(entry["pid"], entry["created"]) is not None
        ]
        if alive and any(state[name]["port_base"] != self.layout.port_base for name in alive):
            old = state[alive[0]]["port_base"]
            raise StackError(
                f"The stack in {self.layout.home} runs at the port base {old}, not {self.layout.port_base}.",
                "Stop it first (`make down`), or set CHIPLINE_HOME to another folder for a second stack.",
            )

    def _deploy(self, keys: Secrets) -> None:
        environment = {processes.MARK: keys.stack_id, processes.SERVICE_MARK: "deploy"}
        environment |= processes.machine_environment() | self.environment("admin")
        count = deployments.register(environment)
        self.say(f"{count} deployments are registered")

    # ---------------------------------------------------------------------------------------- down

    def down(self) -> None:
        """Stop everything of this stack within half a minute, whatever state it is in."""
        if not self.layout.secrets_file.exists():
            return
        with self._locked():
            stack_id = self.secrets.stack_id
            # Workers first, with the runs that they started: they need the servers to say goodbye.
            everything = processes.marked(stack_id)
            at_the_front = [process for process in everything if not _is_server(process)]
            processes.stop(at_the_front, patience_s=6.0)
            services = ("prefect", "mlflow")
            processes.stop([p for name in services for p in processes.marked(stack_id, name)], patience_s=6.0)
            # The store last: MLflow may still write to it. Its graceful stop takes five seconds.
            processes.stop(processes.marked(stack_id, "s3"), patience_s=8.0)
            processes.stop(processes.marked(stack_id), patience_s=0.0)
            for child in self._children:
                child.poll()
            self.layout.state_file.unlink(missing_ok=True)
        self.say("The stack is down.")

    # -------------------------------------------------------------------------------------- status

    def status(self) -> list[ServiceStatus]:
        """How each service is, in the order in which they boot."""
        if not self.layout.secrets_file.exists():
            return []
        keys = self.secrets
        services = [*servers(self.layout, keys), *staff(self.layout, keys)]
        running = self._adopt(services)
        return [self._status_of(service, keys, running.get(service.name)) for service in services]

    def _status_of(self, service: Service, keys: Secrets, started: _Started | None) -> ServiceStatus:
        if started is None:
            return ServiceStatus(service.name, None, 0, "it does not run")
        resident = 0
        for process in processes.marked(keys.stack_id, service.name):
            with contextlib.suppress(psutil.NoSuchProcess):
                resident += process.memory_info().rss
        problem = service.check(started.process.create_time())
        return ServiceStatus(service.name, started.process.pid, resident // 2**20, problem)

    def summary(self) -> str:
        """Addresses, and where the passwords are; no password itself."""
        return "\n".join(
            (
                f"  Prefect  {self.layout.prefect_url}   log in with the line `prefect` below",
                f"  MLflow   {self.layout.mlflow_url}   user admin",
                f"  S3       {self.layout.s3_url}   bucket chipline",
                "  Passwords: python -m infra.local passwords"
                f"   (kept in {self.layout.secrets_file}, for you alone)",
                '  A shell that can use the stack: eval "$(python -m infra.local env)"',
                f"  Logs: {self.layout.logs}",
            )
        )

    # --------------------------------------------------------------------------------------- state

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One ``up`` or ``down`` at a time per home."""
        path = self.layout.folder() / "lock"
        path.touch(mode=0o600)
        with path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read_state(self) -> dict[str, _Entry]:
        try:
            state: dict[str, _Entry] = json.loads(self.layout.state_file.read_text())
        except FileNotFoundError:
            return {}
        return state

    def _remember(self, name: str, process: psutil.Process) -> None:
        with _state_lock:
            state = self._read_state()
            state[name] = {
                "pid": process.pid,
                "created": process.create_time(),
                "port_base": self.layout.port_base,
            }
            write_private(self.layout.state_file, json.dumps(state, indent=1) + "\n")


def _is_server(process: psutil.Process) -> bool:
    try:
        return process.environ().get(processes.SERVICE_MARK) in _SERVERS
    except psutil.NoSuchProcess:
        return False


def _tail(log: Path, lines: int = 12) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
