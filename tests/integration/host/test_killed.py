"""A function's process that is killed at whatever moment: whoever uses it is told within seconds."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import HostError
from tasks.host import FunctionFailure, HostLimits, HostProcess, folders, namespaces
from tasks.package import Package

MakePackage = Callable[..., Package]

BLOCK = np.ones((3, 8, 8), np.uint8)
# The host's limits are longer: who is told within this time was told by the death, not by a limit.
WITHIN_S = 8.0
DIE = "os.kill(os.getpid(), 9)"
# A whole function whose methods call ``at(stage)``, as often as the method was called.
FUNCTION = """
import os
import sys
import numpy as np

calls = {{}}


def at(stage):
    calls[stage] = calls.get(stage, 0) + 1
    if stage == "{stage}" and calls[stage] == {number}:
        {death}


class Last:
    def write(self, text): return len(text)
    def flush(self): at("exit")


at("import")


class Probe:
    def __init__(self): at("__init__")
    def isLicensed(self, **product): at("isLicensed"); return True
    def initialize(self, **kwargs): at("initialize"); sys.stdout = Last()
    def getParameterInfo(self):
        at("getParameterInfo")
        return [{{"name": "raster", "dataType": "raster", "required": True}}]
    def getConfiguration(self, **scalars):
        at("getConfiguration")
        return {{"padding": 0, "tx": 8, "ty": 8}}
    def updateRasterInfo(self, **kwargs):
        at("updateRasterInfo")
        kwargs["output_info"].update(bandCount=1, pixelType="u1")
        return kwargs
    def updateKeyMetadata(self, names, band, **metadata): at("updateKeyMetadata")
    def settle_engine(self, blocks, decided): at("settle_engine"); return {{}}
    def selectRasters(self, tlc, shape, props): at("selectRasters"); return ("raster",)
    def updatePixels(self, tlc, shape, props, **blocks):
        at("updatePixels")
        return {{"output_pixels": Dying(np.ones((1,) + tuple(shape[-2:]), np.uint8))}}


class Dying:
    \"\"\"An answer that is made an array of after the function has returned.\"\"\"
    def __init__(self, values): self.values = values
    def __array__(self, *args, **kwargs): at("answer"); return self.values
"""


def _use(package: Package, limits: HostLimits) -> None:
    """All that the engine does with a function."""
    with HostProcess(package, limits=limits) as host:
        host.settle_engine([BLOCK])
        tickets = [host.submit("updatePixels", BLOCK) for _ in range(2)]
        for number in range(4):
            assert (host.result(tickets.pop(0)) == 1).all()
            if number < 2:
                tickets.append(host.submit("updatePixels", BLOCK))


def _ended(action: Callable[[], Any], within_s: float = WITHIN_S) -> BaseException | None:
    """What an action raised; it has to end in time."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test looks at it
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(within_s)
    assert raised, f"whoever uses the function still waits after {within_s} s"
    return raised[0]


STAGES = [
    ("import", 1), ("initialize", 1), ("getConfiguration", 1), ("settle_engine", 1), ("updatePixels", 1),
    ("answer", 1), ("updatePixels", 4),
]  # fmt: skip
MORE_STAGES = [
    ("__init__", 1), ("isLicensed", 1), ("getParameterInfo", 1), ("updateRasterInfo", 1),
    ("updateKeyMetadata", 2), ("selectRasters", 1), ("updatePixels", 2), ("answer", 4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "number"),
    [*STAGES, *(pytest.param(*stage, marks=pytest.mark.slow) for stage in MORE_STAGES)],
)
def test_function_that_is_killed_at_a_stage_is_told_of(
    make_package: MakePackage, limits: HostLimits, stage: str, number: int
) -> None:
    package = make_package(source=FUNCTION.format(stage=stage, number=number, death=DIE), name="Probe")
    error = _ended(lambda: _use(package, limits))
    assert isinstance(error, FunctionFailure)
    assert error.cause == "crash"
    assert "killed by SIGKILL" in str(error)
    assert str(error).endswith(error.remedy)


def test_function_that_is_killed_when_all_is_done_harms_nobody(
    make_package: MakePackage, limits: HostLimits
) -> None:
    package = make_package(source=FUNCTION.format(stage="exit", number=1, death=DIE), name="Probe")
    assert _ended(lambda: _use(package, limits)) is None


def test_line_that_an_orphan_holds_open_is_given_up(
    make_package: MakePackage, limits: HostLimits, tmp_path: Path
) -> None:
    """No end of the line comes: what the dead process left behind has it, too."""
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\nsleep 60 &\nkill -9 $$\n")
    interpreter.chmod(0o755)
    host = HostProcess(make_package(), limits=limits, interpreter=interpreter)
    error = _ended(host.__enter__)
    assert isinstance(error, HostError)
    assert "killed by SIGKILL" in str(error)


# A program of its own: the tests' process has threads, and a copy of it would hold whatever they held.
LOSE_GUARDIAN = """
import os
import signal
import sys
import time

sys.path.insert(0, sys.argv[1])
import namespaces

early, tell = sys.argv[2] == "before the kernel is told", int(sys.argv[3])
guardian = os.getpid()
telling = namespaces.die_with_parent


def after_the_guardian():
    os.write(tell, b"guarded")
    os.kill(guardian, signal.SIGKILL)
    while os.getppid() == guardian:
        time.sleep(0.001)
    telling()


namespaces.die_with_parent = after_the_guardian if early else lambda: None
namespaces._become_guarded(os.open("/dev/null", os.O_RDONLY))
if not early:
    after_the_guardian()
time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["before the kernel is told", "after a change of user"])
def test_worker_does_not_outlive_a_guardian_whose_death_the_kernel_did_not_tell(moment: str) -> None:
    told, tell = os.pipe()
    alone, hold = os.pipe()
    folder = str(Path(namespaces.__file__).parent)
    command = [sys.executable, "-c", LOSE_GUARDIAN, folder, moment, str(tell)]
    first = subprocess.Popen(command, pass_fds=[tell, hold])
    os.close(tell)
    os.close(hold)
    assert first.wait(WITHIN_S) == -signal.SIGKILL
    # Both ends are closed when nobody lives any more.
    assert select.select([alone], [], [], WITHIN_S)[0], "the worker lives on without its guardian"
    assert os.read(alone, 1) == b""
    assert os.read(told, 99) == b"guarded"
    os.close(told)
    os.close(alone)


def test_host_that_cannot_start_its_thread_or_listen_says_so(
    make_package: MakePackage, limits: HostLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptors() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", no_descriptors)
        error = _ended(HostProcess(make_package(), limits=limits).__enter__)
    assert isinstance(error, HostError)
    assert "Too many open files" in str(error)

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    host = HostProcess(make_package(), limits=limits)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(HostError, match="can't start new thread"):
            host.__enter__()


def test_thread_that_waits_for_a_block_is_told_that_its_host_is_closed(
    make_package: MakePackage, limits: HostLimits
) -> None:
    body = "def updatePixels(self, tlc, shape, props, **blocks):\n    import time; time.sleep(60)"
    host = HostProcess(make_package(body), limits=limits).__enter__()
    ticket = host.submit("updatePixels", BLOCK)
    threading.Timer(0.3, host.close).start()
    error = _ended(lambda: host.result(ticket))
    assert isinstance(error, FunctionFailure)
    assert error.cause == "closed"


def test_function_that_hangs_while_the_host_cannot_send_is_stopped_in_time(make_package: MakePackage) -> None:
    """The line is full, and whoever sends holds what the thread needs that has to tell of it."""
    body = textwrap.dedent("""
        def updatePixels(self, tlc, shape, props, **blocks):
            import time; time.sleep(60)
    """)
    limits = HostLimits(start_timeout_s=20, block_timeout_s=1.0, memory_mb=2000)

    def fill() -> None:
        with HostProcess(make_package(body), limits=limits) as host:
            for _ in range(3):
                host.submit("updatePixels", BLOCK, props={"extent": (0.5,) * 200_000})
            host.result(1)

    error = _ended(fill)
    assert isinstance(error, FunctionFailure)
    assert error.cause == "hang"


def test_folder_that_a_killed_host_left_behind_goes_with_the_next_one(
    make_package: MakePackage, limits: HostLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    left, young, other = (temporary / name for name in ("chipline-host-a", "chipline-host-b", "other"))
    for folder in (left, young, other):
        folder.mkdir()
        (folder / "cache").write_text("large")
    (temporary / "chipline-host-c").symlink_to(other)
    monkeypatch.setattr(folders, "_YOUNG_S", 0.2)
    with HostProcess(make_package(), limits=limits) as living:
        time.sleep(0.3)
        (young / "cache").write_text("larger")
        (young / "more").write_text("")
        with HostProcess(make_package(), limits=limits):
            assert not left.exists()
            assert living.folder is not None
            assert living.folder.exists()
        assert young.exists()
        assert (other / "cache").exists()
