"""A real S3 server (SeaweedFS) for this folder's tests: private ports, two identities, own folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.settings import StoreAccess, settings
from tasks.store import ObjectStore

BUCKET = "unit"


@dataclass(frozen=True)
class Server:
    """Where the server listens, and an access for each identity."""

    endpoint_url: str
    admin: StoreAccess
    reader: StoreAccess
    process: subprocess.Popen[bytes]


def free_ports(count: int) -> list[int]:
    # SeaweedFS puts each gRPC port 10000 above its HTTP port, so both must be free and in range.
    sockets: list[socket.socket] = []
    ports: list[int] = []
    port = 21000 + os.getpid() % 900 * 10
    while len(ports) < count:
        port += 1
        try:
            for number in (port, port + 10000):
                probe = socket.socket()
                sockets.append(probe)
                probe.bind(("127.0.0.1", number))
            ports.append(port)
        except OSError:
            continue
    for probe in sockets:
        probe.close()
    return ports


def _identity(name: str, actions: list[str]) -> dict[str, object]:
    return {
        "name": name,
        "credentials": [{"accessKey": f"{name}-key", "secretKey": f"{name}-secret-of-the-test"}],
        "actions": actions,
    }


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    home = tmp_path_factory.mktemp("weed")
    identities = home / "identities.json"
    identities.touch(mode=0o600)
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    identities.write_text(
        json.dumps(
            {
                "identities": [
                    _identity("admin", everything),
                    _identity("reader", [f"Read:{BUCKET}", f"List:{BUCKET}"]),
                ]
            }
        )
    )
    master, volume, filer, s3, admin = free_ports(5)
    log = (home / "log").open("wb")
    process = subprocess.Popen(
        [
            weed,
            "mini",
            f"-dir={home}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-s3.port={s3}",
            f"-admin.port={admin}",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={identities}",
            "-disableHttp",
            "-master.telemetry=false",
            f"-bucket={BUCKET}",
        ],
        stdout=log,
        stderr=log,
        cwd=home,
    )
    endpoint = f"http://127.0.0.1:{s3}"

    def access(name: str) -> StoreAccess:
        return StoreAccess(
            prefix=f"s3://{BUCKET}",
            endpoint_url=endpoint,
            access_key=f"{name}-key",
            secret_key=f"{name}-secret-of-the-test",
        )

    try:
        wait_for(endpoint, process, home / "log")
        yield Server(endpoint, access("admin"), access("reader"), process)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def wait_for(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server takes an object."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="admin-key",
        aws_secret_access_key="admin-secret-of-the-test",
        config=Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=5),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
            continue
        return
    raise AssertionError(f"SeaweedFS did not become ready:\n{log.read_text()[-3000:]}")


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store with the admin's access to the test bucket, which is also the root of the settings."""
    monkeypatch.setenv("CHIPLINE_STORES", as_setting(server.admin))
    monkeypatch.setenv("CHIPLINE_ROOT", f"s3://{BUCKET}/root")
    settings.cache_clear()
    yield ObjectStore()
    settings.cache_clear()


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """An address of the test's own."""
    return f"s3://{BUCKET}/{request.node.name}/{uuid.uuid4().hex}"


def as_setting(*accesses: StoreAccess) -> str:
    """Accesses as the JSON that CHIPLINE_STORES takes."""
    return json.dumps(
        [
            {**access.model_dump(), "secret_key": access.secret_key and access.secret_key.get_secret_value()}
            for access in accesses
        ]
    )
