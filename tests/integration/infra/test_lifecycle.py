"""Up, down and what lies between."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.local import LocalStack, StackError, free_port_base
from infra.local.layout import HOST, PROJECT, is_free
from infra.local.processes import MARK, SERVICE_MARK, marked


def _pids(stack: LocalStack) -> dict[str, int | None]:
    return {service.name: service.pid for service in stack.status()}


def test_everything_serves(stack: LocalStack) -> None:
    assert {service.name: service.problem for service in stack.status() if service.problem} == {}
    assert {"s3", "mlflow", "prefect", "control-1", "control-2", "cpu-1", "gpu-1"} <= set(_pids(stack))


def test_a_second_up_changes_nothing(stack: LocalStack) -> None:
    before = _pids(stack)
    started = time.monotonic()
    stack.up(register=False)
    assert _pids(stack) == before
    assert time.monotonic() - started < 10


def test_up_starts_again_what_died(stack: LocalStack) -> None:
    before = _pids(stack)
    victim = before["cpu-1"]
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == victim], timeout=5)
    assert [service.name for service in stack.status() if service.problem] == ["cpu-1"]
    stack.up(register=False)
    after = _pids(stack)
    assert after.pop("cpu-1") != before.pop("cpu-1")
    assert after == before


def test_workers_carry_the_identity_of_their_role_only(stack: LocalStack) -> None:
    keys = stack.secrets.s3_keys
    for name, role in (("control-1", "control"), ("cpu-1", "cpu"), ("gpu-1", "gpu")):
        (worker,) = [p for p in marked(stack.secrets.stack_id, name) if p.pid == _pids(stack)[name]]
        text = " ".join(worker.environ().values())
        assert [other for other, key in keys.items() if key.secret_key in text] == [role]


def test_a_taken_port_is_named_with_the_remedy(tmp_path: Path) -> None:
    base = free_port_base()
    stack = LocalStack(tmp_path / "home", base)
    with socket.socket() as squatter:
        squatter.bind((HOST, stack.layout.port("mlflow")))
        squatter.listen()
        with pytest.raises(StackError) as error:
            stack.up(register=False)
    assert f"Port {base + 1}" in str(error.value)
    assert f"(process {os.getpid()})" in str(error.value)
    assert "CHIPLINE_PORT_BASE" in error.value.remedy
    assert marked(stack.secrets.stack_id) == []


@pytest.fixture
def own_home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="chipline-test-"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


def test_down_leaves_nothing_after_kills(own_home: Path) -> None:
    stack = LocalStack(own_home, free_port_base())
    stack_id = stack.secrets.stack_id
    # Another program of the same person, that only happens to carry the mark, is not ours to stop.
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)"],
        env={key: value for key, value in os.environ.items() if key != SERVICE_MARK} | {MARK: stack_id},
    )
    try:
        stack.up(register=False)
        pids = _pids(stack)
        for name in ("prefect", "mlflow", "control-2"):  # the parents die, what they started lives on
            victim = pids[name]
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
        time.sleep(0.5)
        assert {p.environ()[SERVICE_MARK] for p in marked(stack_id)} >= {"mlflow", "s3", "cpu-1"}

        # Another process, as when a person types `make down`; the one that booted may be gone.
        environment = os.environ | {
            "CHIPLINE_HOME": str(own_home),
            "CHIPLINE_PORT_BASE": str(stack.layout.port_base),
        }
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "infra.local", "down"],
            env=environment,
            cwd=PROJECT,
            check=True,
            timeout=60,
        )
        assert time.monotonic() - started < 30
        assert marked(stack_id) == []
        ports = [
            port
            for service in ("s3", "mlflow", "prefect")
            for port in stack.layout.ports_of(service).values()
        ]
        assert [port for port in ports if not is_free(port)] == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        stack.down()
    assert {service.problem for service in stack.status()} == {"it does not run"}


def test_down_without_a_stack_is_fine(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / "nothing", free_port_base())
    stack.down()
    assert not (tmp_path / "nothing").exists()
