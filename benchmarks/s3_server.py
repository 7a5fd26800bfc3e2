"""The stack's S3 server alone, for benchmarks that need nothing else of the stack."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from infra.local.secrets import Role


@contextmanager
def s3_server(folder: Path, role: Role) -> Iterator[psutil.Process]:
    """The server's process; the environment then names it as the store, with that role's identity."""
    from infra.local.layout import Layout, free_port_base
    from infra.local.secrets import load_secrets, role_environment
    from infra.local.services import servers

    layout = Layout.at(folder / "home", free_port_base())
    keys = load_secrets(layout)
    [service] = [service for service in servers(layout, keys) if service.name == "s3"]
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            service.command, env=service.environment, cwd=service.folder, stdout=log, stderr=log
        )
    try:
        while (wrong := service.check(0.0)) is not None:
            if process.poll() is not None:
                raise SystemExit(f"The S3 server did not start: {wrong}")
            time.sleep(0.2)
        os.environ.update(role_environment(layout, keys, role))
        os.environ["CHIPLINE_ALLOWED_ROOTS"] = json.dumps(["s3://", str(folder)])
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)
