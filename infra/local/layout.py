"""Where a local stack lives: its home folder, its ports, its addresses."""

from __future__ import annotations

import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path

from infra.local.errors import StackError

PROJECT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
DEFAULT_PORT_BASE = 14200
BUCKET = "chipline"
MLFLOW_BUCKET = "mlflow"

# Ports as offsets from the base. SeaweedFS' admin gRPC port sits 10000 above its HTTP port because its
# built-in worker computes it so and cannot be told otherwise.
_OFFSETS = {
    "prefect": 0,
    "mlflow": 1,
    "s3": 2,
    "s3-master": 10,
    "s3-master-grpc": 11,
    "s3-volume": 12,
    "s3-volume-grpc": 13,
    "s3-filer": 14,
    "s3-filer-grpc": 15,
    "s3-grpc": 16,
    "s3-admin": 17,
    "s3-admin-grpc": 10_017,
}
# Above this, the highest port would lie among those that the kernel gives to outgoing connections.
HIGHEST_PORT_BASE = 22_000


@dataclass(frozen=True)
class Layout:
    """Folders, ports and addresses of one stack. Two stacks with other homes and ports can run at once."""

    home: Path
    port_base: int

    @classmethod
    def from_environment(cls) -> Layout:
        """``CHIPLINE_HOME`` (default: ``.chipline`` in the project) and ``CHIPLINE_PORT_BASE``.

        Raises:
            StackError: the port base is no number, or out of range.
        """
        home = Path(os.environ.get("CHIPLINE_HOME") or PROJECT / ".chipline")
        text = os.environ.get("CHIPLINE_PORT_BASE") or str(DEFAULT_PORT_BASE)
        if not text.isdigit():
            raise StackError(
                f"CHIPLINE_PORT_BASE is {text!r}, which is no port.", "Set it to a number such as 14300."
            )
        return cls.at(home, int(text))

    @classmethod
    def at(cls, home: Path, port_base: int) -> Layout:
        """The layout of a stack in ``home``.

        Raises:
            StackError: the port base is out of range.
        """
        if not 1024 <= port_base <= HIGHEST_PORT_BASE:
            raise StackError(
                f"The port base {port_base} is out of range.",
                f"Choose CHIPLINE_PORT_BASE between 1024 and {HIGHEST_PORT_BASE}.",
            )
        return cls(home.expanduser().resolve(), port_base)

    def port(self, name: str) -> int:
        """Port of a server or of one of SeaweedFS' parts."""
        return self.port_base + _OFFSETS[name]

    def ports_of(self, service: str) -> dict[str, int]:
        """Every port that a service listens on, by name."""
        return {
            name: self.port(name) for name in _OFFSETS if name == service or name.startswith(f"{service}-")
        }

    @property
    def prefect_url(self) -> str:
        """Where the Prefect UI is; the API is under ``/api``."""
        return f"http://{HOST}:{self.port('prefect')}"

    @property
    def mlflow_url(self) -> str:
        """Where MLflow is."""
        return f"http://{HOST}:{self.port('mlflow')}"

    @property
    def s3_url(self) -> str:
        """The S3 endpoint."""
        return f"http://{HOST}:{self.port('s3')}"

    @property
    def logs(self) -> Path:
        """One log file per service."""
        return self.home / "logs"

    @property
    def secrets_file(self) -> Path:
        """Passwords and keys, readable by the owner only."""
        return self.home / "secrets.json"

    @property
    def state_file(self) -> Path:
        """Processes that were started."""
        return self.home / "state.json"

    def folder(self, *parts: str) -> Path:
        """A private folder in the home, made when it is not there."""
        path = self.home
        for part in ("", *parts):
            path = path / part
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path


def is_free(port: int) -> bool:
    """Whether a server could listen on the port."""
    with socket.socket() as probe:
        # A port in TIME_WAIT is free for a server; without this the probe would call it taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port_base() -> int:
    """A port base of which every port is free now; for tests and for a second stack.

    Raises:
        StackError: none was found.
    """
    for candidate in random.sample(range(15_000, HIGHEST_PORT_BASE, 20), k=200):
        if all(is_free(candidate + offset) for offset in _OFFSETS.values()):
            return candidate
    raise StackError("No free range of ports was found.", "Stop what listens on the ports 15000 to 22000.")
