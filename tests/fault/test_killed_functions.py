"""A function's processes killed after 0 to 2 seconds, from outside: whoever uses it is told at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tasks.errors import HostError
from tasks.host import HostLimits, HostProcess
from tasks.package import Package, read_definition
from tasks.settings import settings
from tests.fault.work import FUNCTION, definition_of_slow, lives

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BLOCK = np.ones((1, 48, 48), np.uint8)
# Told by the death: the host's own limits are longer.
WITHIN_S = 20.0
LIMITS = HostLimits(start_timeout_s=60, block_timeout_s=60, memory_mb=2000)
DELAYS_S = [number / 50 for number in range(101)]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.setenv("CHIPLINE_ALLOW_UNCONTAINED", "true")
    settings.cache_clear()
    (tmp_path / "Slow.py").write_text(FUNCTION)
    text = definition_of_slow().model_dump_json(by_alias=True, exclude_none=True)
    (tmp_path / "slow.emd").write_text(text)
    yield Package(tmp_path, read_definition(text), "0" * 64, "slow")
    settings.cache_clear()


@pytest.mark.parametrize("which", ["all", "one"])
def test_function_killed_at_any_moment_is_told_of(package: Package, which: str) -> None:
    chance = random.Random(0)
    for delay in DELAYS_S:
        before = set(psutil.Process().children(recursive=True))
        user = _User(package)
        user.start()
        # The delay begins with the process: the first kills meet its way from fork to exec.
        while not (found := set(psutil.Process().children(recursive=True)) - before):
            assert user.is_alive(), user.error
        time.sleep(delay)
        found = set(psutil.Process().children(recursive=True)) - before
        victims = sorted(found, key=lambda process: process.pid)
        victims = victims if which == "all" else [chance.choice(victims)]
        for victim in victims:
            _kill(victim)
        user.join(WITHIN_S)
        assert not user.is_alive(), f"{WITHIN_S} s after a kill after {delay} s it still waits"
        assert isinstance(user.error, HostError), user.error
        assert "SIGKILL" in str(user.error)
        left = set(psutil.Process().children(recursive=True)) - before
        assert not any(map(lives, left)), "all that the function started is gone with it"


class _User(threading.Thread):
    """Uses a function until it fails."""

    def __init__(self, package: Package) -> None:
        super().__init__(daemon=True)
        self.package = package
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with HostProcess(self.package, arguments={"seconds": "0.003"}, limits=LIMITS) as host:
                tickets = [host.submit("updatePixels", BLOCK, shape=(32, 32)) for _ in range(2)]
                while True:
                    tickets.append(host.submit("updatePixels", BLOCK, shape=(32, 32)))
                    host.result(tickets.pop(0))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test looks at it
            self.error = error


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return  # it went with another
