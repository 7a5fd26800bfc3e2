"""The services of a stack: how each is started. Secrets travel in files and environments, never in a
command line, which every user of the machine could read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.local import health
from infra.local.certificates import write_security
from infra.local.errors import StackError
from infra.local.layout import HOST, MLFLOW_BUCKET, PROJECT, Layout
from infra.local.processes import MARK, SERVICE_MARK, machine_environment
from infra.local.secrets import Role, Secrets, role_environment, write_private

POOLS_FILE = PROJECT / "deployments" / "pools.yaml"


@dataclass(frozen=True)
class Service:
    """One process that the supervisor keeps.

    ``check``, given when the process started (seconds since the epoch), returns what is wrong, or
    nothing when the service really serves.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    ports: dict[str, int]
    check: Callable[[float], str | None]
    patience_s: float
    stop_patience_s: float


def pools() -> dict[str, Any]:
    """``deployments/pools.yaml``."""
    loaded: dict[str, Any] = yaml.safe_load(POOLS_FILE.read_text())
    return loaded


def gpu_identifiers() -> list[str]:
    """The GPUs that the driver reports, honouring ``CUDA_VISIBLE_DEVICES``; torch is too slow to ask."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [item.strip() for item in visible.split(",") if item.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return listing.stdout.split() if listing.returncode == 0 else []


def servers(layout: Layout, keys: Secrets) -> list[Service]:
    """The object store, MLflow and the Prefect server."""
    return [_seaweed(layout, keys), _mlflow(layout, keys), _prefect(layout, keys)]


def workers(layout: Layout, keys: Secrets) -> list[Service]:
    """The workers, each with the identity of its pool and one run at a time."""
    found: list[Service] = []
    for pool in pools()["pools"]:
        name, count = pool["name"], pool["local_workers"]
        role: Role = pool.get("role", name)
        if count == "one per GPU":
            identifiers = gpu_identifiers()
            for number, device in enumerate(identifiers or [""], start=1):
                found.append(_worker(layout, keys, name, role, number, {"CUDA_VISIBLE_DEVICES": device}))
        elif count == "one if several GPUs":
            identifiers = gpu_identifiers()
            if len(identifiers) > 1:
                every = {"CUDA_VISIBLE_DEVICES": ",".join(identifiers)}
                found.append(_worker(layout, keys, name, role, 1, every))
        else:
            for number in range(1, int(count) + 1):
                # Only the GPU's own workers may see a GPU.
                found.append(_worker(layout, keys, name, role, number, {"CUDA_VISIBLE_DEVICES": ""}))
    return found


def staff(layout: Layout, keys: Secrets) -> list[Service]:
    """The workers, and who ends the runs that die with a worker."""
    return [*workers(layout, keys), _dead_runs(layout, keys)]


def _environment(keys: Secrets, service: str, own: dict[str, str]) -> dict[str, str]:
    return machine_environment() | {MARK: keys.stack_id, SERVICE_MARK: service} | own


def _program(name: str) -> str:
    """A program of this environment, whether or not the environment is activated."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise StackError(f"The program {name} is not installed.", "Run `make` to build the environment.")
    return found


def _seaweed(layout: Layout, keys: Secrets) -> Service:
    folder = layout.folder("s3")
    layout.folder("s3", "data")
    write_private(folder / "identities.json", json.dumps(keys.s3_identities(), indent=1))
    write_security(folder, keys)
    port = layout.port
    command = [
        _program("weed"), f"-config_dir={folder}", "-logtostderr=true", "mini",
        "-dir=data", "-s3.config=identities.json",
        f"-ip={HOST}", f"-ip.bind={HOST}",
        # Without this the filer's HTTP door takes anonymous writes.
        "-disableHttp",
        "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.autoCreateBucket=false", f"-s3.allowedOrigins={layout.s3_url}",
        f"-s3.port={port('s3')}", f"-s3.port.grpc={port('s3-grpc')}",
        f"-master.port={port('s3-master')}", f"-master.port.grpc={port('s3-master-grpc')}",
        f"-volume.port={port('s3-volume')}", f"-volume.port.grpc={port('s3-volume-grpc')}",
        f"-filer.port={port('s3-filer')}", f"-filer.port.grpc={port('s3-filer-grpc')}",
        f"-admin.port={port('s3-admin')}", f"-admin.port.grpc={port('s3-admin-grpc')}",
        # Relative, because a socket's path may have 107 characters and a home may be deep.
        "-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock",
    ]  # fmt: skip
    return Service(
        name="s3",
        command=command,
        environment=_environment(keys, "s3", {}),
        folder=folder,
        ports=layout.ports_of("s3"),
        check=lambda _started: health.object_store(layout, keys),
        patience_s=60,
        stop_patience_s=8,
    )


def _mlflow(layout: Layout, keys: Secrets) -> Service:
    folder = layout.folder("mlflow")
    access = role_environment(layout, keys, "mlflow")
    key = keys.s3_keys["mlflow"]
    write_private(
        folder / "auth.ini",
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\n"
        "admin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "grant_default_workspace_access = false\n"
        # Checking a password costs tens of milliseconds; once a minute is often enough.
        "auth_cache_ttl_seconds = 60\n",
    )
    hosts = ",".join(f"{host}:{layout.port('mlflow')}" for host in (HOST, "localhost"))
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth",
        "--host", HOST, "--port", str(layout.port("mlflow")), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", f"s3://{MLFLOW_BUCKET}/artifacts", "--serve-artifacts",
        "--allowed-hosts", hosts, "--cors-allowed-origins", layout.mlflow_url,
    ]  # fmt: skip
    own = {
        # A third of the memory: the job runner would start further processes.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": keys.mlflow_passwords["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": keys.mlflow_cookie_key,
        "MLFLOW_S3_ENDPOINT_URL": layout.s3_url,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "AWS_ACCESS_KEY_ID": key.access_key,
        "AWS_SECRET_ACCESS_KEY": key.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    own |= {name: value for name, value in access.items() if name.lower() == "no_proxy"}
    return Service(
        name="mlflow",
        command=command,
        environment=_environment(keys, "mlflow", own),
        folder=folder,
        ports=layout.ports_of("mlflow"),
        check=lambda _started: health.mlflow(layout, keys),
        patience_s=120,
        stop_patience_s=7,
    )


def _prefect(layout: Layout, keys: Secrets) -> Service:
    folder = layout.folder("prefect")
    # Its password must not reach workers, so it is no part of what every service inherits.
    database = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    own = {database: os.environ[database]} if os.environ.get(database) else {}
    own |= {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_API_AUTH_STRING": keys.prefect_auth_string,
        # The server's own services talk to its API too.
        "PREFECT_API_AUTH_STRING": keys.prefect_auth_string,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": layout.prefect_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # A schedule that a person makes shall not wait a minute before its first run is planned.
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
        # Each look costs, and here nobody is in such a hurry to know.
        "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "15",
        "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "30",
        # The parts of a cancelled run hold their workers until this service has seen them.
        "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "4",
        "PREFECT_UI_API_URL": f"{layout.prefect_url}/api",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    port = str(layout.port("prefect"))
    return Service(
        name="prefect",
        command=[
            sys.executable,
            "-m",
            "infra.local.prefect_server",
            "server",
            "start",
            "--host",
            HOST,
            "--port",
            port,
        ],
        environment=_environment(keys, "prefect", own),
        folder=folder,
        ports=layout.ports_of("prefect"),
        check=lambda _started: health.prefect(layout, keys),
        patience_s=180,
        stop_patience_s=7,
    )


def _worker(
    layout: Layout, keys: Secrets, pool: str, role: Role, number: int, own: dict[str, str]
) -> Service:
    name = f"{pool}-{number}"
    own = own | {
        "CHIPLINE_PROJECT": str(PROJECT),
        "CHIPLINE_PYTHON": sys.executable,
        "PREFECT_HOME": str(layout.folder("workers", name)),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    command = [
        sys.executable, "-m", "infra.local.prefect_worker", "worker", "start", "--type", "process",
        "--pool", pool, "--name", name, "--limit", "1",
        "--install-policy", "never", "--no-create-pool-if-not-found",
    ]  # fmt: skip
    return Service(
        name=name,
        command=command,
        environment=_environment(keys, name, role_environment(layout, keys, role) | own),
        folder=layout.folder("workers", name),
        ports={},
        check=lambda started: health.worker(layout, keys, pool, name, started),
        patience_s=60,
        stop_patience_s=6,
    )


def _dead_runs(layout: Layout, keys: Secrets) -> Service:
    folder = layout.folder("dead-runs")
    access = role_environment(layout, keys, "control")
    own = {name: value for name, value in access.items() if name.startswith("PREFECT_API_")}
    return Service(
        name="dead-runs",
        command=[sys.executable, "-m", "infra.local.dead_runs"],
        environment=_environment(keys, "dead-runs", own),
        folder=folder,
        ports={},
        check=lambda started: health.dead_runs(folder / "looked", started),
        patience_s=60,
        stop_patience_s=3,
    )
